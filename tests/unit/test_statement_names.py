"""Statements are named in Python and written in SQL: the two sides know the same names and parameters."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import scoop_outbox
from scoop_outbox.store import queries

ROOT = Path(scoop_outbox.__file__).parent
NAMING = {"statement", "Statement", "add", "_rows"}


def named() -> Iterator[tuple[str, set[str] | None]]:
    """Yield each statement that the code names, and its parameters where they are all to be seen."""
    for file in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NAMING:
                first = node.args[0] if node.args else None
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    keywords = {keyword.arg for keyword in node.keywords}
                    seen = node.func.id != "Statement" and None not in keywords
                    yield first.value, {one for one in keywords if one is not None} if seen else None
            elif isinstance(node, ast.Subscript) and "queries" in ast.unparse(node.value):
                name = node.slice.value if isinstance(node.slice, ast.Constant) else None
                if isinstance(name, str):
                    yield name, None


def parameters(text: bytes) -> set[str]:
    return set(re.findall(r"%\((\w+)\)[sb]", text.decode()))


def test_every_statement_is_written_and_used() -> None:
    assert {name for name, _ in named()} == set(queries.load("scoop_outbox"))


def test_statements_get_the_parameters_that_they_have() -> None:
    known = queries.load("scoop_outbox")
    seen = [(name, params) for name, params in named() if params is not None]
    assert len(seen) > 10
    for name, params in seen:
        assert params == parameters(known[name]), name
