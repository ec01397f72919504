"""The command line: what it answers when something is wrong, and that it is one line."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result

from scoop_outbox import DefinitionError, DistributedError, Scoop
from scoop_outbox.cli import main
from scoop_outbox.cli.processes import load_app
from scoop_outbox.store.revisions import head
from tests.waiting import until_blocking

NOWHERE = "postgresql://user:s3cr3t@127.0.0.1:1/nowhere"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCOOP_OUTBOX_DATABASE", raising=False)
    monkeypatch.delenv("SCOOP_OUTBOX_BROKER", raising=False)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module into the working directory and return its name."""
    monkeypatch.chdir(tmp_path)
    # The command searches the working directory by changing this.
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(text: str) -> str:
        name = f"sagas_{len(sys.modules)}_{len(list(tmp_path.iterdir()))}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def command(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert "s3cr3t" not in result.output
    assert "Traceback" not in result.output
    return result


def refused(*arguments: str, code: int = 1) -> str:
    """Run a command that is refused, and return the line that says why."""
    result = command(*arguments)
    assert result.exit_code == code, result.output
    line = result.output.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    assert code == 2 or result.output.count("\n") == 1
    return line


SAGA = """
from scoop_outbox import Scoop
app = Scoop("shop"{more})
saga = app.saga("place-order", on="orders")
@saga.step
def only(scope, message): ...
"""

WARNING = """
import warnings
from scoop_outbox import Scoop
app = Scoop("shop")
saga = app.saga("place-order", on="orders")
@saga.step
def only(scope, message):
    warnings.warn("said by a step", stacklevel=1)
    raise ValueError("no pallet left")
"""

UNEXPECTED = (
    SAGA.format(more="")
    + """
def running(self, **options):
    raise ZeroDivisionError("nobody expected this")
Scoop.running = running
"""
)

COLLECTED = """
import gc, weakref
from scoop_outbox import Scoop
app = Scoop("shop")
saga = app.saga("place-order", on="orders")
class Cycle: ...
@saga.step
def only(scope, message):
    cycle = Cycle()
    cycle.itself, gone = cycle, weakref.ref(cycle)
    del cycle
    made = []
    while gone() is not None and len(made) < 1_000_000:
        made.append([])
    print("frozen" if gc.get_freeze_count() > 10_000 else gc.get_freeze_count(), flush=True)
    print("collected" if gone() is None else len(made), flush=True)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["worker", "--help"], ["relay", "-h"], ["migrate", "-h"]])
def test_help_needs_nothing(arguments: list[str]) -> None:
    result = command(*arguments)
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_the_version_is_told() -> None:
    assert f"version {version('scoop-outbox')}" in command("--version").output


@pytest.mark.parametrize("name", ["migrate", "relay"])
@pytest.mark.parametrize(
    "url, says",
    [
        ("mysql://user:s3cr3t@host/db", "starts with mysql://, but sagas live in PostgreSQL"),
        ("s3cr3t", "cannot be parsed; it looks like postgresql://"),
        ("postgresql://user:s3cr3t@host:port/db", "cannot be parsed; it looks like postgresql://"),
        (NOWHERE, "cannot connect to postgresql://user:***@127.0.0.1:1/nowhere"),
        ("postgresql://127.0.0.1:1/nowhere?password=s3cr3t", "cannot connect to postgresql://127.0.0.1:1/nowhere"),
    ],
)
def test_a_database_that_cannot_be_used(name: str, url: str, says: str) -> None:
    assert says in refused(name, "--database", url)


@pytest.mark.parametrize("name", ["migrate", "relay"])
def test_a_database_has_to_be_given(name: str) -> None:
    assert "pass --database postgresql://... or set SCOOP_OUTBOX_DATABASE" in refused(name, code=2)


def test_a_database_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCOOP_OUTBOX_DATABASE", NOWHERE)
    assert "cannot connect to postgresql://user:***@127.0.0.1:1/nowhere" in refused("migrate")


def test_migrate_tells_the_revision(postgres_url: str, database_url: str) -> None:
    for schema in ("scoop_outbox", "o'clock"):
        result = command("migrate", "--database", database_url, "--schema", schema)
        assert (result.exit_code, result.output) == (0, f"schema {schema} is at revision {head()}\n")
    assert "schema name" in refused("migrate", "--database", database_url, "--schema", "x" * 64)


@pytest.mark.parametrize("path", ["x", "", ":", "x:", ":app"])
def test_an_application_is_named_by_module_and_name(path: str) -> None:
    assert "write MODULE:APP, as in shop.sagas:app" in refused("worker", path)


@pytest.mark.parametrize(
    "text, says",
    [
        ("import nothing_of_this_name", "does not import: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("def (", "does not import: SyntaxError"),
        ("raise ValueError('o\\'clock')", "does not import: ValueError: o'clock"),
        (
            "from scoop_outbox import Scoop\napp = Scoop('')",
            "does not import: DefinitionError: a service name must not",
        ),
        (
            "from scoop_outbox import Scoop\nother = Scoop('shop')",
            "has no such name, where a Scoop is needed; it holds",
        ),
        ("app = 7", "is a int, where a Scoop is needed"),
        ("from scoop_outbox import Scoop\napp = Scoop", "is a type, where a Scoop is needed"),
        ("from scoop_outbox import Scoop\napp = Scoop('shop')", "declares no sagas: a worker would have nothing to do"),
        (SAGA.format(more=""), "has no database: pass database='postgresql://...' to Scoop(), or set SCOOP_OUTBOX_DA"),
        (SAGA.format(more=f", database={NOWHERE!r}"), "cannot connect to postgresql://user:***@127.0.0.1:1/nowhere"),
        (SAGA.format(more=", broker='carrier-pigeon://s3cr3t@loft'"), "no broker is known for the scheme 'carrier-pig"),
        (SAGA.format(more=", broker='kafka://[s3cr3t'"), "the broker URL cannot be parsed; it looks like kafka://host"),
        (
            "from scoop_outbox import Scoop\napp = Scoop('shop', database='postgresql://h/d')\napp.saga('empty', 'x')",
            "saga 'empty' has no steps: declare one",
        ),
    ],
)
def test_an_application_that_cannot_be_served(module: Callable[[str], str], text: str, says: str) -> None:
    assert says in refused("worker", f"{module(text)}:app")


def test_what_a_worker_is_told_to_use(module: Callable[[str], str]) -> None:
    app = f"{module(SAGA.format(more=''))}:app"
    assert "cannot connect to postgresql://user:***@127.0.0.1:1/nowhere" in refused(
        "worker", app, "--database", NOWHERE
    )
    assert "no broker is known for the scheme 'pigeon'" in refused("worker", app, "--broker", "pigeon://s3cr3t@loft")
    assert "slots=0: a worker needs at least one" in refused("worker", app, "--database", NOWHERE, "--slots", "0")
    assert "Invalid value for '--slots'" in refused("worker", app, "--slots", "many", code=2)


def test_a_relay_needs_a_broker_that_is_known() -> None:
    says = refused("relay", "--database", NOWHERE, "--broker", "pigeon://s3cr3t@loft")
    assert "use kafka://, amqp://, postgresql:// or leave the URL out" in says


def test_an_application_is_found_in_the_working_directory(module: Callable[[str], str]) -> None:
    app = load_app(f"{module(SAGA.format(more=''))}:app")
    assert isinstance(app, Scoop)
    assert list(app.sagas) == ["place-order"]
    with pytest.raises(DefinitionError, match="has no such name"):
        load_app(f"{module(SAGA.format(more=''))}:app.sagas")


# As processes of their own ---------------------------------------------------------------------------------------


def process(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SCOOP_OUTBOX_")}
    return subprocess.Popen(
        [sys.executable, "-m", "scoop_outbox", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["worker", "x:y"], "Error: the module 'x' does not import: ModuleNotFoundError: No module named 'x'"),
        (["relay", "--database", NOWHERE], "Error: cannot connect to postgresql://user:***@127.0.0.1:1/nowhere"),
    ],
)
def test_a_process_that_cannot_serve_says_one_line_and_ends_with_1(
    tmp_path: Path, arguments: list[str], says: str
) -> None:
    with process(*arguments, folder=tmp_path) as child:
        out, err = child.communicate(timeout=60)
    assert child.returncode == 1
    assert out == ""
    assert err.startswith(says)
    assert err.count("\n") == 1


def test_a_database_that_is_not_migrated_ends_a_worker(tmp_path: Path, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("drop schema scoop_outbox cascade")
    (tmp_path / "sagas.py").write_text(SAGA.format(more=""))
    with process("worker", "sagas:app", "--database", database_url, folder=tmp_path) as child:
        _, err = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "lacks the tables of scoop_outbox: run `scoop-outbox migrate --database URL`" in err
    assert err.count("\n") == 1


def test_sd_01_a_worker_serves_until_it_is_told_to_stop(tmp_path: Path, database_url: str) -> None:
    (tmp_path / "sagas.py").write_text(SAGA.format(more=""))
    arguments = ["worker", "sagas:app", "--relay", "--database", database_url]
    app = Scoop("shop", database=database_url)
    with process(*arguments, folder=tmp_path) as child:
        until_blocking(lambda: subscribed(database_url), timeout=60)
        handle = app.launch_sync("orders", 1)
        handle.wait_sync(60)
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert "process: ready (service shop, database postgresql://postgres:***@" in err
    assert err.rstrip().endswith("process: stopped")
    app.close_sync()


def test_a_log_of_json_is_json_in_every_line(tmp_path: Path, database_url: str) -> None:
    (tmp_path / "sagas.py").write_text(WARNING)
    arguments = ["worker", "sagas:app", "--relay", "--database", database_url, "--log-format", "json"]
    app = Scoop("shop", database=database_url)
    with process(*arguments, "--log-level", "debug", folder=tmp_path) as child:
        until_blocking(lambda: subscribed(database_url), timeout=60)
        handle = app.launch_sync("orders", 1, key="A-1043")
        with pytest.raises(DistributedError, match="no pallet left"):
            handle.wait_sync(60)
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    lines = [json.loads(line) for line in err.splitlines()]
    assert all({"time", "level", "logger", "event"} <= line.keys() for line in lines)
    (ready,) = [line for line in lines if line["event"] == "process: ready"]
    assert (ready["level"], ready["service"]) == ("info", "shop")
    (warned,) = [line for line in lines if line["logger"] == "py.warnings"]
    assert "said by a step" in warned["event"]
    assert lines[-1]["event"] == "process: stopped"
    app.close_sync()


def test_an_error_of_the_command_is_json_too(tmp_path: Path) -> None:
    with process("relay", "--database", NOWHERE, "--log-format", "json", folder=tmp_path) as child:
        out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (1, "")
    (line,) = [json.loads(one) for one in err.splitlines()]
    assert (line["level"], line["event"]) == ("critical", "process: failed")
    assert line["detail"].startswith("cannot connect to postgresql://user:***@127.0.0.1:1/nowhere")


def test_an_exception_that_nobody_catches_is_json_too(tmp_path: Path, database_url: str) -> None:
    (tmp_path / "sagas.py").write_text(UNEXPECTED)
    arguments = ["worker", "sagas:app", "--database", database_url, "--log-format", "json"]
    with process(*arguments, folder=tmp_path) as child:
        _, err = child.communicate(timeout=60)
    assert child.returncode == 1
    line = json.loads(err.splitlines()[-1])
    assert line["event"] == "process: exception not caught"
    assert line["exception"].rstrip().endswith("ZeroDivisionError: nobody expected this")


def test_a_process_of_ours_collects_what_it_makes_and_not_what_it_has_imported(
    tmp_path: Path, database_url: str
) -> None:
    (tmp_path / "sagas.py").write_text(COLLECTED)
    app = Scoop("shop", database=database_url)
    with process("worker", "sagas:app", "--relay", "--database", database_url, folder=tmp_path) as child:
        until_blocking(lambda: subscribed(database_url), timeout=60)
        handle = app.launch_sync("orders", 1)
        handle.wait_sync(60)
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert out.split() == ["frozen", "collected"]
    app.close_sync()


def subscribed(url: str) -> list[object]:
    with psycopg.connect(url) as connection:
        return [*connection.execute("select 1 from scoop_outbox.subscription").fetchall()]
