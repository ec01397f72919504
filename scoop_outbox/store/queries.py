"""Loads the statements: `-- name: x` sections of the files in `sql/`, with the schema's name filled in."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import resources

from psycopg import sql

from scoop_outbox.store.adaptation import ADAPTERS
from scoop_outbox.store.query import Query
from scoop_outbox.store.schema import SHARDS

_MARK = "-- name: "


@functools.cache
def load(schema: str) -> Mapping[str, bytes]:
    """Return every statement by name, ready to be executed, for tables in `schema`."""
    # A percent sign in the text of a statement would begin a parameter.
    name = schema.replace("%", "%%")
    fill = {"schema": sql.Identifier(name), "schema_name": sql.Literal(name), "shards": sql.Literal(SHARDS)}
    statements: dict[str, bytes] = {}
    for file in sorted((resources.files(__package__) / "sql").iterdir(), key=lambda entry: entry.name):
        head, *sections = file.read_text("utf-8").split(_MARK)
        del head  # the essay at the top
        for section in sections:
            name, text = section.split("\n", 1)
            if name in statements:
                raise ValueError(f"statement {name!r} is defined twice, the second time in {file.name}")
            lines = [line for line in text.splitlines() if not line.lstrip().startswith("--")]
            # The text comes from our own files, never from a value: composing is safe.
            composed = sql.SQL("\n".join(lines).strip()).format(**fill)
            statements[name] = composed.as_bytes(ADAPTERS)
    return statements


@functools.cache
def compiled(schema: str) -> Mapping[str, Query]:
    """Return every statement by name as the drivers send it."""
    return {name: Query(name, text) for name, text in load(schema).items()}
