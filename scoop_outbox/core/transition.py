"""Transitions: what becomes of a run, as values. Built by named constructors, written by one plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum, auto

from scoop_outbox.core.decide import (
    AskChildren,
    Compensate,
    CompensationFailed,
    HandleChildFailure,
    HandleChildRollbackFailure,
    Invoke,
)
from scoop_outbox.core.run import Instance, Run, RunState, StepKind, changed
from scoop_outbox.errors import StepError
from scoop_outbox.failure import Failure
from scoop_outbox.policy import Retry
from scoop_outbox.saga import GoTo, Repeat, Saga
from scoop_outbox.scope import Emission


@dataclass(frozen=True, slots=True)
class Returned:
    """A callback returned: what it gave, and what it left in its scope."""

    value: object
    emissions: Sequence[Emission]
    context: str | None
    result: str | None


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
        consumes: the instance whose failed children count as handled.
        delivers: the instance of whose children that could not be rolled back the run was told.
        undone: the instance that is compensated now.
        mail: what happens to the mail that was read.
        wake_at: when to look at the run again by itself.
    """

    run: Run
    record: Record | None = None
    emissions: Sequence[Emission] = ()
    asks: tuple[int, Failure] | None = None
    consumes: int | None = None
    delivers: int | None = None
    undone: int | None = None
    mail: Mail = Mail.KEEP
    wake_at: datetime | None = None


def next_step(saga: Saga, step: str, value: object) -> str | None:
    """Return the name of the step that follows `step`, which returned `value`.

    Raises:
        StepError: `value` is nothing that a step may return, or names a step that the saga does not have.
    """
    match value:
        case None:
            return saga.after(step)
        case Repeat():
            return step
        case GoTo(name=name) if saga.get(name) is not None:
            return name
        case GoTo(name=name):
            known = ", ".join(repr(known.name) for known in saga.steps)
            raise StepError(f"step {step!r} goes to {name!r}, which saga {saga.name!r} does not have; it has {known}")
        case _:
            raise StepError(
                f"step {step!r} of saga {saga.name!r} returned {type(value).__qualname__}; "
                "a step returns None, Repeat() or GoTo('step name'), and leaves values with scope.set_result()"
            )


def _awaited(emissions: Sequence[Emission]) -> bool:
    return any(emission.awaited for emission in emissions)


def step_returned(saga: Saga, run: Run, due: Invoke, outcome: Returned) -> Transition:
    """A step has done its work: the run goes on, waits for children, or has finished."""
    follows = next_step(saga, due.step.name, outcome.value)
    waits = _awaited(outcome.emissions)
    finished = follows is None and not waits
    seq = run.seq + 1
    after = changed(
        run,
        state=RunState.COMMITTED if finished else RunState.RUNNING,
        step=due.step.name,
        next_step=follows,
        seq=seq,
        instance=seq,
        iteration=due.iteration,
        attempt=0,
        handled=0,
        not_before=None,
        context=outcome.context,
        result=outcome.result or run.result,
    )
    return Transition(
        after,
        Record(seq, due.step.name, StepKind.STEP, due.iteration, run.attempt),
        outcome.emissions,
        mail=Mail.DROP if finished else Mail.DROP_IF_WAITING if waits else Mail.KEEP,
    )


def step_raised(run: Run, due: Invoke, outcome: Raised, now: datetime, chance: float) -> Transition:
    """A step failed: it is tried again later if its policy allows, else the run rolls back."""
    seq = run.seq + 1
    record = Record(seq, due.step.name, StepKind.STEP, due.iteration, run.attempt, outcome.failure)
    failed = run.attempt + 1
    if due.step.retry.allows(failed, outcome.error):
        return _again(run, seq, record, due.step.retry, now, chance)
    return _recorded(roll_back(changed(run, seq=seq), outcome.failure, outcome.context), record)


def _recorded(change: Transition, record: Record) -> Transition:
    """Return the beginning of a rollback with the execution that it is for: one failure, kept once."""
    return replace(change, record=replace(record, failure=change.run.failure))


def _again(run: Run, seq: int, record: Record | None, retry: Retry, now: datetime, chance: float) -> Transition:
    # The context stays as it was before the failed attempt (behaviour Q47).
    until = now + retry.delay(run.attempt + 1, chance)
    after = changed(run, seq=seq, attempt=run.attempt + 1, not_before=until, compensation_seq=None)
    return Transition(after, record, mail=Mail.DROP, wake_at=until)


def roll_back(run: Run, failure: Failure, context: str | None) -> Transition:
    """Begin to roll back: compensations see the context that the failing callback left (behaviour Q26)."""
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
    )
    return Transition(after)


def handler_returned(saga: Saga, run: Run, due: HandleChildFailure, outcome: Returned) -> Transition:
    """Child failures were handled: the run goes on as the step had chosen, or as the handler chose instead."""
    seq = run.seq + 1
    follows = run.next_step if outcome.value is None else next_step(saga, due.step.name, outcome.value)
    after = changed(
        run,
        next_step=follows,
        seq=seq,
        # What the next step finds as results is the handler's if it launched anything, else the step's (behaviour Q52).
        instance=seq if _awaited(outcome.emissions) else run.instance,
        handled=run.handled + 1,
        context=outcome.context,
        result=outcome.result or run.result,
    )
    return Transition(
        after,
        Record(seq, due.step.name, StepKind.CHILD_FAILURE_HANDLER, run.iteration, run.handled),
        outcome.emissions,
        consumes=run.instance,
        mail=Mail.DROP_IF_WAITING if _awaited(outcome.emissions) else Mail.KEEP,
    )


def handler_raised(run: Run, due: HandleChildFailure, outcome: Raised) -> Transition:
    """A child-failure handler raised: the run rolls back, beginning with the very step."""
    seq = run.seq + 1
    kind = StepKind.CHILD_FAILURE_HANDLER
    record = Record(seq, due.step.name, kind, run.iteration, run.handled, outcome.failure)
    return _recorded(roll_back(changed(run, seq=seq), outcome.failure, outcome.context), record)


def committed(run: Run) -> Transition:
    """The last step and everything below it has finished."""
    return Transition(changed(run, state=RunState.COMMITTED), mail=Mail.DROP)


def ask_children(run: Run, due: AskChildren, source: str) -> Transition:
    """Order the committed children of an instance to roll back, and wait for them."""
    assert run.failure is not None  # noqa: S101 - no run rolls back for nothing
    reason = Failure.parent_said_so(run.failure, source=source)
    return Transition(run, asks=(due.instance.seq, reason), mail=Mail.DROP_IF_WAITING)


def compensation_returned(run: Run, due: Compensate, outcome: Returned) -> Transition:
    """A compensation has done its work; what it launched is waited for before the next one."""
    seq = run.seq + 1
    instance = due.instance
    record = Record(seq, due.step.name, StepKind.COMPENSATION, instance.iteration, run.attempt, undoes=instance.seq)
    after = changed(run, seq=seq, context=outcome.context, not_before=None)
    if _awaited(outcome.emissions):
        waiting = changed(after, compensation_seq=seq, handler_seq=None)
        return Transition(waiting, record, outcome.emissions, mail=Mail.DROP_IF_WAITING)
    return replace(undone(after, instance), record=record, emissions=outcome.emissions)


def compensation_raised(run: Run, due: Compensate, outcome: Raised, now: datetime, chance: float) -> Transition:
    """A compensation failed: it is tried again later if its policy allows, else the rollback has failed."""
    seq = run.seq + 1
    record = Record(
        seq,
        due.step.name,
        StepKind.COMPENSATION,
        due.instance.iteration,
        run.attempt,
        outcome.failure,
        undoes=due.instance.seq,
    )
    if due.step.compensate_retry.allows(run.attempt + 1, outcome.error):
        return _again(run, seq, record, due.step.compensate_retry, now, chance)
    change = rollback_failed(changed(run, seq=seq, context=outcome.context), outcome.failure)
    return replace(change, record=replace(record, failure=change.run.obstacle))


def compensation_failed(run: Run, due: CompensationFailed, now: datetime, chance: float) -> Transition:
    """Children of a compensation failed, and with them that attempt (behaviour Q46)."""
    if due.step.compensate_retry.allows(run.attempt + 1, due.failure.to_exception(lazily=True)):
        return _again(run, run.seq, None, due.step.compensate_retry, now, chance)
    return rollback_failed(run, due.failure)


def child_rollback_handled(run: Run, due: HandleChildRollbackFailure, outcome: Returned) -> Transition:
    """Children that could not be rolled back count as compensated: once what the handler launched has finished."""
    seq = run.seq + 1
    kind = StepKind.CHILD_FAILURE_HANDLER
    record = Record(
        seq,
        due.step.name,
        kind,
        due.instance.iteration,
        run.handled,
        due.failure,
        undoes=due.instance.seq,
        swallows=True,
    )
    after = changed(run, seq=seq, context=outcome.context, handled=run.handled + 1)
    if _awaited(outcome.emissions):
        waiting = changed(after, handler_seq=seq)
        return Transition(waiting, record, outcome.emissions, mail=Mail.DROP_IF_WAITING)
    return replace(handled(after, due.instance), record=record, emissions=outcome.emissions)


def handled(run: Run, instance: Instance) -> Transition:
    """Whatever could not be undone below an instance counts as compensated from now on (behaviour Q45)."""
    if run.compensation_seq is not None:  # it was the compensation's own: it has done what it could
        return undone(run, instance)
    return Transition(changed(run, handler_seq=None), consumes=instance.seq)


def child_rollback_not_handled(run: Run, due: HandleChildRollbackFailure, outcome: Raised) -> Transition:
    """The handler raised: the run cannot be rolled back."""
    seq = run.seq + 1
    kind = StepKind.CHILD_FAILURE_HANDLER
    record = Record(seq, due.step.name, kind, due.instance.iteration, run.handled, undoes=due.instance.seq)
    change = rollback_failed(changed(run, seq=seq, context=outcome.context), outcome.failure)
    return replace(change, record=replace(record, failure=change.run.obstacle))


def undone(run: Run, instance: Instance) -> Transition:
    """An instance is undone; the one before it is next."""
    after = changed(
        run,
        undo_seq=instance.seq - 1,
        compensation_seq=None,
        handler_seq=None,
        handled=0,
        attempt=0,
        not_before=None,
    )
    return Transition(after, undone=instance.seq)


def rolled_back(run: Run) -> Transition:
    """Every executed instance is undone."""
    return Transition(changed(run, state=RunState.ROLLED_BACK), mail=Mail.DROP)


def rollback_failed(run: Run, obstacle: Failure) -> Transition:
    """The rollback cannot go on; everything above stops and is told. Why the run was to roll back stays."""
    if run.launched_at is not None:
        obstacle = obstacle.with_launched_at(run.launched_at)
    return Transition(changed(run, state=RunState.ROLLBACK_FAILED, obstacle=obstacle), mail=Mail.DROP)


def parked(run: Run, reason: str, needs: str | None = None) -> Transition:
    """The run cannot go on before a worker comes that knows `needs`, or somebody says so."""
    return Transition(changed(run, state=RunState.PARKED, reason=reason, needs=needs), mail=Mail.DROP)
