"""Launching inside the caller's own transaction, whatever kind of connection holds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg.pq import TransactionStatus
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from scoop_outbox.core.statement import Call, Plan, Rows
from scoop_outbox.errors import DatabaseError
from scoop_outbox.store.adaptation import async_cursor, cursor
from scoop_outbox.store.after_commit import once_committed
from scoop_outbox.store.lent import driver_connection

AsyncTransaction = AsyncSession | AsyncConnection | psycopg.AsyncConnection[Any]
Transaction = Session | sa.Connection | psycopg.Connection[Any]

T = TypeVar("T")

_KINDS = {
    "session": "an SQLAlchemy AsyncSession or AsyncConnection or a psycopg AsyncConnection",
    "session_sync": "an SQLAlchemy Session or Connection or a psycopg Connection",
}


async def run_joined(
    plan: Plan[T], session: object, queries: Mapping[str, bytes], after_commit: Callable[[], None]
) -> T:
    """Run a plan of plain statements in the transaction that `session` is in, or that it begins here.

    Raises:
        DatabaseError: `session` is nothing that can be joined.
    """
    if isinstance(session, AsyncSession):
        raw = await _raw(await session.connection())
        once_committed(session.sync_session, after_commit)
    elif isinstance(session, AsyncConnection):
        raw = await _raw(session)
    elif isinstance(session, psycopg.AsyncConnection):
        raw = session
    else:
        raise DatabaseError(
            f"launch() cannot join {type(session).__qualname__}: pass {_KINDS['session']}"
            + (
                "; for blocking ones there is launch_sync()"
                if isinstance(session, Session | sa.Connection | psycopg.Connection)
                else ""
            )
        )
    answer: list[Rows] | None = None
    async with async_cursor(raw) as executing:
        while True:
            try:
                asked = plan.send(answer)
            except StopIteration as done:
                result: T = done.value
                return result
            assert not isinstance(asked, Call)  # noqa: S101 - such plans call nobody
            answer = []
            for name, params in asked:
                await executing.execute(queries[name], params)
                answer.append([] if executing.description is None else await executing.fetchall())


def run_joined_blocking(
    plan: Plan[T], session: object, queries: Mapping[str, bytes], after_commit: Callable[[], None]
) -> T:
    """Do as `run_joined`, on a blocking session or connection.

    Raises:
        DatabaseError: `session` is nothing that can be joined.
    """
    if isinstance(session, Session):
        raw = _raw_blocking(session.connection())
        once_committed(session, after_commit)
    elif isinstance(session, sa.Connection):
        raw = _raw_blocking(session)
    elif isinstance(session, psycopg.Connection):
        raw = session
    else:
        raise DatabaseError(
            f"launch_sync() cannot join {type(session).__qualname__}: pass {_KINDS['session_sync']}"
            + (
                "; for async ones there is launch()"
                if isinstance(session, AsyncSession | AsyncConnection | psycopg.AsyncConnection)
                else ""
            )
        )
    answer: list[Rows] | None = None
    with cursor(raw) as executing:
        while True:
            try:
                asked = plan.send(answer)
            except StopIteration as done:
                result: T = done.value
                return result
            assert not isinstance(asked, Call)  # noqa: S101 - such plans call nobody
            answer = []
            for name, params in asked:
                executing.execute(queries[name], params)
                answer.append([] if executing.description is None else executing.fetchall())


async def _raw(connection: AsyncConnection) -> psycopg.AsyncConnection[Any]:
    # Both guards close a hole. Without the first, commit() of a connection that SQLAlchemy believes unused does
    # nothing and the message is lost; without the second, the driver would begin and commit a transaction of its own.
    if not connection.in_transaction():
        await connection.begin()
    raw = await connection.run_sync(driver_connection)
    if not isinstance(raw, psycopg.AsyncConnection):
        raise DatabaseError(_OTHER_DRIVER.format(connection.dialect.driver))
    if raw.info.transaction_status is TransactionStatus.IDLE and not raw.autocommit:
        await async_cursor(raw).execute("")
    return raw


def _raw_blocking(connection: sa.Connection) -> psycopg.Connection[Any]:
    if not connection.in_transaction():
        connection.begin()
    raw = driver_connection(connection)
    if not isinstance(raw, psycopg.Connection):
        raise DatabaseError(_OTHER_DRIVER.format(connection.dialect.driver))
    if raw.info.transaction_status is TransactionStatus.IDLE and not raw.autocommit:
        cursor(raw).execute("")
    return raw


_OTHER_DRIVER = (
    "messages can be launched in transactions of psycopg 3, not of {}: use a URL that starts with postgresql+psycopg://"
)
