"""Launching inside the caller's own transaction, whatever kind of connection holds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.pq import TransactionStatus
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from scoop_outbox.core.statement import Call, Plan
from scoop_outbox.errors import DatabaseError

AsyncTransaction = AsyncSession | AsyncConnection | psycopg.AsyncConnection[Any]
Transaction = Session | sa.Connection | psycopg.Connection[Any]

_KINDS = {
    "session": "an SQLAlchemy AsyncSession or AsyncConnection or a psycopg AsyncConnection",
    "session_sync": "an SQLAlchemy Session or Connection or a psycopg Connection",
}


async def run_joined(
    plan: Plan[None], session: object, queries: Mapping[str, bytes], after_commit: Callable[[], None]
) -> None:
    """Run a plan of plain statements in the transaction that `session` is in, or that it begins here.

    Raises:
        DatabaseError: `session` is nothing that can be joined.
    """
    if isinstance(session, AsyncSession):
        _once_committed(session.sync_session, after_commit)
        raw = await _raw(await session.connection())
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
    for batch in _batches(plan):
        for name, params in batch:
            await raw.execute(queries[name], params)


def run_joined_blocking(
    plan: Plan[None], session: object, queries: Mapping[str, bytes], after_commit: Callable[[], None]
) -> None:
    """Do as `run_joined`, on a blocking session or connection.

    Raises:
        DatabaseError: `session` is nothing that can be joined.
    """
    if isinstance(session, Session):
        _once_committed(session, after_commit)
        raw = _raw_blocking(session.connection())
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
    for batch in _batches(plan):
        for name, params in batch:
            raw.execute(queries[name], params)


def _batches(plan: Plan[None]) -> Any:
    """Yield the batches of a plan that looks at no rows."""
    for asked in plan:
        assert not isinstance(asked, Call)  # noqa: S101 - such plans call nobody
        yield asked


async def _raw(connection: AsyncConnection) -> psycopg.AsyncConnection[Any]:
    # Both guards close a hole. Without the first, commit() of a connection that SQLAlchemy believes unused does
    # nothing and the message is lost; without the second, the driver would begin and commit a transaction of its own.
    if not connection.in_transaction():
        await connection.begin()
    raw = (await connection.get_raw_connection()).driver_connection
    if not isinstance(raw, psycopg.AsyncConnection):
        raise DatabaseError(_OTHER_DRIVER.format(connection.dialect.driver))
    if raw.info.transaction_status is TransactionStatus.IDLE and not raw.autocommit:
        await raw.execute("")
    return raw


def _raw_blocking(connection: sa.Connection) -> psycopg.Connection[Any]:
    if not connection.in_transaction():
        connection.begin()
    raw = connection.connection.driver_connection
    if not isinstance(raw, psycopg.Connection):
        raise DatabaseError(_OTHER_DRIVER.format(connection.dialect.driver))
    if raw.info.transaction_status is TransactionStatus.IDLE and not raw.autocommit:
        raw.execute("")
    return raw


_OTHER_DRIVER = (
    "messages can be launched in transactions of psycopg 3, not of {}: use a URL that starts with postgresql+psycopg://"
)


def _once_committed(session: Session, after_commit: Callable[[], None]) -> None:
    def tell(_: Session) -> None:
        after_commit()

    event.listen(session, "after_commit", tell, once=True)
