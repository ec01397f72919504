"""Plans of handlers: who is subscribed, what is pending for them, and retiring them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from scoop_outbox.core.plans.failures import Known, Writing, id_of
from scoop_outbox.core.plans.requests import asked_elsewhere
from scoop_outbox.core.run import ChildState, RunState
from scoop_outbox.core.statement import BEGIN, COMMIT, Plan, ask, statement
from scoop_outbox.failure import Failure
from scoop_outbox.wire.control import Order

COUNTED = 10_000
"""Nothing is counted further than this."""

LISTED = 100
"""So many runs under way are named."""

_SOURCE = "scoop-outbox handlers forget"
_TYPE = "HandlerForgotten"


class Pending(StrEnum):
    """What becomes of what waits for a handler that is forgotten, and has executed nothing."""

    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Handler:
    """A saga that is subscribed, or of which something is left.

    Attributes:
        service: whose it is.
        saga: its name.
        topics: what it is subscribed to; none when it has been forgotten and something is left all the same.
        since: since when it is subscribed, by the database's clock.
        via_broker: whether a broker brings the service its messages.
        waiting: messages that somebody waits for, and that have not been taken in.
        unstarted: runs that have executed nothing yet.
        under_way: runs that have executed something, and have not ended.
        due: pieces of mail that could be seen to now.
        alive: whether a living worker of the service has it.
    """

    service: str
    saga: str
    topics: tuple[str, ...]
    since: datetime | None
    via_broker: bool
    waiting: int
    unstarted: int
    under_way: int
    due: int
    alive: bool = False

    @property
    def pending(self) -> int:
        """How much there is that has executed nothing yet."""
        return self.waiting + self.unstarted


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A run that has executed something, and has not ended.

    Attributes:
        step: the last step that it has executed.
    """

    id: uuid.UUID
    saga: str
    state: RunState
    step: str | None


class ForgetStatus(StrEnum):
    """What became of the wish to forget handlers."""

    FORGOTTEN = "forgotten"
    UNKNOWN = "unknown"
    REFUSED_ALIVE = "refused_alive"
    REFUSED_PENDING = "refused_pending"
    REFUSED_ACTIVE = "refused_active"


@dataclass(frozen=True, slots=True)
class Forgetting:
    """The answer to the wish to forget handlers.

    Attributes:
        status: whether they are forgotten, or why not: there are none of that name; workers of the service are alive;
            it was not said what becomes of what is pending; runs are under way.
        handlers: those that were meant, as they were before.
        active: runs under way, at most `LISTED` of them.
        waiting: how many messages that somebody waited for were failed or skipped.
        unstarted: how many runs that had executed nothing were.
        abandoned: how many runs under way were.
        left: how many runs are being executed at this moment, and so were left as they are.
        open: whether a transaction is still open that began before: what it launches for them is not among these.
    """

    status: ForgetStatus
    handlers: tuple[Handler, ...] = ()
    active: tuple[UnderWay, ...] = ()
    waiting: int = 0
    unstarted: int = 0
    abandoned: int = 0
    left: int = 0
    open: bool = False


def read_handlers(service: str | None = None, saga: str | None = None) -> Plan[list[Handler]]:
    """Return who is subscribed or has something left, by service and saga; nothing is known of who is alive."""
    (rows,) = yield from ask(statement("read_handlers", service=service, saga=saga, most=COUNTED))
    return [Handler(row[0], row[1], tuple(row[2]), *row[3:]) for row in rows]


def read_alive(service: str | None = None) -> Plan[set[tuple[str, str]]]:
    """Return the services and sagas that living workers have."""
    (rows,) = yield from ask(statement("read_alive", service=service))
    return {(of, saga) for of, saga in rows}


def read_under_way(service: str, saga: str | None) -> Plan[list[UnderWay]]:
    """Return runs that have executed something and have not ended, the oldest first."""
    (rows,) = yield from ask(statement("read_under_way", service=service, saga=saga, most=LISTED))
    return [UnderWay(run, of, RunState(state), step) for run, of, state, step in rows]


def unsubscribe(service: str, saga: str | None, topic: str | None) -> Plan[str]:
    """End subscriptions, and return the number of the transaction that has."""
    _, _, number, _ = yield from ask(
        BEGIN, statement("unsubscribe", service=service, saga=saga, topic=topic), statement("read_transaction"), COMMIT
    )
    transaction: str = number[0][0]
    return transaction


def is_older_open(transaction: str) -> Plan[bool]:
    """Tell whether somebody may still be at work who has not seen what a transaction has done."""
    (rows,) = yield from ask(statement("is_older_open", transaction=transaction))
    older: bool = rows[0][0]
    return older


def retire(
    service: str, saga: str | None, pending: Pending, known: Known, *, begun: bool, most: int
) -> Plan[tuple[int, int, int]]:
    """End some of what waits for forgotten handlers, and tell the parents.

    Args:
        service: whose they are.
        saga: which one; None is all of the service.
        pending: what becomes of what has executed nothing.
        known: the failures that this process knows.
        begun: whether runs under way are abandoned: they end `rollback_failed`, and nothing of theirs is undone.
        most: how many messages, and how many runs, in this transaction.

    Returns:
        How many messages, runs that had executed nothing, and runs under way have been ended.
    """
    skip = pending is Pending.SKIP
    state = ChildState.SKIPPED if skip else ChildState.ROLLED_BACK
    writing = Writing(known)
    unstarted = _failure(service, saga, "before it had executed anything")
    failure = None if skip else id_of(writing.name(unstarted))
    undone = _failure(service, saga, "while this run was under way; nothing that it has done is undone")
    begun_failure = id_of(writing.name(undone)) if begun else None
    ordered = asked_elsewhere(uuid.UUID(int=0), Order.CANCEL, unstarted)
    *_, waiting, elsewhere, runs, _ = yield from ask(
        BEGIN,
        *writing.statements(),
        statement("retire_waiting", service=service, saga=saga, state=state.value, failure=failure, most=most),
        statement("retire_elsewhere", **ordered, service=service, saga=saga, failure=failure, most=most),
        statement(
            "retire_runs",
            service=service,
            saga=saga,
            state=state.value,
            failure=failure,
            begun_failure=begun_failure,
            said=None if skip else unstarted.dumps(),
            begun_said=undone.dumps() if begun else None,
            begun=begun,
            most=most,
        ),
        COMMIT,
    )
    writing.written()
    return waiting[0][0] + elsewhere[0][0], runs[0][0], runs[0][1]


def retire_roots(service: str, saga: str | None) -> Plan[None]:
    """Let those who wait for a root wait no more for forgotten handlers that will never begin with it."""
    yield from ask(statement("retire_roots", service=service, saga=saga))


def _failure(service: str, saga: str | None, when: str) -> Failure:
    what = f"service {service}" if saga is None else f"saga {saga} of service {service}"
    return Failure(_TYPE, f"{what} was forgotten {when}", _SOURCE)
