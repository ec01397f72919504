"""Writes `docs/behaviour.md` from `behaviour.toml` and the tests' names: `python -m tests.docs.behaviour > FILE`."""

import ast
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
_DATA = tomllib.loads((TESTS / "docs" / "behaviour.toml").read_text("utf-8"))
_TITLES: Mapping[str, str] = _DATA["titles"]

Id = tuple[str, int]
"""A group and a number: `("HP", 1)` is HP-01."""

_GROUPS = "|".join(_TITLES)
_IN_A_NAME = re.compile(rf"_((?i:{_GROUPS}))_?(\d+)(?=_|$)")
_IN_TEXT = re.compile(rf"\b({_GROUPS})-?(\d+)\b")

_ABOUT = """\
# Behaviour

An id stands for one thing that must hold: its letters say what that is about; Q is a decision, and D a defect of an
earlier implementation that must not come back. Tests carry the ids in their names, and code and decision records refer
to them (`behaviour Q61`).

*No test yet* says that no test names an id: what it demands is not built (see the [status](../README.md#status)), or
its tests do not say so. Ids that only describe the inside of an earlier implementation are left out, so numbers are
missing.

This page is written by `python -m tests.docs.behaviour` from `tests/docs/behaviour.toml` and the names of the tests; a
test compares them. Add a line there, name a test after it, then write the page again.

| group | ids | with a test | without |
| --- | ---: | ---: | ---: |
"""


@dataclass(frozen=True)
class Row:
    """What must hold under one id, or under which other id it is written.

    Attributes:
        label: the id as it is written.
        text: what must hold.
        same: the id that this one is another name of.
    """

    label: str
    text: str
    same: Id | None = None


@dataclass(frozen=True, order=True)
class Mention:
    """A test that names an id; all tests of a file if the file does so as a whole.

    Attributes:
        path: of the file, below `tests`.
        name: of the function.
    """

    path: str
    name: str = ""

    @property
    def link(self) -> str:
        """A link to it, from a page in `docs`."""
        return f"[{self.path}{self.name and f'::{self.name}'}](../tests/{self.path})"


def ids_in_text(text: str) -> set[Id]:
    """Return the ids in prose, such as a docstring."""
    return {(group, int(number)) for group, number in _IN_TEXT.findall(text)}


def ids_in_name(name: str) -> Iterator[Id]:
    """Yield the ids with which the name of a test begins: HP-01 and Q2 in `test_hp_01_q2_a_child_fails`."""
    start = len("test")
    while match := _IN_A_NAME.match(name, start):
        yield match[1].upper(), int(match[2])
        start = match.end()


def rows() -> dict[Id, Row]:
    """Return what must hold, group by group."""
    return {
        (group, int(number)): _row(f"{group}{'' if len(group) == 1 else '-'}{number}", value)
        for group in _TITLES
        for number, value in _DATA[group].items()
    }


def _row(label: str, value: str | Mapping[str, str]) -> Row:
    if isinstance(value, str):
        return Row(label, value)
    (same,) = ids_in_text(value["same"])
    return Row(label, f"The same as {value['same']}.", same)


def named() -> dict[Id, set[Mention]]:
    """Return the tests that name each id: at the beginning of their name, or in their docstring or that of the file."""
    found = defaultdict[Id, set[Mention]](set)
    for file in TESTS.rglob("test_*.py"):
        path = file.relative_to(TESTS).as_posix()
        tree = ast.parse(file.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                for one in {*ids_in_name(node.name), *ids_in_text(ast.get_docstring(node) or "")}:
                    found[one].add(Mention(path, node.name))
        for one in ids_in_text(ast.get_docstring(tree) or ""):
            if not any(test.path == path for test in found[one]):
                found[one].add(Mention(path))
    return found


def document() -> str:
    """Return the text of `docs/behaviour.md`."""
    known, tests = rows(), named()
    tested = {
        one: sorted({test for name in (one, row.same) if name for test in tests.get(name, ())})
        for one, row in known.items()
    }
    lines = [*_ABOUT.splitlines(), *_counts(tested)]
    for group, title in _TITLES.items():
        of_group = {one: row for one, row in known.items() if one[0] == group}
        lines += ["", f"## {group}: {title}", "", "| id | what must hold | tests |", "| --- | --- | --- |"]
        lines += [f"| {row.label} | {row.text} | {_links(tested[one])} |" for one, row in of_group.items()]
    return "\n".join(lines) + "\n"


def _counts(tested: Mapping[Id, Sequence[Mention]]) -> Iterable[str]:
    for group, title in _TITLES.items():
        heading = f"{group}: {title}"
        anchor = heading.lower().replace(":", "").replace(" ", "-")
        yield _count(f"[{heading}](#{anchor})", [tests for (of, _), tests in tested.items() if of == group])
    yield _count("all", list(tested.values()))


def _count(what: str, tests: Sequence[Sequence[Mention]]) -> str:
    some = sum(map(bool, tests))
    return f"| {what} | {len(tests)} | {some} | {len(tests) - some} |"


def _links(tests: Sequence[Mention]) -> str:
    return "<br>".join(test.link for test in tests) or "*no test yet*"


if __name__ == "__main__":
    sys.stdout.write(document())
