"""What both drivers do around a user's callback, whatever its colour."""

from __future__ import annotations

import asyncio
import contextvars
from datetime import datetime
from typing import Any, Self, cast

import psycopg
from psycopg.pq import TransactionStatus

from scoop_outbox import _inside
from scoop_outbox._failure.traceback import keep_root
from scoop_outbox._log import get_logger
from scoop_outbox.context import Context
from scoop_outbox.core.run import RunState
from scoop_outbox.core.statement import Call
from scoop_outbox.core.transition import Raised, Returned
from scoop_outbox.errors import PayloadError, RunCancelled, StepError
from scoop_outbox.failure import Failure
from scoop_outbox.scope import Scope
from scoop_outbox.store.lent import Lent
from scoop_outbox.store.step_timeout import Limit, Scoped, within

Raw = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]

log = get_logger(__name__)


class Interrupted(Exception):
    """A run was interrupted: its transaction is undone, and it is executed again later. No failure of its saga.

    Attributes:
        reason: why, in a line for operators and for the run's row: the class of the error, its SQL state, the server's
            words; never a value of the user's.
        wanted: whether a callback asked for it, with `TransientError`; otherwise the machinery failed.
        server: where the connection led on which it happened, if it was on one.
        step: the step whose callback had been called last, if one had.
    """

    def __init__(self, reason: str, *, wanted: bool = False) -> None:
        """Say why."""
        super().__init__(reason)
        self.reason = reason
        self.wanted = wanted
        self.server: str | None = None
        self.step: str | None = None

    def on(self, server: str, call: Call | None) -> Self:
        """Note where it happened, and after which call; return itself."""
        self.server, self.step = server, None if call is None else call.step
        return self


def scope_arguments(call: Call) -> dict[str, Any]:
    """Return what a scope is made of."""
    return {
        "run_id": call.run.id,
        "saga": call.run.saga,
        "step": call.step,
        "lineage": call.run.lineage,
        "context": Context(call.run.context),
        "results": call.results,
        "iteration": call.iteration,
        "attempt": call.attempt,
        "idempotency_key": call.key,
        "handles": call.error is not None,
        "undoes": call.run.state is RunState.ROLLING_BACK,
        "late": call.run.late,
    }


def arguments(call: Call, scope: Scope) -> tuple[Any, ...]:
    """Return what the callback is called with."""
    return (scope, call.message) if call.error is None else (scope, call.message, call.error)


async def async_invoke(call: Call, scope: Scope, context: contextvars.Context) -> object:
    """Call an `async def`, in a task and a copy of `context` of its own, and return what it returns.

    What it does to its own task (cancel it, say) is its failure, and none of the worker.

    Raises:
        BaseException: whatever it raised.
        CancelledError: the task that waits here is being cancelled; so was the callback.
    """
    own = context.copy()
    own.run(_inside.enter, scope)
    task = asyncio.get_running_loop().create_task(_caught(call, scope), context=own)
    if call.interrupt is not None:
        call.interrupt.cancel = task.cancel
    value, error = await (task if call.timeout is None else within(task, call))
    if call.interrupt is not None:
        call.interrupt.cancel = None
        if call.interrupt.asked and error is not None:
            raise RunCancelled.of(call.step, call.run.saga, call.run.id) from error
    if error is None:
        return value
    try:
        waiting = asyncio.current_task()
        if waiting is not None and waiting.cancelling():
            raise asyncio.CancelledError from error
        raise error
    finally:
        del error  # a frame and its exception would keep each other alive


async def _caught(call: Call, scope: Scope) -> tuple[object, BaseException | None]:
    try:
        return await call.callback(*arguments(call, scope)), None
    except BaseException as error:  # noqa: BLE001 - raised again by who waits; asyncio would end the process for some
        return None, error


def invoke(call: Call, scope: Scope, context: contextvars.Context) -> object:
    """Call a `def`, in a copy of `context` of its own, and return what it returns.

    Raises:
        BaseException: whatever it raised.
    """
    own = context.copy()
    own.run(_inside.enter, scope)
    if call.timeout is None:
        return own.run(call.callback, *arguments(call, scope))
    limit = Limit(cast("Scoped", scope), call)  # the driver's
    try:
        value: object = own.run(call.callback, *arguments(call, scope))
    except BaseException as error:
        limit.stop(error)
        raise
    limit.stop()
    return value


def check_transaction(call: Call, raw: Raw, lent: Lent | None, *, broken: bool, invalidated: bool) -> None:
    """Refuse a transaction that the callback has ended or broken, and a connection that it does not give back.

    Args:
        call: what was called.
        raw: the driver's connection.
        lent: what the callback got of it, if it asked for it.
        broken: whether its session is of no use any more.
        invalidated: whether SQLAlchemy has given the session's connection up.

    Raises:
        StepError: saying what to do instead.
    """
    if lent is not None and lent.closed_by_user:
        raise StepError.closed_its_connection(call.step, call.run.saga)
    if lent is not None and not lent.is_as_lent:
        raise StepError.left_something_running(call.step, call.run.saga)
    status = raw.info.transaction_status
    if status is TransactionStatus.INTRANS and invalidated:
        raise StepError.closed_its_connection(call.step, call.run.saga)
    if status is TransactionStatus.INTRANS and not broken:
        return
    where = f"step {call.step!r} of saga {call.run.saga!r}"
    if status in (TransactionStatus.INERROR, TransactionStatus.INTRANS):
        raise StepError(
            f"{where} went on after a database error, but Postgres has aborted the transaction: "
            "wrap what may fail in a savepoint (session.begin_nested() or connection.transaction())"
        )
    raise StepError.ended_its_transaction(call.step, call.run.saga)


def returned(call: Call, scope: Scope, value: object) -> Returned:
    """Return the outcome of a callback that returned `value`.

    Raises:
        StepError: `value` is nothing that it may return.
        PayloadError: the context cannot be stored.
    """
    call.check(value)
    return Returned(value, tuple(scope.emissions), scope.left_context(), scope.result, scope.asks)


def raised(call: Call, scope: Scope, error: BaseException, *, at: datetime | None) -> Raised:
    """Return the outcome of a callback that raised `error`; `at` is None when its transaction is gone."""
    if not isinstance(error, Exception | RunCancelled):
        log.warning(
            "run: callback raised a BaseException, which counts as a failure (saga %r, run %s, step %r: %s)",
            *(call.run.saga, call.run.id, call.step, type(error).__name__),
            extra={"service": call.run.service, "saga": call.run.saga, "run_id": call.run.id, "step": call.step},
        )
    if call.handles:
        keep_root(call.error, error)
    try:
        context = scope.left_context()
    except PayloadError:
        context = call.run.context
    return Raised(error, Failure.of(error, source=call.source), context, at is not None, at)
