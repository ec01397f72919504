"""Connections: from a URL to engines, with errors that say what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from scoop_outbox.errors import DatabaseError
from scoop_outbox.store.adaptation import ADAPTERS, adapt_as_users_expect
from scoop_outbox.store.callbacks import Interrupted
from scoop_outbox.store.engine_connection import Connection
from scoop_outbox.store.faults import words
from scoop_outbox.store.pooler import Pooler
from scoop_outbox.store.url import arguments, parse_url, redact_url

MIGRATING = "scoop_outbox migrate"
"""What the server's list of connections shows of those of `blocking_engine`."""

# A peer that is gone without a word is noticed within half a minute, not after the system's hours. In seconds, but for
# the last one: milliseconds in which the peer has to acknowledge what was sent to it.
_NOTICE_SILENCE = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
    "connect_timeout": 10,
}


# What the engine relies on, whatever the database, the role or the server says. Steps find it, too: psycopg reads times
# with time zones in ISO only. What a user's limits are stays as it is. `RESET ALL` comes back to these.
_RELIED_ON = {
    "datestyle": "ISO",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
}
_ENCODINGS = ("UTF8", "SQL_ASCII")


def settings(url: str, application: str) -> dict[str, Any]:
    """Return the arguments of psycopg's `connect` for a connection of the engine, but for those in the URL."""
    named = arguments(url)
    given = named.get("options") or os.environ.get("PGOPTIONS", "")
    ours = " ".join(f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in _RELIED_ON.items())
    return {
        "application_name": application,
        # What psycopg has prepared by itself it forgets after every rollback to a savepoint, with DEALLOCATE ALL: the
        # statements of the engine would be gone too. And a pooler knows of none.
        "prepare_threshold": None,
        "client_encoding": "UTF8",
        "options": f"{given} {ours}".strip(),
        "context": ADAPTERS,
        **{name: value for name, value in _NOTICE_SILENCE.items() if name not in named},
    }


def check_encoding(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], url: str) -> None:
    """Refuse a database whose encoding has not every character: a key, a message of an error could not be stored.

    Raises:
        DatabaseError: it is neither in UTF-8 nor in SQL_ASCII, which takes UTF-8 as it is.
    """
    encoding = connection.info.parameter_status("server_encoding")
    if encoding is not None and encoding not in _ENCODINGS:
        raise DatabaseError(
            f"the database {redact_url(url)} has the encoding {encoding}, which cannot store every text: use a "
            "database in UTF8 (create database ... encoding 'UTF8' template template0)"
        )


def _options(url: str, application: str) -> dict[str, Any]:
    return {
        # The engine ends transactions itself (see sql/transaction.sql), so psycopg must not begin any.
        "isolation_level": "AUTOCOMMIT",
        "connect_args": settings(url, application),
        "poolclass": sa.NullPool,
        "use_native_hstore": False,  # else every new connection asks for a type that we do not use
    }


def blocking_engine(url: str) -> sa.Engine:
    """Return an engine for migrations and other work in ordinary SQLAlchemy transactions."""
    engine = sa.create_engine(
        parse_url(url), connect_args=settings(url, MIGRATING), poolclass=sa.NullPool, use_native_hstore=False
    )
    pooler = Pooler(url)
    event.listen(engine, "do_connect", lambda _dialect, _record, _arguments, named: pooler.connect(**named))
    event.listen(engine, "connect", lambda opened, _: check_encoding(opened, url))
    return engine


def driver_engine(url: str, application: str, pooler: Pooler) -> sa.Engine:
    """Return an engine whose connections the blocking driver uses."""
    return _for_steps(sa.create_engine(parse_url(url), **_options(url, application)), url, pooler)


def async_driver_engine(url: str, application: str, pooler: Pooler) -> AsyncEngine:
    """Return an engine whose connections the async driver uses."""
    engine = create_async_engine(parse_url(url), **_options(url, application))
    _for_steps(engine.sync_engine, url, pooler)
    return engine


def bare_connection(url: str, application: str, pooler: Pooler) -> Connection:
    """Open a bare connection in autocommit, for LISTEN or NOTIFY."""
    # Who only listens would never notice that the other side is gone, but for the keepalives in the settings.
    return pooler.connect(autocommit=True, **{**arguments(url), **settings(url, application)})


def _for_steps(engine: sa.Engine, url: str, pooler: Pooler) -> sa.Engine:
    """Give the connections of an engine to the program's adapters, behind what SQLAlchemy asks the server itself."""

    def behind_the_first_questions(_: object, record: sa.pool.ConnectionPoolEntry) -> None:
        connection: Any = record.driver_connection
        check_encoding(connection, url)
        adapt_as_users_expect(connection)

    def open_ours(dialect: sa.Dialect, _: object, __: list[Any], named: dict[str, Any]) -> Connection | None:
        if dialect.is_async:
            named["async_creator_fn"] = pooler.connect_async
            return None
        return pooler.connect(**named)

    event.listen(engine, "do_connect", open_ours)
    event.listen(engine, "connect", behind_the_first_questions)
    return engine


@contextmanager
def map_database_errors(url: str) -> Iterator[None]:
    """Turn what the driver raises when a database cannot be used into a `DatabaseError` that says what to do."""
    try:
        yield
    except Interrupted as error:
        if (known := _in_words(url, error.__cause__)) is not None:
            raise DatabaseError(known) from error
        raise DatabaseError(
            f"the transaction on {redact_url(url)} was interrupted: {_first_line(error.__cause__ or error)}. Whether "
            "it was committed is unknown: check the status, or retry"
        ) from error
    except (psycopg.OperationalError, sa.exc.OperationalError) as error:
        raise DatabaseError(
            f"cannot connect to {redact_url(url)}: {_first_line(error)}. Is the server running, and are host, port, "
            "user, password and database right?"
        ) from error
    except psycopg.Error as error:
        if (known := _in_words(url, error)) is not None:
            raise DatabaseError(known) from error
        raise
    except sa.exc.ProgrammingError as error:
        if isinstance(error.orig, psycopg.errors.UndefinedTable | psycopg.errors.InvalidSchemaName):
            raise DatabaseError(_UNMIGRATED.format(redact_url(url))) from error
        raise DatabaseError(f"{redact_url(url)} refused a statement: {_first_line(error)}") from error


@contextmanager
def map_missing_tables(url: str) -> Iterator[None]:
    """Explain that tables or permissions are missing, whatever the driver, and leave every other error as it is.

    The transaction is the caller's.

    Raises:
        DatabaseError: the database is not migrated, or its user lacks a permission.
    """
    try:
        yield
    except (psycopg.Error, sa.exc.DBAPIError) as error:
        original = getattr(error, "orig", None) or error
        state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
        if state in _MISSING:
            raise DatabaseError(_UNMIGRATED.format(redact_url(url))) from error
        if state == psycopg.errors.InsufficientPrivilege.sqlstate:
            raise DatabaseError(_UNPERMITTED.format(redact_url(url), _first_line(error))) from error
        raise


def in_words(url: str, error: Exception) -> str:
    """Return what keeps a database from being used: what to do if somebody has to act, else what the server says."""
    cause = error.__cause__ if isinstance(error, Interrupted) else error
    return _in_words(url, cause) or f"{redact_url(url)} cannot be used: {words(cause or error)}"


def _in_words(url: str, error: BaseException | None) -> str | None:
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return _UNPERMITTED.format(redact_url(url), _first_line(error))
    if isinstance(error, psycopg.errors.UndefinedTable | psycopg.errors.InvalidSchemaName):
        return _UNMIGRATED.format(redact_url(url))
    # Only who waits for another transaction to launch the same id is told of this table.
    if isinstance(error, psycopg.errors.LockNotAvailable) and '"launched' in (error.diag.context or ""):
        return CLAIMED
    return None


_MISSING = (psycopg.errors.UndefinedTable.sqlstate, psycopg.errors.InvalidSchemaName.sqlstate)
CLAIMED = (
    "another open transaction has launched a message with this id (or one of these ids), and has not ended for 20 s: "
    "nothing was launched. Retry when it has been committed or rolled back"
)
CLAIMS_WAIT = (
    "launches with ids are waiting for open transactions that have launched the same ids: this launch got no "
    "connection within 20 s, and nothing was launched. Retry when those transactions have ended"
)
_UNPERMITTED = (
    "the user of {} lacks a permission: {}. It needs usage on the schema, and select, insert, update and delete on its "
    "tables: see docs/operations.md"
)
_UNMIGRATED = (
    "the database {} lacks the tables of scoop_outbox: run `scoop-outbox migrate --database URL`, "
    "or `await app.migrate()`"
)


def _first_line(error: BaseException) -> str:
    original = getattr(error, "orig", None) or error
    lines = str(original).strip().splitlines()
    return lines[0] if lines else type(original).__name__
