"""How the engine's values become the server's and back: as psycopg does when nobody has told it otherwise.

A program may tell psycopg, for all its connections, how values are adapted: its own class for numeric, another JSON
library, text that is stripped. That is meant for its own statements. The engine's own would be broken by it, or worse,
would store something else than they were given. So they use a map that was made of psycopg's defaults alone, also on
connections that belong to users.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg.abc import AdaptContext, Buffer
from psycopg.abc import Loader as AbcLoader
from psycopg.adapt import AdaptersMap, Loader
from psycopg.dbapi20 import register_dbapi20_adapters
from psycopg.postgres import register_default_adapters, register_default_types
from psycopg.pq import Format
from psycopg.rows import TupleRow, tuple_row
from psycopg.types import TypesRegistry
from psycopg.types.array import register_all_arrays
from psycopg.types.datetime import TimestamptzBinaryLoader, TimestamptzLoader
from psycopg.types.json import set_json_dumps, set_json_loads

_Connection = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]


class _Moment(Loader):
    """Loads points in time in UTC, whatever the time zone of the session.

    Two times of one zone are compared as its clocks show them: in the hour that clocks show twice a run that slept was
    looked at again and again, and what was to come behind it counted as over.
    """

    _kind: type[AbcLoader] = TimestamptzLoader

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        self._given = self._kind(oid, context)

    def load(self, data: Buffer) -> datetime:
        found: datetime = self._given.load(data)
        return found.astimezone(UTC)


class _BinaryMoment(_Moment):
    format = Format.BINARY
    _kind = TimestamptzBinaryLoader


def _defaults() -> AdaptersMap:
    # Not a copy of psycopg's map: a program may have changed that before it imports this.
    types = TypesRegistry()
    register_default_types(types)
    adapters = AdaptersMap(types=types)
    register_default_adapters(adapters)
    register_dbapi20_adapters(adapters)
    register_all_arrays(adapters)
    # Those of JSON look up what they call in a global variable unless they are told.
    set_json_dumps(json.dumps, adapters)
    set_json_loads(json.loads, adapters)
    for loader in (_Moment, _BinaryMoment):
        adapters.register_loader("timestamptz", loader)
    return adapters


ADAPTERS = _defaults()
"""The engine's adapters: nobody registers anything with them."""


class Adaptation:
    """Adapts values with the engine's adapters, on whatever connection.

    Args:
        connection: it says which encoding and time zone are in use.

    Attributes:
        adapters: the engine's.
        connection: the connection.
    """

    def __init__(self, connection: _Connection | None = None) -> None:
        """See the class."""
        self.adapters = ADAPTERS
        self.connection = connection


class _Cursor(psycopg.Cursor[TupleRow]):
    @property
    def adapters(self) -> AdaptersMap:
        return ADAPTERS


class _AsyncCursor(psycopg.AsyncCursor[TupleRow]):
    @property
    def adapters(self) -> AdaptersMap:
        return ADAPTERS


def cursor(connection: psycopg.Connection[Any]) -> psycopg.Cursor[TupleRow]:
    """Return a cursor on a user's connection, whatever adapters, row factory or kind of cursors that has."""
    return _Cursor(connection, row_factory=tuple_row)


def async_cursor(connection: psycopg.AsyncConnection[Any]) -> psycopg.AsyncCursor[TupleRow]:
    """Do as `cursor`, on an async connection."""
    return _AsyncCursor(connection, row_factory=tuple_row)


def adapt_as_users_expect(connection: _Connection) -> None:
    """Let a connection that was opened with the engine's adapters use those of the program from now on."""
    # What it is before they are asked for the first time; there is no other way to exchange them. A connection that has
    # those of the program from the start may be of no use to SQLAlchemy, which asks it for the server's version.
    connection._adapters = None  # noqa: SLF001
