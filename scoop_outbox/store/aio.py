"""The async driver: runs plans on an async psycopg connection, and calls `async def` callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from scoop_outbox.core.statement import READ_CLOCK, ROLLBACK_TO_SAVEPOINT, Batch, Call, CallOutcome, Plan, Refused, Rows
from scoop_outbox.scope import AsyncScope
from scoop_outbox.store.calls import (
    Interrupted,
    arguments,
    check_transaction,
    is_transient,
    raised,
    returned,
    scope_arguments,
)
from scoop_outbox.store.pipeline import Pipeline, Query

T = TypeVar("T")


class _Scope(AsyncScope):
    """A scope bound to the driver's connection."""

    def __init__(self, call: Call, driver: AsyncDriver) -> None:
        super().__init__(**scope_arguments(call))
        self._driver = driver
        self._session: AsyncSession | None = None

    @property
    def session(self) -> AsyncSession:
        if self._session is None:
            self._session = AsyncSession(
                self._driver.outer, join_transaction_mode="create_savepoint", expire_on_commit=False
            )
        return self._session

    @property
    def connection(self) -> psycopg.AsyncConnection[Any]:
        return self._driver.raw

    @property
    def broken(self) -> bool:
        """Whether a flush has failed, which a session does not survive without a rollback."""
        return self._session is not None and not self._session.is_active

    async def finish(self) -> None:
        """Flush what the session holds and release its savepoint."""
        if self._session is not None:
            await self._session.commit()

    async def close(self) -> None:
        """Give the session's savepoint up, if it is still there."""
        if self._session is not None:
            await self._session.close()


class AsyncDriver:
    """One connection that executes plans, one at a time.

    Args:
        outer: SQLAlchemy's connection, in autocommit. It believes to be inside a transaction all the time, so that
            sessions joined to it only ever make savepoints; the real transaction is in the hands of the plans.
        raw: psycopg's connection beneath it.
        queries: the statements by name.
    """

    def __init__(self, outer: AsyncConnection, raw: psycopg.AsyncConnection[Any], queries: Mapping[str, Query]) -> None:
        """See `connect`."""
        self.outer = outer
        self.raw = raw
        self._pipeline = Pipeline(raw, queries)
        self.usable = True

    @classmethod
    async def connect(cls, engine: AsyncEngine, queries: Mapping[str, Query]) -> Self:
        """Open a driver on a connection of its own.

        Raises:
            sqlalchemy.exc.OperationalError: the database cannot be reached.
        """
        outer = await engine.connect()
        await outer.begin()
        raw = (await outer.get_raw_connection()).driver_connection
        assert isinstance(raw, psycopg.AsyncConnection)  # noqa: S101 - the engine's dialect is ours
        # Ours from now on: SQLAlchemy would log an error about each one that a program ends without closing.
        await outer.run_sync(Connection.detach)
        return cls(outer, raw, queries)

    def __del__(self) -> None:
        """Close a connection that nobody has closed: a program may drop its application, or end, without saying so."""
        if not self.raw.closed:
            self.raw.pgconn.finish()

    async def close(self) -> None:
        """Close the connection; what is open in it is undone."""
        self.usable = False
        await self.raw.close()
        await self.outer.invalidate()
        await self.outer.close()

    async def run(self, plan: Plan[T]) -> T:
        """Execute a plan to its end.

        Raises:
            Interrupted: the machinery failed; nothing of the open transaction stays.
            psycopg.Error: the database refused a statement; nothing of the open transaction stays.
        """
        answer: Any = None
        refused: Refused | None = None
        try:
            while True:
                try:
                    asked = plan.send(answer) if refused is None else plan.throw(refused)
                except StopIteration as done:
                    result: T = done.value
                    return result
                answer = refused = None
                if isinstance(asked, Call):
                    answer = await self._call(asked)
                    continue
                try:
                    answer = await self._batch(asked)
                except psycopg.Error as error:
                    if self.raw.closed or is_transient(error):
                        raise
                    await self._undo()
                    refused = Refused(error)
        except BaseException as error:
            plan.close()
            await self._undo()
            if isinstance(error, Refused):
                raise error.error from None
            if isinstance(error, psycopg.Error):
                raise Interrupted(type(error).__name__) from error
            raise

    async def _batch(self, batch: Batch) -> list[Rows]:
        return await self.raw.wait(self._pipeline.run(batch))

    async def _call(self, call: Call) -> CallOutcome:
        scope = _Scope(call, self)
        try:
            value = await call.callback(*arguments(call, scope))
            check_transaction(call, self.raw, broken=scope.broken)
            await scope.finish()
            return returned(call, scope, value)
        except Exception as error:
            if self.raw.closed or is_transient(error):
                raise Interrupted(type(error).__name__) from error
            is_open = await self._close(scope) and self.raw.info.transaction_status is not TransactionStatus.IDLE
            if not is_open:
                await self._undo()
                return raised(call, scope, error, at=None)
            _, clock = await self._batch([ROLLBACK_TO_SAVEPOINT, READ_CLOCK])
            return raised(call, scope, error, at=clock[0][0])
        finally:
            if not await self._close(scope):
                self.usable = False

    async def _close(self, scope: _Scope) -> bool:
        """Give the scope's session up; answer whether its savepoint was still there to be given up."""
        try:
            await scope.close()
        except Exception:  # noqa: BLE001 - whatever it is, it is of no use to the user
            return False
        return True

    async def _undo(self) -> None:
        """Leave no transaction open; a connection that cannot even do that is not used again."""
        try:
            if self.raw.info.transaction_status is not TransactionStatus.IDLE:
                await self.raw.rollback()
        except psycopg.Error:
            self.usable = False
        if self.raw.closed:
            self.usable = False
