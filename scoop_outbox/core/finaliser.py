"""Finalisers: what becomes of a run whose step has been left, however that was, and has something to clean up.

Each execution of the step that has committed or failed has exactly one committed execution of its finaliser: the run
remembers the execution until then, in the transaction that ends it (behaviour Q27). What a finaliser launches on the
way forward is undone like that of a step; what it launches while the run rolls back stays, like that of a compensation.
"""

from __future__ import annotations

from datetime import datetime

from scoop_outbox.core.backward import rollback_failed
from scoop_outbox.core.decision import Finalise
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
from scoop_outbox.failure import Failure


def finaliser_returned(run: Run, due: Finalise, outcome: Returned, now: datetime, chance: float) -> Transition:
    """A finaliser has done its work: the run goes on where it was, once what was launched has ended."""
    waits, seq = awaited(outcome.emissions), run.seq + 1
    forward = run.state is RunState.RUNNING
    # A step that has failed is tried again from now on: failed attempts of the two count together.
    again = now + due.step.retry.delay(run.attempt, chance) if forward and due.body.raised(run) else None
    after = changed(
        run,
        seq=seq,
        attempt=0 if again is None else run.attempt,
        not_before=again,
        body_seq=due.body.seq if waits else None,
        finaliser_seq=seq if waits else None,
        context=outcome.context,
        result=(outcome.result or run.result) if forward else run.result,
        own_deadline=outcome.deadline if forward and outcome.asks is not None else run.own_deadline,
    )
    mail = Mail.DROP_IF_WAITING if waits else Mail.KEEP if again is None else Mail.DROP
    return Transition(after, _record(run, due), outcome.emissions, mail=mail, wake_at=again)


def finaliser_raised(run: Run, due: Finalise, outcome: Raised, now: datetime, chance: float) -> Transition:
    """A finaliser failed: on the way forward its step has failed, and it is called again before anything is undone."""
    record = _record(run, due, outcome.failure)
    forward = run.state is RunState.RUNNING
    retry = due.step.retry if forward else due.step.compensate_retry
    if retry.allows(run.attempt + 1, outcome.error):
        return retried(run, record.seq, record, retry, now, chance)
    if forward:
        return recorded(roll_back(changed(run, seq=record.seq), outcome.failure, outcome.context), record)
    return rollback_failed(changed(run, seq=record.seq, context=outcome.context), outcome.failure, record)


def finalised(run: Run) -> Transition:
    """What a finaliser launched has finished, or there is no finaliser any more."""
    return Transition(changed(run, body_seq=None, finaliser_seq=None))


def _record(run: Run, due: Finalise, failure: Failure | None = None) -> Record:
    body = due.body
    numbers = (body.iteration, run.attempt)
    return Record(run.seq + 1, body.step, StepKind.FINALISER, *numbers, failure, undoes=body.seq)
