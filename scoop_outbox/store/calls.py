"""What both drivers do around a user's callback, whatever its colour."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from scoop_outbox.context import Context
from scoop_outbox.core.statement import Call
from scoop_outbox.core.transition import Raised, Returned
from scoop_outbox.errors import PayloadError, StepError, TransientError
from scoop_outbox.failure import Failure
from scoop_outbox.scope import Scope

_TRANSIENT_STATES = frozenset(
    {
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected
        "53300",  # too_many_connections
        "57P01",  # admin_shutdown
        "57P02",  # crash_shutdown
        "57P03",  # cannot_connect_now
        "26000",  # invalid_sql_statement_name: what was prepared here has been deallocated by somebody
        "25006",  # read_only_sql_transaction: we still talk to the old primary after a failover
    }
)


class Interrupted(Exception):
    """A run was interrupted: its transaction is undone, and it is executed again later. No failure of its saga.

    Attributes:
        reason: why, in a line for operators and for the run's row: the class of the error, its SQL state, the server's
            words; never a value of the user's.
        wanted: whether a callback asked for it, with `TransientError`; otherwise the machinery failed.
    """

    def __init__(self, reason: str, *, wanted: bool = False) -> None:
        """Say why."""
        super().__init__(reason)
        self.reason = reason
        self.wanted = wanted


def is_transient(error: BaseException) -> bool:
    """Tell whether an error comes from the machinery rather than from the business.

    Looks through wrappers (SQLAlchemy's, and the user's own `raise ... from`): a deadlock stays a deadlock whatever
    it is called on the way up.
    """
    return any(_transient(one) for one in _chain(error))


def _transient(error: BaseException) -> bool:
    if isinstance(error, TransientError | MemoryError):
        return True
    if not isinstance(error, psycopg.Error):
        return False
    state = error.sqlstate
    if state is None:  # no answer from the server: the connection is gone
        return isinstance(error, psycopg.OperationalError)
    return state in _TRANSIENT_STATES or state.startswith("08")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        original = getattr(error, "orig", None)
        if isinstance(original, BaseException):
            yield original
        error = error.__cause__ or error.__context__


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
    }


def arguments(call: Call, scope: Scope) -> tuple[Any, ...]:
    """Return what the callback is called with."""
    return (scope, call.message) if call.error is None else (scope, call.message, call.error)


def check_transaction(
    call: Call, connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], *, broken: bool
) -> None:
    """Refuse a transaction that the callback has ended or broken.

    Args:
        call: what was called.
        connection: what it worked on.
        broken: whether its session is of no use any more.

    Raises:
        StepError: saying what to do instead.
    """
    status = connection.info.transaction_status
    if status is TransactionStatus.INTRANS and not broken:
        return
    where = f"step {call.step!r} of saga {call.run.saga!r}"
    if status in (TransactionStatus.INERROR, TransactionStatus.INTRANS):
        raise StepError(
            f"{where} went on after a database error, but Postgres has aborted the transaction: "
            "wrap what may fail in a savepoint (session.begin_nested() or connection.transaction())"
        )
    raise StepError.ended_its_transaction(call.step, call.run.saga)


def _keep(original: Exception | None, replacement: BaseException) -> None:
    """Make what a handler was called for the root of what it raised instead (behaviour Q5)."""
    seen: set[int] = set()
    while replacement is not original and id(replacement) not in seen:
        seen.add(id(replacement))
        above = replacement.__context__ if replacement.__cause__ is None else replacement.__cause__
        if above is None:
            replacement.__context__ = original
            return
        replacement = above


def returned(call: Call, scope: Scope, value: object) -> Returned:
    """Return the outcome of a callback that returned `value`.

    Raises:
        StepError: `value` is nothing that it may return.
        PayloadError: the context cannot be stored.
    """
    call.check(value)
    return Returned(value, tuple(scope.emissions), scope.context.dumps(), scope.result)


def raised(call: Call, scope: Scope, error: Exception, *, at: datetime | None) -> Raised:
    """Return the outcome of a callback that raised `error`; `at` is None when its transaction is gone."""
    if call.handles:
        _keep(call.error, error)
    try:
        context = scope.context.dumps()
    except PayloadError:
        context = call.run.context
    return Raised(error, Failure.of(error, source=call.source), context, at is not None, at)
