"""Plans inside the caller's own transaction, whatever kind of connection holds it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg.pq import TransactionStatus
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from scoop_outbox.core.statement import Ask, Call, Plan, Rows
from scoop_outbox.errors import DatabaseError
from scoop_outbox.store.adaptation import async_cursor, cursor
from scoop_outbox.store.after_commit import once_committed
from scoop_outbox.store.lent_engine import driver_connection
from scoop_outbox.store.other_drivers import portable
from scoop_outbox.store.same_home import Whose

AsyncTransaction = AsyncSession | async_scoped_session[Any] | AsyncConnection | psycopg.AsyncConnection[Any]
Transaction = Session | scoped_session[Any] | sa.Connection | psycopg.Connection[Any]

T = TypeVar("T")

_ASYNC_KINDS = (AsyncSession, async_scoped_session, AsyncConnection, psycopg.AsyncConnection)
_BLOCKING_KINDS = (Session, scoped_session, sa.Connection, psycopg.Connection)
_ASYNC = "an SQLAlchemy AsyncSession or AsyncConnection or a psycopg AsyncConnection"
_FOR_ASYNC = "; for async ones there is launch() or rollback()"
_FOR_BLOCKING = "; for blocking ones there is launch_sync() or rollback_sync()"
_BLOCKING = "an SQLAlchemy Session or Connection or a psycopg Connection"


class _Joined(NamedTuple):
    """What executes a statement in the caller's transaction, and the driver's connection by which it is known again."""

    execute: Callable[[str, Mapping[str, Any]], Any]
    beneath: object


async def run_joined(
    plan: Plan[T],
    session: object,
    queries: Mapping[str, bytes],
    after_commit: Callable[[], None],
    whose: Whose | None = None,
) -> T:
    """Run a plan of plain statements in the transaction that `session` is in, or that it begins here.

    Args:
        plan: what to do; it calls nobody.
        session: a session or connection of the caller's.
        queries: the statements by name.
        after_commit: called when a session of SQLAlchemy has committed.
        whose: sees to it that `session` leads to the right home; whoever knows that already does not pass it.

    Raises:
        DatabaseError: `session` is nothing that can be joined, or leads to another home.
    """
    joined = await _join(session, queries, after_commit)
    if whose is not None and not whose.knows(joined.beneath):
        await _drive(whose.check(joined.beneath, await whose.mine()), joined.execute)
    return await _drive(plan, joined.execute)


def run_joined_blocking(
    plan: Plan[T],
    session: object,
    queries: Mapping[str, bytes],
    after_commit: Callable[[], None],
    whose: Whose | None = None,
) -> T:
    """Do as `run_joined`, on a blocking session or connection.

    Raises:
        DatabaseError: `session` is nothing that can be joined, or leads to another home.
    """
    joined = _join_blocking(session, queries, after_commit)
    if whose is not None and not whose.knows(joined.beneath):
        _drive_blocking(whose.check(joined.beneath, whose.mine_blocking()), joined.execute)
    return _drive_blocking(plan, joined.execute)


async def _drive(plan: Plan[T], execute: Callable[[str, Mapping[str, Any]], Awaitable[Rows]]) -> T:
    answer: list[Rows] | None = None
    while True:
        try:
            asked: Ask = plan.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result
        assert not isinstance(asked, Call)  # noqa: S101 - such plans call nobody
        answer = [await execute(name, params) for name, params in asked]


def _drive_blocking(plan: Plan[T], execute: Callable[[str, Mapping[str, Any]], Rows]) -> T:
    answer: list[Rows] | None = None
    while True:
        try:
            asked: Ask = plan.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result
        assert not isinstance(asked, Call)  # noqa: S101 - such plans call nobody
        answer = [execute(name, params) for name, params in asked]


async def _join(session: object, queries: Mapping[str, bytes], after_commit: Callable[[], None]) -> _Joined:
    if isinstance(session, async_scoped_session):
        session = session()
    if isinstance(session, AsyncSession):
        connection = await session.connection()
        once_committed(session.sync_session, after_commit)
    elif isinstance(session, AsyncConnection):
        connection = session
    elif isinstance(session, psycopg.AsyncConnection):
        _refuse_autocommit(session, autocommit=session.autocommit)
        return _Joined(_AsyncPsycopg(session, queries).execute, session.pgconn)
    else:
        hint = _FOR_BLOCKING if isinstance(session, _BLOCKING_KINDS) else ""
        raise DatabaseError(f"cannot join {type(session).__qualname__}: pass {_ASYNC}{hint}")
    raw = await connection.run_sync(driver_connection)
    if isinstance(raw, psycopg.AsyncConnection):
        _refuse_autocommit(raw, autocommit=raw.autocommit)
    else:
        await connection.run_sync(_check_portable)
    # Both guards close a hole. Without this one, commit() of a connection that SQLAlchemy believes unused does nothing
    # and the message is lost; without the other, the driver would begin and commit a transaction of its own.
    if not connection.in_transaction():
        await connection.begin()
    if isinstance(raw, psycopg.AsyncConnection):
        if raw.info.transaction_status is TransactionStatus.IDLE:
            await async_cursor(raw).execute("")
        return _Joined(_AsyncPsycopg(raw, queries).execute, raw.pgconn)

    async def execute(name: str, params: Mapping[str, Any]) -> Rows:
        return await connection.run_sync(portable(queries[name]), params)

    return _Joined(execute, raw)


def _join_blocking(session: object, queries: Mapping[str, bytes], after_commit: Callable[[], None]) -> _Joined:
    if isinstance(session, scoped_session):
        session = session()
    if isinstance(session, Session):
        connection = session.connection()
        once_committed(session, after_commit)
    elif isinstance(session, sa.Connection):
        connection = session
    elif isinstance(session, psycopg.Connection):
        _refuse_autocommit(session, autocommit=session.autocommit)
        return _Joined(_Psycopg(session, queries).execute, session.pgconn)
    else:
        hint = _FOR_ASYNC if isinstance(session, _ASYNC_KINDS) else ""
        raise DatabaseError(f"cannot join {type(session).__qualname__}: pass {_BLOCKING}{hint}")
    raw = driver_connection(connection)
    if isinstance(raw, psycopg.Connection):
        _refuse_autocommit(raw, autocommit=raw.autocommit)
    else:
        _check_portable(connection)
    if not connection.in_transaction():  # as above
        connection.begin()
    if isinstance(raw, psycopg.Connection):
        if raw.info.transaction_status is TransactionStatus.IDLE:
            cursor(raw).execute("")
        return _Joined(_Psycopg(raw, queries).execute, raw.pgconn)
    return _Joined(lambda name, params: portable(queries[name])(connection, params), raw)


class _AsyncPsycopg(NamedTuple):
    raw: psycopg.AsyncConnection[Any]
    queries: Mapping[str, bytes]

    async def execute(self, name: str, params: Mapping[str, Any]) -> Rows:
        async with async_cursor(self.raw) as executing:
            await executing.execute(self.queries[name], params)
            return await executing.fetchall()  # all of them answer; in a pipeline, only when they are asked


class _Psycopg(NamedTuple):
    raw: psycopg.Connection[Any]
    queries: Mapping[str, bytes]

    def execute(self, name: str, params: Mapping[str, Any]) -> Rows:
        with cursor(self.raw) as executing:
            executing.execute(self.queries[name], params)
            return executing.fetchall()  # as above


def _check_portable(connection: sa.Connection) -> None:
    if connection.dialect.name != "postgresql":
        raise DatabaseError(
            f"the session is one of {connection.dialect.name}, but this service's database is a PostgreSQL: pass a "
            "session on it, or pass no session="
        )
    if getattr(connection.connection.dbapi_connection, "autocommit", False):
        raise DatabaseError(_AUTOCOMMIT)


def _refuse_autocommit(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], *, autocommit: bool) -> None:
    if autocommit and connection.info.transaction_status is TransactionStatus.IDLE:
        raise DatabaseError(_AUTOCOMMIT)


_AUTOCOMMIT = (
    "the session is in autocommit and in no transaction: what is written would stay whatever becomes of the rest. "
    "Open a transaction first (`with connection.transaction():`), or pass no session="
)
