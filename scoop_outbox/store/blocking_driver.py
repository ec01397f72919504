"""The blocking driver: runs plans on a blocking psycopg connection, and calls `def` callbacks."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Self, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row
from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from scoop_outbox.core.statement import (
    READ_CLOCK,
    ROLLBACK_TO_SAVEPOINT,
    Batch,
    Call,
    CallOutcome,
    Plan,
    Refused,
    Rows,
    Statement,
)
from scoop_outbox.errors import RunCancelled
from scoop_outbox.scope import BlockingScope
from scoop_outbox.store.callbacks import Interrupted, check_transaction, invoke, raised, returned, scope_arguments
from scoop_outbox.store.checkpoint import checkpoint
from scoop_outbox.store.disconnect import abort
from scoop_outbox.store.faults import (
    CONNECTION_ERRORS,
    NO_SAVEPOINT,
    interruption,
    of_the_rows,
    rolled_back,
    server_of,
    spoils,
    words,
)
from scoop_outbox.store.lending import Lending
from scoop_outbox.store.lent import NOWHERE, LentConnection, is_invalidated, session, works_on
from scoop_outbox.store.mode import Mode
from scoop_outbox.store.pipeline import Pipeline
from scoop_outbox.store.query import Query
from scoop_outbox.store.session_events import tell
from scoop_outbox.store.session_reset import commits, ends, is_clean
from scoop_outbox.store.stop import ends_the_worker
from scoop_outbox.wire.limits import Limits

T = TypeVar("T")

_LOOKS = 500
"""How often to look whether the server is done with a connection that was given up, at least 0.01 s apart."""


class _Scope(BlockingScope):
    """A scope bound to the driver's connection."""

    def __init__(self, call: Call, driver: BlockingDriver) -> None:
        super().__init__(**scope_arguments(call), limits=driver.limits)
        self._driver = driver
        self._call = call
        self.cut: int | None = None
        self.opened: Session | None = None
        self._lock = threading.RLock()
        self.lent: LentConnection | None = None

    @property
    def session(self) -> Session:
        with self._lock:
            self.check()
            if self.opened is None:
                self.opened = session(self, self.connection, self._driver.outer)
                self._driver.opened = self.opened
            return self.opened

    @property
    def connection(self) -> LentConnection:
        with self._lock:
            self.check()
            if self.lent is None:
                self.lent = self._driver.lend(self)
            return self.lent

    def checkpoint(self) -> None:
        self.check()
        asked = checkpoint(self._call, self._driver.queries)
        if asked is not None:
            with psycopg.RawCursor(self.connection, row_factory=tuple_row) as cursor:
                cursor.execute(*asked)
                gives_up = cursor.fetchone()
            if gives_up == (True,):
                raise RunCancelled.of(self.step, self.saga, self.run_id)

    @property
    def raw(self) -> psycopg.Connection[Any]:
        """The driver's connection."""
        return self._driver.raw

    @property
    def broken(self) -> bool:
        """Whether a flush has failed, which a session does not survive without a rollback."""
        return self.opened is not None and not self.opened.is_active

    @property
    def can_be_taken_back(self) -> bool:
        """Whether what was lent is as the driver needs it: open, and nobody at work on it."""
        if self.cut is not None:
            return False
        if self.lent is None:
            return True
        return self.lent.is_as_lent and not self.lent.closed_by_user and not is_invalidated(self.opened)

    def owns(self, joined: object) -> bool:
        return self.lent is not None and works_on(joined, self.lent)

    def keep_for_oneself(self) -> None:
        """Let nobody but the driver use what was lent."""
        if self.lent is not None:
            self.lent.keep_for_oneself()

    def finish(self) -> None:
        """Flush what the session holds and release its savepoint."""
        if self.opened is not None:
            self.opened.commit()

    def close(self) -> bool:
        """Give the session's savepoint up; answer whether it was still there to be given up."""
        try:
            if self.opened is not None:
                self.opened.close()
        except BaseException as error:  # a listener may raise what it likes, and it is of no use to the user
            if ends_the_worker(error):
                raise
            return False
        return True

    def end(self) -> None:
        """End, with all that was taken from it."""
        with self._lock:
            super().end()
            if self.lent is not None:
                self.lent.end()


class BlockingDriver:
    """One connection that executes plans, one at a time.

    Args:
        engine: opens a new connection when one has to be given up.
        outer: SQLAlchemy's connection, in autocommit: the real transaction is in the hands of the plans.
        raw: psycopg's connection beneath it; callbacks never get it, but a wrapper that ends with them.
        mode: how it talks to the server.
        context: the context variables that callbacks find.

    Attributes:
        usable: whether the connection is to be used again.
        server: host and port that it leads to.
        called: the callback that was called last, while a plan is executed.
    """

    def __init__(
        self,
        engine: Engine,
        outer: Connection,
        raw: psycopg.Connection[Any],
        mode: Mode,
        context: contextvars.Context,
    ) -> None:
        """See `connect`."""
        self._engine = engine
        self.outer, self.raw = outer, raw
        self._mode = mode
        self._context = context
        self._pipeline = Pipeline(raw, mode)
        self._lending: Lending[LentConnection] = Lending(raw, mode)
        self._committing = False
        self.opened: Session | None = None
        self.usable, self.server = True, server_of(raw)
        self.called: Call | None = None

    @classmethod
    def connect(cls, engine: Engine, mode: Mode, context: contextvars.Context | None = None) -> Self:
        """Open a driver on a connection of its own.

        Args:
            engine: opens it.
            mode: how it talks to the server.
            context: the context variables that callbacks find; those of the caller unless given.

        Raises:
            sqlalchemy.exc.OperationalError: the database cannot be reached.
        """
        return cls(engine, *cls._open(engine), mode, context or contextvars.copy_context())

    @staticmethod
    def _open(engine: Engine) -> tuple[Connection, psycopg.Connection[Any]]:
        outer = engine.connect()
        raw = outer.connection.driver_connection
        assert isinstance(raw, psycopg.Connection)  # noqa: S101 - the engine's dialect is ours
        # Ours from now on: SQLAlchemy would log an error about each one that a program ends without closing.
        outer.detach()
        return outer, raw

    def close(self) -> None:
        """Close the connection; what is open in it is undone, also what somebody still waits for."""
        self.usable = False
        if self._lending.is_free:
            self.raw.close()
        else:
            abort(self.raw)
            self.raw.pgconn = NOWHERE  # whoever waits on it is woken up, and must not find it closed under his hands
        self.outer.invalidate()
        self.outer.close()

    @property
    def pooled(self) -> bool:
        """Whether connections of the server's are lent for one transaction only."""
        return self._mode.pooled

    @property
    def queries(self) -> Mapping[str, Query]:
        """The statements by name."""
        return self._mode.queries

    @property
    def limits(self) -> Limits:
        """How large what a step launches may be."""
        return self._mode.limits

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
            psycopg.Error: the database refused a statement for its rows; nothing of the open transaction stays.
        """
        answer: Any = None
        refused: Refused | None = None
        self.called = None
        try:
            while True:
                try:
                    asked = plan.send(answer) if refused is None else plan.throw(refused)
                except StopIteration as done:
                    self.called = None
                    result: T = done.value
                    return result
                answer = refused = None
                if isinstance(asked, Call):
                    self.called = asked
                    answer = self._call(asked)
                    continue
                try:
                    answer = self._batch(asked)
                except psycopg.Error as error:
                    refused = self._refusal(error)
        except BaseException as error:
            plan.close()
            # Lost in the midst of a commit, nobody knows whether it took place.
            unknown = self._committing and not rolled_back(error)
            self._undo()
            self._tell(committed=None if unknown else False)
            if isinstance(error, Refused):
                raise error.error from None
            if spoils(error):
                self.usable = False
            if isinstance(error, psycopg.Error):
                raise Interrupted(words(error)).on(self.server, self.called) from error
            if isinstance(error, Interrupted):
                error.on(self.server, self.called)
            raise

    def _refusal(self, error: psycopg.Error) -> Refused:
        """Undo what is open, and return what a plan is told; raise the error if nobody's rows have caused it."""
        if self.raw.closed or not of_the_rows(error):
            raise error
        self._undo()
        self._tell(committed=False)
        if error.sqlstate == NO_SAVEPOINT:
            self._renew()
        return Refused(error)

    def _batch(self, batch: Batch) -> list[Rows]:
        if not self._lending.touched:
            return self.raw.wait(self._pipeline.run(batch))
        extended, own = self._lending.cleaned(batch)
        committed = commits(batch)
        self._committing = committed is True
        answers = self.raw.wait(self._pipeline.run(extended))
        if ends(batch):
            self._lending.touched = False
        if not is_clean(extended, answers):
            self.usable = False
        self._committing = False
        if committed is not None:
            self._tell(committed=committed)
        return [answers[index] for index in own]

    def _tell(self, *, committed: bool | None) -> None:
        """Tell the listeners of a callback's session how its work has ended, if that is known."""
        told, self.opened, self._committing = self.opened, None, False
        if told is not None and committed is not None:
            tell(told, committed=committed)

    def _call(self, call: Call) -> CallOutcome:
        scope = _Scope(call, self)
        try:
            value = invoke(call, scope, self._context)
            scope.keep_for_oneself()
            check_transaction(call, self.raw, scope.lent, broken=scope.broken, invalidated=is_invalidated(scope.opened))
            scope.finish()
            return returned(call, scope, value)
        except BaseException as error:
            if ends_the_worker(error):
                raise
            interrupted = interruption(error, scope.lent, lost=self.raw.closed and scope.cut is None)
            if interrupted is not None:
                raise interrupted from error
            return raised(call, scope, error, at=self._take_back(scope))
        finally:
            scope.end()

    def lend(self, scope: _Scope) -> LentConnection:
        """Return a wrapper of the connection for the callback whose scope this is."""
        return self._lending.lend(LentConnection(scope, self.raw))

    def _take_back(self, scope: _Scope) -> datetime | None:
        """Undo what a callback did and return when; None if its transaction is gone, and with it the connection."""
        whole = scope.can_be_taken_back and scope.close()
        scope.end()
        if whole and self.raw.info.transaction_status is not TransactionStatus.IDLE:
            left = [] if scope.lent is None else self._lending.after_rollback()
            try:
                *_, clock = self._batch([ROLLBACK_TO_SAVEPOINT, *left, READ_CLOCK])
            except psycopg.Error as error:
                if error.sqlstate != NO_SAVEPOINT:
                    raise
            else:
                self._lending.touched = False
                at: datetime = clock[0][0]
                return at
        self._renew(scope.cut)
        self._tell(committed=False)
        return None

    def _renew(self, cut: int | None = None) -> None:
        """Give the connection up, and go on with a new one.

        Args:
            cut: the server process at its other end, if it has been taken from its callback.

        Raises:
            Interrupted: there is none to be had.
        """
        pid = self.raw.info.backend_pid if cut is None else cut  # a connection that is gone does not tell
        in_use = cut is not None or not self._lending.is_free
        self._lending.touched = False
        self._undo()
        self.close()
        try:
            self.outer, self.raw = self._open(self._engine)
        except CONNECTION_ERRORS as error:
            raise Interrupted(words(error)) from error
        self._pipeline = Pipeline(self.raw, self._mode)
        self._lending = Lending(self.raw, self._mode)
        self.usable, self.server = True, server_of(self.raw)
        # The server undoes what was open when it notices, and holds the run's lock that long.
        for _ in range(_LOOKS if in_use else 0):
            (rows,) = self._batch([Statement("wait_for_backend", {"pid": pid})])
            if not rows:
                break

    def _undo(self) -> None:
        """Leave no transaction open; a connection that cannot even do that is not used again."""
        try:
            if not self._lending.is_free:
                self.usable = False
            elif self.raw.info.transaction_status is not TransactionStatus.IDLE:
                self.raw.rollback()
            if self._lending.touched and self.usable:
                self._batch(self._lending.after_rollback())
                self._lending.touched = False
        except psycopg.Error:
            self.usable = False
        if self.raw.closed:
            self.usable = False
