"""Loads the statements: `-- name: x` sections of the files in `sql/`, with the schema's name filled in.

What several statements say alike is a `-- part: x` section above them, or one of `parts.sql` if they are in several
files; a line `-- use: x` stands for it. A section of two names, `-- name: x y`, is two statements: what is only in one
of them stands between the lines `-- only: y` and `-- both`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from importlib import resources

from psycopg import sql

from scoop_outbox.store.adaptation import ADAPTERS
from scoop_outbox.store.query import Query
from scoop_outbox.store.schema import SHARDS

_MARK = re.compile(r"^-- (name|part): (\w+(?: \w+)?)\n", re.MULTILINE)
_USE = re.compile(r"^ *-- use: (\w+)$", re.MULTILINE)
_PARTS = "parts.sql"
_ONLY = re.compile(r"^ *-- only: (\w+)\n(.*?)^ *-- both\n", re.MULTILINE | re.DOTALL)


@functools.cache
def load(schema: str) -> Mapping[str, bytes]:
    """Return every statement by name, ready to be executed, for tables in `schema`."""
    # A percent sign in the text of a statement would begin a parameter.
    name = schema.replace("%", "%%")
    fill = {"schema": sql.Identifier(name), "schema_name": sql.Literal(name), "shards": sql.Literal(SHARDS)}
    statements: dict[str, bytes] = {}
    shared: dict[str, str] = {}
    files = (resources.files(__package__) / "sql").iterdir()
    for file in sorted(files, key=lambda entry: (entry.name != _PARTS, entry.name)):
        parts = shared if file.name == _PARTS else dict(shared)
        for statement, text in _sections(file.read_text("utf-8"), parts):
            if statement in statements:
                raise ValueError(f"statement {statement!r} is defined twice, the second time in {file.name}")
            lines = [line for line in text.splitlines() if not line.lstrip().startswith("--")]
            # The text comes from our own files, never from a value: composing is safe.
            composed = sql.SQL("\n".join(lines).strip()).format(**fill)
            statements[statement] = composed.as_bytes(ADAPTERS)
    return statements


def _sections(text: str, parts: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the statements of a file by name, with their comments; its parts join those that are known."""
    _, *found = _MARK.split(text)  # the first is the essay at the top
    for kind, names, section in zip(found[::3], found[1::3], found[2::3], strict=True):
        whole = _USE.sub(lambda use: parts[use[1]].rstrip(), section)
        if kind == "part":
            parts[names] = whole
        else:
            yield from ((name, _variant(whole, name)) for name in names.split())


def _variant(section: str, name: str) -> str:
    """Return what the statement of a name says in a section that may be several."""
    return _ONLY.sub(lambda only: only[2] if only[1] == name else "", section)


@functools.cache
def compiled(schema: str) -> Mapping[str, Query]:
    """Return every statement by name as the drivers send it."""
    return {name: Query(name, text) for name, text in load(schema).items()}
