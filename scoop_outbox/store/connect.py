"""Connections: from a URL to engines, with errors that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from scoop_outbox.errors import DatabaseError
from scoop_outbox.store.adaptation import ADAPTERS, adapt_as_users_expect
from scoop_outbox.store.calls import Interrupted

MIGRATING = "scoop_outbox migrate"
"""What the server's list of connections shows of those of `blocking_engine`."""

_SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")


def parsed(url: str) -> URL:
    """Return a database URL for psycopg.

    Raises:
        DatabaseError: it is not a PostgreSQL URL. The message never shows a password.
    """
    try:
        parsed_url = make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise DatabaseError(
            "the database URL cannot be parsed; it looks like postgresql://user:password@host:5432/database"
        ) from None
    if parsed_url.drivername not in _SCHEMES:
        raise DatabaseError(
            f"the database URL starts with {parsed_url.drivername}://, but sagas live in PostgreSQL: "
            "use postgresql://user:password@host:5432/database"
        )
    return parsed_url.set(drivername="postgresql+psycopg")


def shown(url: str) -> str:
    """Return a database URL without its password, for messages; its options may hold one too."""
    return parsed(url).set(drivername="postgresql", query={}).render_as_string(hide_password=True)


# A peer that is gone without a word is noticed within half a minute, not after the system's hours. In seconds, but for
# the last one: milliseconds in which the peer has to acknowledge what was sent to it.
_NOTICE_SILENCE = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
    "connect_timeout": 10,
}


def patience(url: URL) -> dict[str, Any]:
    """Return what a connection is to do about a silent server, but for what the URL says itself."""
    return {name: value for name, value in _NOTICE_SILENCE.items() if name not in url.query}


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


def _options(url: URL, application: str) -> dict[str, Any]:
    return {
        # The engine ends transactions itself (see sql/transaction.sql), so psycopg must not begin any.
        "isolation_level": "AUTOCOMMIT",
        # What psycopg has prepared by itself it forgets after every rollback to a savepoint, with DEALLOCATE ALL: the
        # statements of the engine would be gone too.
        "connect_args": {
            "application_name": application,
            "prepare_threshold": None,
            "context": ADAPTERS,
            **patience(url),
        },
        "poolclass": sa.NullPool,
        "use_native_hstore": False,  # else every new connection asks for a type that we do not use
    }


def blocking_engine(url: str) -> sa.Engine:
    """Return an engine for migrations and other work in ordinary SQLAlchemy transactions."""
    settings = {"application_name": MIGRATING, "context": ADAPTERS, **patience(parsed(url))}
    return sa.create_engine(parsed(url), connect_args=settings, poolclass=sa.NullPool, use_native_hstore=False)


def driver_engine(url: str, application: str) -> sa.Engine:
    """Return an engine whose connections the blocking driver uses."""
    return _for_steps(sa.create_engine(parsed(url), **_options(parsed(url), application)))


def async_driver_engine(url: str, application: str) -> AsyncEngine:
    """Return an engine whose connections the async driver uses."""
    engine = create_async_engine(parsed(url), **_options(parsed(url), application))
    _for_steps(engine.sync_engine)
    return engine


def _open(dialect: sa.Dialect, _: object, arguments: list[Any], options: dict[str, Any]) -> Connection | None:
    """Have SQLAlchemy open a connection of the engine instead of psycopg's own."""
    if dialect.is_async:
        options["async_creator_fn"] = AsyncConnection.connect
        return None
    return Connection.connect(*arguments, **options)


def _for_steps(engine: sa.Engine) -> sa.Engine:
    """Give the connections of an engine to the program's adapters, behind what SQLAlchemy asks the server itself."""

    def behind_the_first_questions(_: object, record: sa.pool.ConnectionPoolEntry) -> None:
        adapt_as_users_expect(record.driver_connection)  # type: ignore[arg-type]  # the dialect is ours

    event.listen(engine, "do_connect", _open)
    event.listen(engine, "connect", behind_the_first_questions)
    return engine


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn what the driver raises when a database cannot be used into a `DatabaseError` that says what to do."""
    try:
        yield
    except Interrupted as error:
        if (known := _in_words(url, error.__cause__)) is not None:
            raise DatabaseError(known) from error
        raise DatabaseError(
            f"{shown(url)} was lost or had to give up in the midst of it: {_first_line(error.__cause__ or error)}. "
            "Whether what was to be written has been committed is not known: try again, or look"
        ) from error
    except (psycopg.OperationalError, sa.exc.OperationalError) as error:
        raise DatabaseError(
            f"cannot connect to {shown(url)}: {_first_line(error)}. Is the server running, and are host, port, "
            "user, password and database right?"
        ) from error
    except psycopg.Error as error:
        if (known := _in_words(url, error)) is not None:
            raise DatabaseError(known) from error
        raise
    except sa.exc.ProgrammingError as error:
        if isinstance(error.orig, psycopg.errors.UndefinedTable | psycopg.errors.InvalidSchemaName):
            raise DatabaseError(_UNMIGRATED.format(shown(url))) from error
        raise DatabaseError(f"{shown(url)} refused a statement: {_first_line(error)}") from error


@contextmanager
def told_to_migrate(url: str) -> Iterator[None]:
    """Explain that the tables are missing, and leave every other error as it is: the transaction is the caller's.

    Raises:
        DatabaseError: the database is not migrated.
    """
    try:
        yield
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
        raise DatabaseError(_UNMIGRATED.format(shown(url))) from error


def in_words(url: str, error: Exception) -> str:
    """Return what keeps a database from being used: in words if somebody has to act, else the name of the error."""
    cause = error.__cause__ if isinstance(error, Interrupted) else error
    return _in_words(url, cause) or f"{shown(url)} cannot be reached ({type(error).__name__})"


def _in_words(url: str, error: BaseException | None) -> str | None:
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return _UNPERMITTED.format(shown(url), _first_line(error))
    if isinstance(error, psycopg.errors.UndefinedTable | psycopg.errors.InvalidSchemaName):
        return _UNMIGRATED.format(shown(url))
    return None


_UNPERMITTED = (
    "the user of {} lacks a permission: {}. It needs usage of the schema, and select, insert, update and delete on all "
    "tables in it: see docs/operations.md"
)
_UNMIGRATED = (
    "the database {} lacks the tables of scoop_outbox: run `scoop-outbox migrate --database URL`, "
    "or `await app.migrate()`"
)


def _first_line(error: BaseException) -> str:
    original = getattr(error, "orig", None) or error
    lines = str(original).strip().splitlines()
    return lines[0] if lines else type(original).__name__
