"""The blocking driver: runs plans on a blocking psycopg connection, and calls `def` callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from scoop_outbox.core.statement import READ_CLOCK, ROLLBACK_TO_SAVEPOINT, Batch, Call, CallOutcome, Plan, Refused, Rows
from scoop_outbox.scope import BlockingScope
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
from scoop_outbox.store.sever import abort

T = TypeVar("T")


class _Scope(BlockingScope):
    """A scope bound to the driver's connection."""

    def __init__(self, call: Call, driver: Driver) -> None:
        super().__init__(**scope_arguments(call))
        self._driver = driver
        self._session: Session | None = None

    @property
    def session(self) -> Session:
        if self._session is None:
            self._session = Session(
                self._driver.outer, join_transaction_mode="create_savepoint", expire_on_commit=False
            )
        return self._session

    @property
    def connection(self) -> psycopg.Connection[Any]:
        return self._driver.raw

    @property
    def broken(self) -> bool:
        """Whether a flush has failed, which a session does not survive without a rollback."""
        return self._session is not None and not self._session.is_active

    def finish(self) -> None:
        """Flush what the session holds and release its savepoint."""
        if self._session is not None:
            self._session.commit()

    def close(self) -> None:
        """Give the session's savepoint up, if it is still there."""
        if self._session is not None:
            self._session.close()


class Driver:
    """One connection that executes plans, one at a time.

    Args:
        outer: SQLAlchemy's connection, in autocommit. It believes to be inside a transaction all the time, so that
            sessions joined to it only ever make savepoints; the real transaction is in the hands of the plans.
        raw: psycopg's connection beneath it.
        queries: the statements by name.
    """

    def __init__(self, outer: Connection, raw: psycopg.Connection[Any], queries: Mapping[str, Query]) -> None:
        """See `connect`."""
        self.outer = outer
        self.raw = raw
        self._pipeline = Pipeline(raw, queries)
        self.usable = True

    @classmethod
    def connect(cls, engine: Engine, queries: Mapping[str, Query]) -> Self:
        """Open a driver on a connection of its own.

        Raises:
            sqlalchemy.exc.OperationalError: the database cannot be reached.
        """
        outer = engine.connect()
        outer.begin()
        raw = outer.connection.driver_connection
        assert isinstance(raw, psycopg.Connection)  # noqa: S101 - the engine's dialect is ours
        # Ours from now on: SQLAlchemy would log an error about each one that a program ends without closing.
        outer.detach()
        return cls(outer, raw, queries)

    def __del__(self) -> None:
        """Close a connection that nobody has closed: a program may drop its application, or end, without saying so."""
        if not self.raw.closed:
            self.raw.pgconn.finish()

    def close(self) -> None:
        """Close the connection; what is open in it is undone."""
        self.usable = False
        self.raw.close()
        self.outer.invalidate()
        self.outer.close()

    def abort(self) -> None:
        """Break the connection under the thread that uses it: what is open in it is undone, here and on the server.

        Blocks for two seconds at most, if the server does not take notice.
        """
        self.usable = False
        abort(self.raw)

    def run(self, plan: Plan[T]) -> T:
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
                    answer = self._call(asked)
                    continue
                try:
                    answer = self._batch(asked)
                except psycopg.Error as error:
                    if self.raw.closed or is_transient(error):
                        raise
                    self._undo()
                    refused = Refused(error)
        except BaseException as error:
            plan.close()
            self._undo()
            if isinstance(error, Refused):
                raise error.error from None
            if isinstance(error, psycopg.Error):
                raise Interrupted(type(error).__name__) from error
            raise

    def _batch(self, batch: Batch) -> list[Rows]:
        return self.raw.wait(self._pipeline.run(batch))

    def _call(self, call: Call) -> CallOutcome:
        scope = _Scope(call, self)
        try:
            value = call.callback(*arguments(call, scope))
            check_transaction(call, self.raw, broken=scope.broken)
            scope.finish()
            return returned(call, scope, value)
        except Exception as error:
            if self.raw.closed or is_transient(error):
                raise Interrupted(type(error).__name__) from error
            is_open = self._close(scope) and self.raw.info.transaction_status is not TransactionStatus.IDLE
            if not is_open:
                self._undo()
                return raised(call, scope, error, at=None)
            _, clock = self._batch([ROLLBACK_TO_SAVEPOINT, READ_CLOCK])
            return raised(call, scope, error, at=clock[0][0])
        finally:
            if not self._close(scope):
                self.usable = False

    def _close(self, scope: _Scope) -> bool:
        """Give the scope's session up; answer whether its savepoint was still there to be given up."""
        try:
            scope.close()
        except Exception:  # noqa: BLE001 - whatever it is, it is of no use to the user
            return False
        return True

    def _undo(self) -> None:
        """Leave no transaction open; a connection that cannot even do that is not used again."""
        try:
            if self.raw.info.transaction_status is not TransactionStatus.IDLE:
                self.raw.rollback()
        except psycopg.Error:
            self.usable = False
        if self.raw.closed:
            self.usable = False
