"""Backward: what becomes of a run that rolls back, instance by instance, the last one first."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from scoop_outbox.core.decision import (
    AskChildren,
    Compensate,
    CompensationFailed,
    HandleChildRollbackFailure,
    PassOver,
)
from scoop_outbox.core.run import Instance, Run, RunState, StepKind, changed
from scoop_outbox.core.transition import Mail, Raised, Record, Returned, Transition, awaited, retried
from scoop_outbox.failure import Failure
from scoop_outbox.saga import Saga

SEVERAL = "RollbackFailed"
"""Type of the failure of a run of which several parts could not be undone: a neutral name, and no class."""


def ask_children(run: Run, due: AskChildren, source: str) -> Transition:
    """Order the committed children of an instance to roll back, and wait for them."""
    assert run.failure is not None  # noqa: S101 - no run rolls back for nothing
    reason = Failure.parent_said_so(run.failure, source=source)
    return Transition(run, asks=(due.instance.seq, reason), reverse=due.reverse, mail=Mail.DROP_IF_WAITING)


def compensation_returned(run: Run, due: Compensate, outcome: Returned) -> Transition:
    """A compensation has done its work; what it launched is waited for before the next one."""
    seq = run.seq + 1
    instance = due.instance
    record = Record(seq, due.step.name, StepKind.COMPENSATION, instance.iteration, run.attempt, undoes=instance.seq)
    after = changed(run, seq=seq, context=outcome.context, not_before=None)
    if awaited(outcome.emissions):
        waiting = changed(after, compensation_seq=seq, handler_seq=None)
        return Transition(waiting, record, outcome.emissions, mail=Mail.DROP_IF_WAITING)
    return replace(undone(after, instance), record=record, emissions=outcome.emissions)


def compensation_raised(
    saga: Saga, run: Run, due: Compensate, outcome: Raised, now: datetime, chance: float
) -> Transition:
    """A compensation failed: it is tried again later if its policy allows, else the instance cannot be undone."""
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
        return retried(run, seq, record, due.step.compensate_retry, now, chance)
    return _broken(saga, changed(run, seq=seq, context=outcome.context), due.instance, outcome.failure, record)


def compensation_failed(saga: Saga, run: Run, due: CompensationFailed, now: datetime, chance: float) -> Transition:
    """Children of a compensation failed, and with them that attempt (behaviour Q46)."""
    if due.step.compensate_retry.allows(run.attempt + 1, due.failure.to_exception(lazily=True)):
        return retried(run, run.seq, None, due.step.compensate_retry, now, chance)
    return _broken(saga, run, due.instance, due.failure)


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
    if awaited(outcome.emissions):
        waiting = changed(after, handler_seq=seq)
        return Transition(waiting, record, outcome.emissions, mail=Mail.DROP_IF_WAITING)
    return replace(handled(after, due.instance), record=record, emissions=outcome.emissions)


def handled(run: Run, instance: Instance) -> Transition:
    """Whatever could not be undone below an instance counts as compensated from now on (behaviour Q45).

    In reverse, the children of the message before come next: calls for those are counted anew.
    """
    if run.compensation_seq is not None:  # it was the compensation's own: it has done what it could
        return undone(run, instance)
    calls = 0 if instance.askable else run.handled
    return Transition(changed(run, handler_seq=None, handled=calls), consumes=instance.seq)


def child_rollback_not_handled(saga: Saga, run: Run, due: HandleChildRollbackFailure, outcome: Raised) -> Transition:
    """The handler raised: the instance cannot be undone."""
    seq = run.seq + 1
    kind = StepKind.CHILD_FAILURE_HANDLER
    record = Record(seq, due.step.name, kind, due.instance.iteration, run.handled, undoes=due.instance.seq)
    return _broken(saga, changed(run, seq=seq, context=outcome.context), due.instance, outcome.failure, record)


def _broken(saga: Saga, run: Run, instance: Instance, why: Failure, record: Record | None = None) -> Transition:
    """Return what becomes of a run one of whose instances cannot be undone."""
    if saga.rollback_failure == "continue":
        return passed_over(run, PassOver(instance, why), record)
    return rollback_failed(run, why, record)


def passed_over(run: Run, due: PassOver, record: Record | None = None) -> Transition:
    """An instance cannot be undone, and stays as it is; the one before it is next all the same (behaviour Q74)."""
    why = due.failure
    after = _above(run, due.instance)
    if record is not None:
        record = replace(record, failure=why)
    above = run.undo_seq if run.undo_from is None else run.undo_from
    return Transition(changed(after, undo_from=above, unresolved=_together(run.unresolved, why)), record)


def _together(before: Failure | None, why: Failure) -> Failure:
    """Return why parts of a run could not be undone: what is known already, and one more."""
    if before is None or before == why:
        return why
    causes = before.causes if before.type == SEVERAL else (before,)
    return Failure(SEVERAL, "several parts could not be undone", why.source, causes=(*causes, why)).within_limits()


def undone(run: Run, instance: Instance) -> Transition:
    """An instance is undone. The one before it is next; with the first one the rollback ends, in one transaction."""
    after = _above(run, instance)
    change = rolled_back(after) if instance.seq == 1 and run.unresolved is None else Transition(after)
    return replace(change, undone=instance.seq)


def _above(run: Run, instance: Instance) -> Run:
    """Return a run one instance of which has been dealt with."""
    return changed(
        run,
        undo_seq=instance.seq - 1,
        compensation_seq=None,
        handler_seq=None,
        handled=0,
        attempt=0,
        not_before=None,
    )


def rolled_back(run: Run) -> Transition:
    """Every executed instance is undone."""
    return Transition(changed(run, state=RunState.ROLLED_BACK), mail=Mail.DROP)


def rollback_failed(run: Run, obstacle: Failure, record: Record | None = None) -> Transition:
    """The rollback cannot go on; everything above stops and is told. Why the run was to roll back stays.

    Args:
        run: the run.
        obstacle: why.
        record: the execution that has failed so, if one has: one failure, kept once.
    """
    if run.launched_at is not None:
        obstacle = obstacle.with_launched_at(run.launched_at)
    if record is not None:
        record = replace(record, failure=obstacle)
    obstacle = _together(run.unresolved, obstacle)
    return Transition(changed(run, state=RunState.ROLLBACK_FAILED, obstacle=obstacle), record, mail=Mail.DROP)
