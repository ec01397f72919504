"""Statements of the engine on a driver that is not psycopg, by way of SQLAlchemy.

Only those of launching can be executed there: their parameters are bytes and plain values, which every driver knows.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from scoop_outbox.core.statement import Rows

_PARAMETER = re.compile(r"%(?:\((\w+)\)([sb])(?:::(\w+))?|(%))")


@functools.cache
def portable(query: bytes) -> Callable[[sa.Connection, Mapping[str, Any]], Rows]:
    """Return what executes a statement on a connection of SQLAlchemy, and returns its rows."""
    binaries: set[str] = set()

    def named(match: re.Match[str]) -> str:
        name, kind, type_, percent = match.groups()
        if percent:
            return "%"
        if kind == "b":
            binaries.add(name)
        return f":{name}" if type_ is None else f"cast(:{name} as {type_})"  # SQLAlchemy reads no colons behind a name

    text = sa.text(_PARAMETER.sub(named, query.decode()))
    clause = text.bindparams(*(sa.bindparam(name, type_=sa.LargeBinary) for name in sorted(binaries)))

    def execute(connection: sa.Connection, params: Mapping[str, Any]) -> Rows:
        return [tuple(row) for row in connection.execute(clause, dict(params))]

    return execute
