"""What deadlines mean for a run: until when it has to commit, what is told of a late one, and when to look again."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from scoop_outbox._deadlines import NONE, Budget, Deadline, Deadlines, earlier
from scoop_outbox.core.run import Facts, Run, RunState, changed
from scoop_outbox.core.transition import Mail, Transition
from scoop_outbox.failure import Failure
from scoop_outbox.saga import Saga

MISSED_HAPPY_PATH, MISSED_ROLLBACK = "MissedHappyPathDeadline", "MissedRollbackDeadline"
"""Types of the failures of late runs: neutral names, and no classes."""


def deadline_of(saga: Saga, run: Run) -> Deadline | None:
    """Return until when a run has to commit: what came with its message, what its saga says, what it has set itself."""
    return earlier(run.deadlines.happy_path, kept_deadline(saga, run))


def kept_deadline(saga: Saga, run: Run) -> Deadline | None:
    """Return the deadline that is kept with a run for whoever has not its code: its saga's, and what it has set itself.

    What its saga said when it was kept last is no matter: the code at hand counts.
    """
    own = None if run.own_deadline is None else _without_saga(saga, run.own_deadline)
    if saga.timeouts is None or saga.timeouts.timeout is None or run.created_at is None:
        return own
    return earlier(saga.timeouts.resolve(run.created_at, saga.name).happy_path, own)


def _without_saga(saga: Saga, kept: Deadline) -> Deadline | None:
    """Return what a run has set itself, of a deadline that was kept with it."""
    names, ones = (saga.name, *saga.formerly), (kept, *kept.trace)
    if not any(one.source in names for one in ones):
        return kept
    own = None
    for one in ones:
        if one.source not in names:
            own = earlier(own, replace(one, trace=()))
    return own


def passed_on(saga: Saga, run: Run, now: datetime, *, shielded: bool = False) -> Deadlines:
    """Return the deadlines that go down with what a run launches.

    Args:
        saga: its saga.
        run: the run.
        now: the time, by the database's clock.
        shielded: whether it launches for a step that is shielded, or is so itself: then what it launches is not late.
    """
    if run.state is RunState.ROLLING_BACK:  # a compensation is bound by the budget alone (behaviour DL-10, Q77)
        if run.rollback_by is None:
            return NONE
        left = max((run.rollback_by - now).total_seconds(), _LEAST)
        return Deadlines(Deadline(run.rollback_by, _BUDGET), Budget(left, _BUDGET))
    if saga.timeouts is None and run.own_deadline is None and not shielded:
        return run.deadlines
    budget = None if saga.timeouts is None else saga.timeouts.budget(saga.name)
    rollback = Deadlines(rollback=budget).within(run.deadlines).rollback
    return Deadlines(None if shielded else deadline_of(saga, run), rollback)


_BUDGET = "the budget of the rollback"
_LEAST = 0.001


def rollback_by(saga: Saga, run: Run, now: datetime) -> datetime | None:
    """Return until when a rollback that begins now has to end; None when nobody has said so."""
    budget = passed_on(saga, changed(run, state=RunState.RUNNING), now).rollback
    own = None if budget is None else now + timedelta(seconds=budget.timeout)
    return min((at for at in (own, run.rollback_by) if at is not None), default=None)


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
    return Transition(run, expires=failure, mail=Mail.DROP_IF_WAITING)


def dated(change: Transition, saga: Saga, before: Run, facts: Facts, now: datetime) -> Transition:
    """Return a transition with what deadlines add: until when a rollback that begins may take, and when to look again.

    A look drops all mail of the run, timers included. A deadline that is over wakes once, after the callback that has
    set it: whoever goes on all the same, because it is shielded, would be woken for ever.

    Args:
        change: what becomes of the run.
        saga: its saga.
        before: as the run was.
        facts: what was known of it.
        now: when a callback has failed, or when the run was claimed.
    """
    run = change.run
    if run.state is RunState.ROLLING_BACK and _begins_rollback(before):
        by = rollback_by(saga, before, now)
        if by is not None:
            run = changed(run, rollback_by=by)
            change = replace(change, run=run)
    if (
        (run.state.ended and run.state is not RunState.PARKED)
        or run.giving_up is not None
        or change.mail in (Mail.KEEP, Mail.LOOK)
    ):
        return change
    dates = [change.wake_at]
    if run.state is RunState.ROLLING_BACK:
        dates.append(run.rollback_by)
    elif run.undo_seq is None:
        deadline = deadline_of(saga, run)
        dates.append(None if deadline is None else deadline.at)
    if not run.state.ended:
        dates += [facts.child_deadline, *(one.child_deadline for one in change.emissions)]
    called = change.record is not None
    ahead = [at for at in dates if at is not None and (called or at > facts.now)]
    return replace(change, wake_at=min(ahead)) if ahead else change


def _begins_rollback(before: Run) -> bool:
    """Tell whether a rollback begins: by the run itself, because it was told to, or anew because it was retried."""
    if before.state is RunState.RUNNING:
        return True
    if before.state is not RunState.ROLLING_BACK:
        return False
    untouched = before.attempt == 0 and before.compensation_seq is None and before.handler_seq is None
    return before.rollback_by is None or (before.undo_seq == before.seq and untouched)
