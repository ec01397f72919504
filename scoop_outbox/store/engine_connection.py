"""The engine's own kind of psycopg connections."""

from __future__ import annotations

from typing import Any

import psycopg


def _finish(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    pgconn = getattr(connection, "pgconn", None)  # there is none when it could not be opened
    if pgconn is not None:
        pgconn.finish()


class Connection(psycopg.Connection[Any]):
    """A connection of the engine. One that nobody has closed is closed, without a warning, when it is dropped.

    A program may drop its application, or end, without saying so.
    """

    def __del__(self, *_: Any) -> None:
        """See the class."""
        _finish(self)


class AsyncConnection(psycopg.AsyncConnection[Any]):
    """As `Connection`, in the other colour. Who opens it may also be cancelled before it is his to close."""

    def __del__(self, *_: Any) -> None:
        """See the class."""
        _finish(self)
