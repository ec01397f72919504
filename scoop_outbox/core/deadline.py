"""What deadlines mean for a run: until when it has to commit, what is told of a late one, and when to look again."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from scoop_outbox._deadlines import Deadline, Deadlines, earlier
from scoop_outbox.core.run import Facts, Run, RunState, changed
from scoop_outbox.core.transition import Mail, Transition
from scoop_outbox.failure import Failure, RollbackRequested
from scoop_outbox.saga import Saga

MISSED_HAPPY_PATH, MISSED_ROLLBACK = "MissedHappyPathDeadline", "MissedRollbackDeadline"
"""Types of the failures of late runs: neutral names, and no classes."""


def deadline_of(saga: Saga, run: Run) -> Deadline | None:
    """Return until when a run has to commit: what came with its message, what its saga says, what it has set itself."""
    own = run.own_deadline
    if saga.timeouts is not None and saga.timeouts.timeout is not None and run.created_at is not None:
        of_saga = saga.timeouts.resolve(run.created_at, saga.name)
        own = earlier(of_saga.happy_path, own)
    return earlier(run.deadlines.happy_path, own)


def passed_on(saga: Saga, run: Run) -> Deadlines:
    """Return the deadlines that go down with what a run launches."""
    if run.state is RunState.ROLLING_BACK:  # a compensation is bound by the budget alone (behaviour DL-10, Q77)
        return Deadlines(None if run.rollback_by is None else Deadline(run.rollback_by, "the budget of the rollback"))
    if saga.timeouts is None and run.own_deadline is None:
        return run.deadlines
    budget = None if saga.timeouts is None else saga.timeouts.budget(saga.name)
    return replace(Deadlines(rollback=budget).within(run.deadlines), happy_path=deadline_of(saga, run))


def rollback_by(saga: Saga, run: Run, now: datetime) -> datetime | None:
    """Return until when a rollback that begins now has to end; None when nobody has said so."""
    budget = passed_on(saga, run).rollback
    return None if budget is None else now + timedelta(seconds=budget.timeout)


def missed(deadline: Deadline) -> Failure:
    """Return what is told of a run that has missed a deadline (behaviour DL-13)."""
    return Failure(MISSED_HAPPY_PATH, deadline.missed, deadline.source).within_limits()


def missed_rollback(run: Run, source: str) -> Failure:
    """Return why the rollback of a run has failed that has taken longer than it may."""
    assert run.rollback_by is not None  # noqa: S101 - it has missed it
    text = f"Missed rollback deadline at {run.rollback_by.astimezone(UTC).isoformat()}"
    causes = [Failure(MISSED_ROLLBACK, text, source)] + ([] if run.failure is None else [run.failure])
    return Failure.gave_up(causes, source=source)


def expire_children(run: Run, deadline: datetime, source: str) -> Transition:
    """End children that have not started by a deadline of their own; the others are waited for."""
    failure = Failure.gave_up([missed(Deadline(deadline, source))], source=source)
    return Transition(run, expires=(deadline, failure), mail=Mail.DROP_IF_WAITING)


def _begins_rollback(before: Run) -> bool:
    """Tell whether a run is the outermost of a rollback that begins: by itself, or because somebody requested it."""
    if before.state is RunState.RUNNING:
        return True
    requested = before.failure is not None and before.failure.type == RollbackRequested.__name__
    return before.state is RunState.ROLLING_BACK and requested and before.rollback_by is None


def dated(change: Transition, saga: Saga, before: Run, facts: Facts) -> Transition:
    """Return a transition with what deadlines add: until when a rollback that begins may take, and when to look again.

    A look drops all mail of the run, timers included. A deadline that is over does not wake: whoever goes on all the
    same, because it is shielded, would be woken for ever.

    Args:
        change: what becomes of the run.
        saga: its saga.
        before: as the run was.
        facts: what was known of it.
    """
    run = change.run
    if run.state is RunState.ROLLING_BACK and _begins_rollback(before):
        by = rollback_by(saga, changed(before, state=RunState.RUNNING), facts.now)
        if by is not None:
            run = changed(run, rollback_by=by)
            change = replace(change, run=run)
    if run.state.ended or run.giving_up is not None or change.mail is Mail.KEEP:
        return change
    dates = [change.wake_at, run.rollback_by, facts.child_deadline]
    if run.state is RunState.RUNNING:
        deadline = deadline_of(saga, run)
        dates.append(None if deadline is None else deadline.at)
    dates += [one.deadlines.happy_path.at for one in change.emissions if one.deadlines.happy_path is not None]
    ahead = [at for at in dates if at is not None and at > facts.now]
    return replace(change, wake_at=min(ahead)) if ahead else change
