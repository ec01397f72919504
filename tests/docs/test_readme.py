"""What README.md shows is what happens."""

import importlib
import re
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from scoop_outbox import Scoop
from tests.docs.markdown import ROOT, blocks, comparable, programs, run

README = ROOT / "README.md"
SERVICES = ("orders", "stock", "payments", "shipping")
(FIRST_SAGA,) = programs(README)


def test_the_first_saga_prints_what_the_readme_says(database_url: str, tmp_path: Path) -> None:
    (tmp_path / FIRST_SAGA.file).write_text(FIRST_SAGA.code, encoding="utf-8")

    printed = run(FIRST_SAGA, tmp_path, database_url)

    assert FIRST_SAGA.prints is not None
    assert comparable(printed) == comparable(FIRST_SAGA.prints)


def test_the_command_that_the_readme_migrates_with_can_be_run_again(database_url: str) -> None:
    lines = [line for _, block in blocks(README, "sh") for line in block.splitlines()]
    (line,) = [line for line in lines if "scoop-outbox migrate" in line]
    command = line.partition("#")[0].split()

    ended = subprocess.run(
        [sys.executable, "-m", "scoop_outbox", *command[1:]],
        env={"SCOOP_OUTBOX_DATABASE": database_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    assert "is at revision" in ended.stdout


def test_the_server_of_the_demo_extra_prints_its_url_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    (line,) = re.findall(r"^scoop-outbox (postgres .+)$", README.read_text(encoding="utf-8"), re.MULTILINE)
    with subprocess.Popen(
        [sys.executable, "-m", "scoop_outbox", *line.split()], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        printed = server.stdout.readline()
        try:
            url = printed.strip().removeprefix("export SCOOP_OUTBOX_DATABASE=")
            with psycopg.connect(url) as connection:
                assert connection.execute("select 1").fetchone() == (1,)
        finally:
            server.send_signal(signal.SIGINT)
        assert server.wait(10) == 0
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)


def test_the_traceback_of_the_demonstration_shows_lines_as_they_are() -> None:
    text = "\n".join(content for _, content in blocks(README, "text"))
    shown = re.findall(r'^ *File "(scoop_outbox/[\w/]+\.py)", line (\d+), in (\w+)\n +(.+)$', text, re.MULTILINE)

    assert len(shown) >= 3
    for file, number, function, line in shown:
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        assert lines[int(number) - 1].strip() == line
        assert any(re.match(rf"\s*(async )?def {function}\(", above) for above in lines[: int(number)])


def test_the_tree_of_the_demonstration_shows_services_sagas_and_steps_that_exist() -> None:
    (tree,) = [content for _, content in blocks(README, "text") if "place-order in orders: rolled back" in content]
    apps = {name: importlib.import_module(f"scoop_outbox.demo.{name}").app for name in SERVICES}
    runs = re.findall(r"([\w-]+) in (\w+): rolled back", tree)
    steps = re.findall(r"── +\d+ (?:undo )?(\w+)", tree)

    assert len(runs) >= 5
    assert len(steps) >= 10
    assert all(saga in sagas_of(apps[service]) for saga, service in runs)
    assert set(steps) <= {step for app in apps.values() for names in sagas_of(app).values() for step in names}


def sagas_of(app: Scoop) -> dict[str, list[str]]:
    return {name: [step.name for step in saga.steps] for name, saga in app.sagas.items()}


@pytest.mark.parametrize("kind", ["text", "python", "sh"])
def test_the_readme_has_something_to_try(kind: str) -> None:
    assert blocks(README, kind)
