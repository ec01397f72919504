"""Transitions: what becomes of a run, as values. `forward` and `backward` build them, `settle` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum, auto

from scoop_outbox._deadlines import Deadline, Timeouts
from scoop_outbox._emission import Emission
from scoop_outbox.core.run import Run, RunState, StepKind, changed
from scoop_outbox.failure import Failure
from scoop_outbox.policy import Retry
from scoop_outbox.strategy import OpenChild


@dataclass(frozen=True, slots=True)
class Returned:
    """A callback returned: what it gave, and what it left in its scope.

    Attributes:
        asks: what it has said about its run's deadline; nothing in it lifts what the run had set before.
        deadline: the one that this is, by the database's clock.
    """

    value: object
    emissions: Sequence[Emission]
    context: str | None
    result: str | None
    asks: Timeouts | None = None
    deadline: Deadline | None = None


@dataclass(frozen=True, slots=True)
class Raised:
    """A callback raised: its writes are undone, the context that it left is kept.

    Attributes:
        open: whether the claim's transaction is still there to record the failure in.
        at: when, by the database's clock; None when it was not asked.
    """

    error: BaseException
    failure: Failure
    context: str | None
    open: bool = True
    at: datetime | None = None


class Mail(Enum):
    """What happens to the mail that was read with the claim."""

    KEEP = auto()  # the run goes straight on; should this process die, the mail leads another one to it
    DROP_IF_WAITING = auto()  # whether somebody listens to what was launched is known to the database only
    LOOK = auto()  # the run is looked at at once, though it may wait: its strategy says for how long
    DROP = auto()


@dataclass(frozen=True, slots=True)
class Record:
    """A row of `step`: one execution of a callback.

    Attributes:
        failure: what it raised, or, if it `swallows` that, what it was called for and has handled.
    """

    seq: int
    step: str
    kind: StepKind
    iteration: int
    attempt: int
    failure: Failure | None = None
    undoes: int | None = None
    swallows: bool = False


@dataclass(frozen=True, slots=True)
class Transition:
    """One step of the machine, to be written in one transaction with what the user's code wrote.

    Attributes:
        run: the run as it shall be.
        record: the execution to be recorded.
        emissions: messages to be launched by execution `record.seq`.
        asks: the instance whose committed children are ordered to roll back, and why.
        reverse: whether only those of its last message are.
        cancels: why open children are told to give up.
        expires: what is told of children that have not started by their deadline.
        leaves: children that have not started and are not waited for any longer.
        consumes: the instance whose failed children count as handled.
        delivers: the instance of whose children that could not be rolled back the run was told.
        undone: the instance that is compensated now.
        mail: what happens to the mail that was read.
        wake_at: when to look at the run again by itself.
        yields: whether it is not to be committed when the run has been asked to give up meanwhile.
    """

    run: Run
    record: Record | None = None
    emissions: Sequence[Emission] = ()
    asks: tuple[int, Failure] | None = None
    reverse: bool = False
    cancels: Failure | None = None
    expires: Failure | None = None
    leaves: Sequence[OpenChild] = ()
    consumes: int | None = None
    delivers: int | None = None
    undone: int | None = None
    mail: Mail = Mail.KEEP
    wake_at: datetime | None = None
    yields: bool = False


def awaited(emissions: Sequence[Emission]) -> bool:
    """Tell whether a run waits for one of the messages that it has launched."""
    return any(emission.awaited for emission in emissions)


def retried(run: Run, seq: int, record: Record | None, retry: Retry, now: datetime, chance: float) -> Transition:
    """A callback failed and is called again later; the context stays as it was before (behaviour Q47)."""
    until = now + retry.delay(run.attempt + 1, chance)
    after = changed(run, seq=seq, attempt=run.attempt + 1, not_before=until, compensation_seq=None)
    return Transition(after, record, mail=Mail.DROP, wake_at=until)


def roll_back(run: Run, failure: Failure, context: str | None) -> Transition:
    """Begin to roll back: compensations see the context that the failing callback left (behaviour Q26).

    A finaliser that was not called yet is called first; one that was is not called again (behaviour TF-05).
    """
    if run.launched_at is not None:
        failure = failure.with_launched_at(run.launched_at)
    after = changed(
        run,
        state=RunState.ROLLING_BACK,
        failure=failure,
        context=context,
        undo_seq=run.seq,
        attempt=0,
        handled=0,
        not_before=None,
        giving_up=None,
        body_seq=run.body_seq if run.finaliser_seq is None else None,
        finaliser_seq=None,
    )
    return Transition(after)


def recorded(change: Transition, record: Record) -> Transition:
    """Return the beginning of a rollback with the execution that it is for: one failure, kept once."""
    return replace(change, record=replace(record, failure=change.run.failure))


def cancel_children(run: Run, reason: Failure) -> Transition:
    """Give up: children that are open are told to, and waited for if they are at work."""
    return Transition(changed(run, giving_up=reason), cancels=reason, mail=Mail.DROP_IF_WAITING)


def parked(run: Run, reason: str, needs: str | None = None) -> Transition:
    """The run cannot go on before a worker comes that knows `needs`, or somebody says so."""
    return Transition(changed(run, state=RunState.PARKED, reason=reason, needs=needs), mail=Mail.DROP)
