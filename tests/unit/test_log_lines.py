"""Lines of the log are `component: event (detail)`: the event is constant, and the fields are those of the docs."""

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import scoop_outbox

ROOT = Path(scoop_outbox.__file__).parents[1]
MODULES = sorted([*ROOT.glob("scoop_outbox/**/*.py"), *ROOT.glob("adapters/*/scoop_outbox_*/**/*.py")])
LOGGERS = {"log", "_log"}
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
OF_A_RECORD = {*vars(logging.makeLogRecord({})), "message", "asctime"}
OF_A_LINE = {"time", "level", "logger", "event", "detail", "exception", "stack"}

Logging = tuple[Path, ast.Call, ast.Module]


def calls() -> Iterator[Logging]:
    for path in MODULES:
        module = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(module):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name | ast.Attribute)
                and ast.unparse(node.func.value).removeprefix("self.") in LOGGERS
                and node.func.attr in LEVELS
            ):
                yield path, node, module


CALLS = list(calls())
each_call = pytest.mark.parametrize(
    "call", CALLS, ids=[f"{path.relative_to(ROOT)}:{node.lineno}" for path, node, _ in CALLS]
)


def components() -> set[str]:
    """The components that the glossary lists."""
    glossary = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    row = re.search(r"^\| component \| (.*) \|$", glossary, re.MULTILINE)
    assert row is not None
    return set(re.findall(r"`([a-z]+)`", row[1]))


def fields() -> set[str]:
    """The fields that the table of docs/operations.md explains."""
    section = (ROOT / "docs" / "operations.md").read_text("utf-8").partition("\n### Logging\n")[2].partition("\n###")[0]
    rows = re.findall(r"^\| (`[^|]*`) \|", section, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def texts(module: ast.Module, value: ast.expr) -> set[str]:
    """What a text may be: a constant, or one of those that a name of the module stands for."""
    match value:
        case ast.Constant(value=str(text)):
            return {text}
        case ast.IfExp():
            return texts(module, value.body) | texts(module, value.orelse)
        case ast.Subscript(value=ast.Name(id=name)) | ast.Name(id=name):
            named = [
                node.value
                for node in ast.walk(module)
                if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and name in targets(node)
            ]
            assert named, f"{name} is not a constant of the module"
            return {text for one in named for text in texts(module, one)}
        case ast.Dict():
            return {text for one in value.values for text in texts(module, one)}
        case _:
            raise AssertionError(f"{ast.unparse(value)} is not a text that is known beforehand")


def targets(node: ast.Assign | ast.AnnAssign) -> set[str]:
    names = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {name.id for name in names if isinstance(name, ast.Name)}


@each_call
def test_a_line_is_a_component_an_event_and_a_detail(call: Logging) -> None:
    _, node, module = call
    assert isinstance(node.func, ast.Attribute)
    known = components()
    for text in texts(module, node.args[1 if node.func.attr == "log" else 0]):
        event, opened, detail = text.partition(" (")
        component, colon, _ = event.partition(": ")
        assert colon, text
        assert component in known, text
        assert "%" not in event, "what differs from line to line is the detail"
        assert ":" not in event.removeprefix(f"{component}: "), text
        assert bool(opened) is detail.endswith(")"), "there is nothing behind the detail"


@each_call
def test_a_field_cannot_end_a_daemon(call: Logging) -> None:
    path, node, _ = call
    if any(keyword.arg == "extra" for keyword in node.keywords) and not ast.unparse(node.func).startswith("self."):
        assert "get_logger(__name__)" in path.read_text("utf-8"), "logging raises for a field that a record has already"


@each_call
def test_fields_are_explained(call: Logging) -> None:
    _, node, _ = call
    (extra,) = [keyword.value for keyword in node.keywords if keyword.arg == "extra"] or [ast.Dict([], [])]
    if isinstance(extra, ast.Attribute):
        assert extra.attr == "fields"
        return
    assert isinstance(extra, ast.Dict)
    for name, value in zip(extra.keys, extra.values, strict=True):
        if name is None:
            assert isinstance(value, ast.Attribute)
            assert value.attr == "fields"
        else:
            assert isinstance(name, ast.Constant)
            assert name.value in fields()


def test_no_field_is_taken_already() -> None:
    assert fields() >= OF_A_LINE
    assert OF_A_RECORD & (fields() - OF_A_LINE) == set()


def test_every_component_and_field_is_used() -> None:
    used = {text.partition(": ")[0] for _, node, module in CALLS for one in node.args[:2] for text in said(module, one)}
    assert components() - used == set()
    code = "\n".join(path.read_text("utf-8") for path in MODULES)
    assert {name for name in fields() - OF_A_LINE if f'"{name}":' not in code} == set()


def said(module: ast.Module, value: ast.expr) -> set[str]:
    try:
        return texts(module, value)
    except AssertionError:
        return set()
