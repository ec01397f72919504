"""Settings of the broker's client on the command line and in a file: what arrives, and what errors do not tell."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from scoop_outbox import Scoop
from scoop_outbox.app import service_of
from scoop_outbox.broker import plugins
from scoop_outbox.cli import main, processes
from scoop_outbox.cli.processes import Serving
from tests.fake_broker import FakeBroker

APP = """
from scoop_outbox import Scoop
app = Scoop("shop", database="postgresql://h/d", group="declared", start="latest",
            broker="kafka://h", broker_settings={"a": "declared", "b": "declared", "c": "declared"})
saga = app.saga("place-order", on="orders")
@saga.step
def only(scope, message): ...
"""


class Made:
    """What the commands made of their arguments, without serving anything."""

    def __init__(self) -> None:
        self.settings: dict[str, object] = {}
        self.app: Scoop | None = None
        self.serving: Serving | None = None


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Made:
    made = Made()

    def load(url: str, settings: Mapping[str, object] | None = None) -> Any:
        made.settings = dict(settings or {})
        return FakeBroker()

    def run(app: Scoop, serving: Serving) -> None:
        made.app, made.serving = app, serving

    monkeypatch.setattr(plugins, "load", load)
    monkeypatch.setattr(processes, "run", run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("SCOOP_OUTBOX_DATABASE", "SCOOP_OUTBOX_BROKER", "SCOOP_OUTBOX_BROKER_SETTINGS"):
        monkeypatch.delenv(name, raising=False)
    module = f"sagas_of_settings_{len(sys.modules)}"
    (tmp_path / f"{module}.py").write_text(APP)
    monkeypatch.setattr(sys.modules[__name__], "WORKER", ("worker", f"{module}:app"))
    return made


WORKER: tuple[str, str] = ("worker", "")
RELAY = ("relay", "--database", "postgresql://h/d", "--broker", "kafka://h")


def command(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert "s3cr3t" not in result.output
    assert "Traceback" not in result.output
    return result


def works(*arguments: str) -> None:
    result = command(*arguments)
    assert result.exit_code == 0, result.output


def refused(*arguments: str) -> str:
    result = command(*arguments)
    assert result.exit_code in (1, 2)
    *_, line = result.output.strip().splitlines()
    return line.removeprefix("Error: ")


def test_the_command_line_wins_over_the_file_and_the_file_over_what_is_declared(made: Made, tmp_path: Path) -> None:
    file = tmp_path / "settings"
    file.write_text("\ufeff# of the broker\n\n  b = file \nc=file=1 # no comment\r\n  # a comment\nd=\n", "utf-8")
    works(*WORKER, "--broker-settings", str(file), "--broker-setting", "b=line=2", "--broker-setting", "e=5")
    assert made.settings == {"a": "declared", "b": "line=2", "c": "file=1 # no comment", "d": "", "e": "5"}
    works(*RELAY, "--broker-setting", "e=5", "--broker-settings", str(file))
    assert made.settings == {"b": "file", "c": "file=1 # no comment", "d": "", "e": "5"}


def test_the_file_may_be_named_by_the_environment(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "settings").write_text("sasl.password=s3cr3t")
    monkeypatch.setenv("SCOOP_OUTBOX_BROKER_SETTINGS", str(tmp_path / "settings"))
    works(*RELAY)
    assert made.settings == {"sasl.password": "s3cr3t"}


@pytest.mark.parametrize(
    "text, says",
    [
        ("# one\na=1\ns3cr3t\n", "line 3 is not NAME=VALUE, as in sasl.mechanism=PLAIN"),
        ("a=1\n=s3cr3t", "line 2 is not NAME=VALUE, as in sasl.mechanism=PLAIN"),
        ("a=1\nb=2\na=s3cr3t", "line 3 sets a a second time"),
    ],
)
def test_an_error_in_the_file_names_the_line_and_not_the_value(
    made: Made, tmp_path: Path, text: str, says: str
) -> None:
    file = tmp_path / "settings"
    file.write_text(text)
    assert refused(*RELAY, "--broker-settings", str(file)) == f"{file}, {says}"


def test_a_file_that_cannot_be_read(made: Made, tmp_path: Path) -> None:
    assert "does not exist" in refused(*RELAY, "--broker-settings", "nowhere")
    file = tmp_path / "settings"
    file.write_bytes(b"a=s3cr3t\xff")
    assert refused(*RELAY, "--broker-settings", str(file)) == f"{file} is not UTF-8 text"


@pytest.mark.parametrize("setting", ["s3cr3t", "=s3cr3t"])
def test_an_error_on_the_command_line_does_not_show_it(made: Made, setting: str) -> None:
    says = "--broker-setting is NAME=VALUE, as in --broker-setting sasl.mechanism=PLAIN"
    assert refused(*RELAY, "--broker-setting", setting) == says
    assert refused("demo", "--broker", "kafka://h", "--broker-setting", setting) == says


def test_group_and_start_of_a_worker(made: Made) -> None:
    works(*WORKER)
    assert made.app is not None
    assert (service_of(made.app).subscription.group, service_of(made.app).subscription.start) == ("declared", "latest")
    works(*WORKER, "--group", "another", "--start", "earliest")
    assert (service_of(made.app).subscription.group, service_of(made.app).subscription.start) == ("another", "earliest")
    assert "a group name must not" in refused(*WORKER, "--group", "")


def test_port_and_host(made: Made) -> None:
    works(*RELAY)
    assert made.serving == Serving(worker=False, relay=True, slots=1, grace=20.0, port=None, host="127.0.0.1")
    works(*RELAY, "--port", "9100", "--host", "::1")
    assert made.serving == Serving(worker=False, relay=True, slots=1, grace=20.0, port=9100, host="::1")
    works(*WORKER, "--port", "0", "--relay")
    assert made.serving == Serving(worker=True, relay=True, slots=16, grace=20.0, port=0, host="127.0.0.1")
    assert "70000 is not in the range" in refused(*RELAY, "--port", "70000")
