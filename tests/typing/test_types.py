"""Types reach users' code: two checkers find the mistakes in it, and nothing in the programs of the documents."""

import json
import os
import re
import runpy
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scoop_outbox import Saga, Step
from tests.docs.markdown import ROOT, programs

HERE = Path(__file__).parent
MARK = re.compile(r"# error: (.+)$")
OF_MYPY = re.compile(r"^(?:.*/)?(\w+\.py):(\d+): error: (.*)$", re.MULTILINE)

Findings = dict[tuple[str, int], str]
"""What a checker says, by file and line."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's project: the programs of the documents, what else may be written, and mistakes."""
    folder = tmp_path_factory.mktemp("project")
    for document in (ROOT / "README.md", ROOT / "docs" / "guide.md"):
        for program in programs(document):
            (folder / program.file).write_text(program.code, encoding="utf-8")
    for name in ("programs.py", "mistakes.py"):
        (folder / name).write_text((HERE / name).read_text("utf-8"), encoding="utf-8")
    return folder


def mypy(folder: Path) -> Findings:
    # With the settings of this project, and so with the cache of `make types`.
    command = [sys.executable, "-m", "mypy", "--strict", "--hide-error-context", *map(str, folder.glob("*.py"))]
    environment = os.environ | {"MYPYPATH": str(folder)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr
    return {(name, int(line)): text for name, line, text in OF_MYPY.findall(ended.stdout)}


def pyright(folder: Path) -> Findings:
    settings = {"typeCheckingMode": "standard", "extraPaths": [str(ROOT)], "pythonVersion": "3.11"}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr
    return {
        (Path(one["file"]).name, one["range"]["start"]["line"] + 1): one["message"]
        for one in json.loads(ended.stdout)["generalDiagnostics"]
    }


CHECKERS: dict[str, Callable[[Path], Findings]] = {"mypy": mypy, "pyright": pyright}


def test_what_checkers_pass_can_be_imported() -> None:
    runpy.run_path(str(HERE / "programs.py"))
    assert typing.get_origin(typing.get_type_hints(Saga.add_step)["return"]) is Step


def planted(checker: str) -> Iterator[tuple[str, int]]:
    for number, line in enumerate((HERE / "mistakes.py").read_text("utf-8").splitlines(), 1):
        mark = MARK.search(line)
        if mark is not None and checker in mark[1].split(", "):
            yield "mistakes.py", number


@pytest.mark.parametrize("checker", CHECKERS)
def test_mistakes_are_found_and_nothing_else(folder: Path, checker: str) -> None:
    found = CHECKERS[checker](folder)
    expected = set(planted(checker))

    assert len(expected) >= 17
    assert {place: text for place, text in found.items() if place not in expected} == {}
    assert expected - found.keys() == set(), "mistakes that nobody has found"
