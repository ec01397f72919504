"""Forward: what becomes of a run that executes its steps, and handles the failures of children."""

from __future__ import annotations

from datetime import datetime

from scoop_outbox._sleep import Asleep
from scoop_outbox.core.deadline import kept_deadline
from scoop_outbox.core.decision import Complete, HandleChildFailure, Invoke
from scoop_outbox.core.run import Run, RunState, StepKind, changed
from scoop_outbox.core.transition import (
    Mail,
    Raised,
    Record,
    Returned,
    Transition,
    awaited,
    recorded,
    retried,
    roll_back,
)
from scoop_outbox.errors import StepError
from scoop_outbox.external import External
from scoop_outbox.failure import Failure
from scoop_outbox.saga import Saga
from scoop_outbox.step import GoTo, Repeat


def next_step(saga: Saga, step: str, value: object) -> str | None:
    """Return the name of the step that follows `step`, which returned `value`.

    Raises:
        StepError: `value` is nothing that a step may return, or names a step that the saga does not have.
    """
    match value:
        case None | Asleep():
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


def step_returned(saga: Saga, run: Run, due: Invoke, outcome: Returned, now: datetime) -> Transition:
    """A step has done its work: the run goes on, waits for children, sleeps, or has finished."""
    follows = next_step(saga, due.step.name, outcome.value)
    waits = awaited(outcome.emissions)
    options = due.step.options
    yields = not (saga.shield or options.shield or options.complete_on_give_up)
    # What is committed whatever is asked of the run does not end it: whether it gives up is looked at afterwards.
    finishes = due.step.finaliser is None
    until = outcome.value.wakes_at(now) if isinstance(outcome.value, Asleep) else None
    rests = waits or until is not None
    finished = follows is None and not rests and finishes and (yields or saga.shield)
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
        not_before=until,
        context=outcome.context,
        result=outcome.result or run.result,
        own_deadline=run.own_deadline if outcome.asks is None else outcome.deadline,
        body_seq=None if finishes else seq,
    )
    return Transition(
        after,
        Record(seq, due.step.name, StepKind.STEP, due.iteration, run.attempt),
        outcome.emissions,
        mail=Mail.DROP_IF_WAITING if waits else Mail.DROP if finished or rests else Mail.KEEP,
        wake_at=until,
        yields=yields,
    )


def step_raised(run: Run, due: Invoke, outcome: Raised, now: datetime, chance: float) -> Transition:
    """A step failed: it is tried again later if its policy allows, else the run rolls back."""
    seq = run.seq + 1
    record = Record(seq, due.step.name, StepKind.STEP, due.iteration, run.attempt, outcome.failure)
    failed = run.attempt + 1
    # One that belongs to the transaction of the step has been called in it, unless that was gone.
    called = due.step.options.finally_transaction == "step" and outcome.open
    body = None if called or due.step.finaliser is None else seq
    if due.step.retry.allows(failed, outcome.error):
        if body is None:
            return retried(run, seq, record, due.step.retry, now, chance)
        return Transition(changed(run, seq=seq, attempt=failed, not_before=None, body_seq=body), record)
    return recorded(roll_back(changed(run, seq=seq, body_seq=body), outcome.failure, outcome.context), record)


def step_discarded(run: Run, due: Invoke, reason: Failure) -> Transition:
    """What a step did was undone, for its run gives up: it was left all the same, and its finaliser is called."""
    seq = run.seq + 1
    record = Record(seq, due.step.name, StepKind.STEP, due.iteration, run.attempt, reason)
    return Transition(changed(run, seq=seq, body_seq=seq), record)


def handler_returned(saga: Saga, run: Run, due: HandleChildFailure, outcome: Returned) -> Transition:
    """Child failures were handled: the run goes on as the step had chosen, or as the handler chose instead."""
    seq = run.seq + 1
    follows = run.next_step if outcome.value is None else next_step(saga, due.step.name, outcome.value)
    after = changed(
        run,
        next_step=follows,
        seq=seq,
        # What the next step finds as results is the handler's if it launched anything, else the step's (behaviour Q52).
        instance=seq if awaited(outcome.emissions) else run.instance,
        handled=run.handled + 1,
        context=outcome.context,
        result=outcome.result or run.result,
        own_deadline=run.own_deadline if outcome.asks is None else outcome.deadline,
    )
    return Transition(
        after,
        Record(seq, due.step.name, StepKind.CHILD_FAILURE_HANDLER, run.iteration, run.handled),
        outcome.emissions,
        consumes=run.instance,
        mail=Mail.DROP_IF_WAITING if awaited(outcome.emissions) else Mail.KEEP,
        yields=not (saga.shield or due.step.options.shield),
    )


def handler_raised(run: Run, due: HandleChildFailure, outcome: Raised) -> Transition:
    """A child-failure handler raised: the run rolls back, beginning with the very step."""
    seq = run.seq + 1
    kind = StepKind.CHILD_FAILURE_HANDLER
    record = Record(seq, due.step.name, kind, run.iteration, run.handled, outcome.failure)
    return recorded(roll_back(changed(run, seq=seq), outcome.failure, outcome.context), record)


def waits(saga: Saga, run: Run, until: datetime | None) -> Transition:
    """The run waits. One whose work is done outside keeps its saga's deadline: nothing else is ever written of it."""
    if isinstance(saga, External) and run.state is RunState.RUNNING:
        run = changed(run, own_deadline=kept_deadline(saga, run))
    return Transition(run, mail=Mail.DROP, wake_at=until)


def completed(run: Run, due: Complete) -> Transition:
    """Somebody outside has completed an external participant: that is its one execution, which can be undone.

    It commits also if the run was to give up: who completed it was told that it counts.
    """
    seq = run.seq + 1
    after = changed(
        run,
        state=RunState.COMMITTED,
        step=due.step.name,
        next_step=None,
        seq=seq,
        instance=seq,
        iteration=0,
        attempt=0,
        not_before=None,
        result=due.result,
    )
    return Transition(after, Record(seq, due.step.name, StepKind.STEP, 0, 0), mail=Mail.DROP)


def committed(saga: Saga, run: Run) -> Transition:
    """The last step and everything below it has finished."""
    return Transition(changed(run, state=RunState.COMMITTED), mail=Mail.DROP, yields=not saga.shield)
