"""What a run does next: one pure function over facts, and the only place that knows the rule."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from scoop_outbox.core.deadline import missed, missed_rollback
from scoop_outbox.core.decision import (
    AskChildren,
    CancelChildren,
    CancelSiblings,
    Commit,
    Compensate,
    CompensationFailed,
    Complete,
    Decision,
    EndRollbackFailed,
    EndRolledBack,
    ExpireChildren,
    Finalise,
    Finalised,
    HandleChildFailure,
    HandleChildRollbackFailure,
    Handled,
    Invoke,
    LeaveBehind,
    Park,
    PassOver,
    RollBack,
    Undone,
    Wait,
)
from scoop_outbox.core.run import Body, Child, Facts, Instance, Outside, Run, RunState, StepKind
from scoop_outbox.external import LOOK_AGAIN, External
from scoop_outbox.failure import ChildRollbackFailed, Failure, RollbackRequested
from scoop_outbox.policy import ROLLBACK_HANDLER_CALLS
from scoop_outbox.saga import Saga
from scoop_outbox.step import Step

SIBLING_FAILED = "SiblingFailed"
"""Type of what children are told of which another one has failed: a neutral name, and no class."""
STRATEGY_GAVE_UP = "StrategyGaveUp"
"""Type of what a run gives up for when its strategy does; likewise."""
STRATEGY_PAUSE = timedelta(milliseconds=100)
"""The shortest time after which a strategy is asked again: one that always says `now` must not keep a worker busy."""


def decide(saga: Saga, run: Run, facts: Facts, source: str) -> Decision:
    """Return what `run` does next.

    Args:
        saga: the saga as this process declares it, which may differ from the one that started the run.
        run: the run, locked.
        facts: read after the lock was granted.
        source: names this worker in failures that are made here: `saga[worker id]`.
    """
    if facts.outside is not None and run.state is RunState.RUNNING:
        return _as_said(saga, facts.outside)
    reason = giving_up(saga, run, facts)
    if reason is not None and facts.untold:
        return CancelChildren(reason)
    if facts.child_deadline is not None and facts.child_deadline <= facts.now:
        return ExpireChildren(facts.child_deadline)
    if facts.first_failure is not None and facts.untold:
        return CancelSiblings(sibling_failed(facts.first_failure, source))
    if facts.open_children:
        return _wait_for_children(saga, facts)
    if reason is not None:
        return RollBack(_given_up(reason, source))
    if run.state is RunState.ROLLING_BACK and _has_something_left(facts):
        told = strategy_gives_up(saga, facts)
        if told is not None:
            return EndRollbackFailed(_given_up(told, source))
    if _has_no_time_left(run, facts):
        return EndRollbackFailed(missed_rollback(run, source))
    if run.not_before is not None and facts.now < run.not_before and not _failed_below_a_sleep(run, facts):
        return Wait(_look(saga, facts, run.not_before))
    if run.state is RunState.RUNNING:
        return _forward(saga, run, facts, source)
    if run.state is RunState.ROLLING_BACK:
        return _backward(saga, run, facts, source)
    return Wait()


def _wait_for_children(saga: Saga, facts: Facts) -> Decision:
    """Return how a run waits for its children: all of them, unless its strategy leaves some behind."""
    if saga.strategy is None or facts.outlook is None:
        return Wait()
    left = tuple(child for child in saga.strategy.leave_behind(facts.outlook) if not child.started)
    if left:
        return LeaveBehind(left)
    return Wait(_look(saga, facts))


def _look(saga: Saga, facts: Facts, until: datetime | None = None) -> datetime | None:
    """Return when a run is looked at that waits until then, or for news: earlier, if its strategy says so."""
    if saga.strategy is None or facts.outlook is None:
        return until
    again = saga.strategy.look_again(facts.outlook)
    soon = facts.now + STRATEGY_PAUSE
    return min((max(at, soon) for at in (again, until) if at is not None), default=None)


def strategy_gives_up(saga: Saga, facts: Facts) -> Failure | None:
    """Return why the strategy of a saga gives up, if it does."""
    if saga.strategy is None or facts.outlook is None:
        return None
    strategy, outlook = saga.strategy, facts.outlook
    reason = strategy.give_up_rollback(outlook) if outlook.rolling_back else strategy.give_up(outlook)
    if reason is None:
        return None
    return Failure(STRATEGY_GAVE_UP, reason, f"{type(saga.strategy).__name__} of {saga.name}").within_limits()


def _as_said(saga: Saga, outside: Outside) -> Decision:
    """Return how an external participant ends: as it was said, also if it was to give up and had not done so yet."""
    if outside.failure is not None:
        return RollBack(outside.failure)
    return Complete(saga.steps[0], outside.result)


def _failed_below_a_sleep(run: Run, facts: Facts) -> bool:
    """Tell whether children have failed that were launched by a sleep: they do not wait until it is over."""
    return run.state is RunState.RUNNING and run.attempt == 0 and bool(facts.failed_children)


def _has_no_time_left(run: Run, facts: Facts) -> bool:
    """Tell whether a rollback has taken longer than it may, and something is left to be undone."""
    return run.rollback_by is not None and run.rollback_by <= facts.now and _has_something_left(facts)


def _has_something_left(facts: Facts) -> bool:
    """Tell whether a run that rolls back has something to undo, or to finalise."""
    return facts.instance is not None or facts.body is not None


def giving_up(saga: Saga, run: Run, facts: Facts) -> Failure | None:
    """Return why a run gives up; None when it does not: it need not, or is shielded for now."""
    if run.state is not RunState.RUNNING:
        return None
    if run.giving_up is not None:
        return run.giving_up
    reason = facts.cancellation
    if reason is None and facts.deadline is not None and facts.deadline.at <= facts.now:
        reason = missed(facts.deadline)
    if reason is None:
        reason = strategy_gives_up(saga, facts)
    if reason is None or saga.shield:
        return None
    if run.finaliser_seq is not None and facts.open_children:
        return None  # a finaliser is called however its step is left: what it has launched ends, too
    step = None if run.step is None else saga.get(run.step)
    if step is not None and step.options.shield and (facts.open_children or facts.failed_children):
        return None  # what a shielded step has launched belongs to it, and so does what handles the failures of that
    return reason


def _given_up(reason: Failure, source: str) -> Failure:
    """Return what a run that gives up fails with: one that was to be rolled back before it began did not give up."""
    return reason if reason.type == RollbackRequested.__name__ else Failure.gave_up([reason], source=source)


def _forward(saga: Saga, run: Run, facts: Facts, source: str) -> Decision:
    failed = facts.failed_children
    if failed and run.step is not None:
        failure = child_failure(run.step, failed, source)
        step = saga.get(run.step)
        if step is None:
            return missing(saga, run.step)
        if step.child_failure_handler is None:
            return RollBack(failure)
        return HandleChildFailure(step, step.child_failure_handler, failure)
    if facts.body is not None:
        return _finalise(saga, run, facts.body, source)
    if isinstance(saga, External):
        return Wait(facts.now + LOOK_AGAIN)
    if run.instance == 0 and run.next_step is None:
        return _begin(saga, run, facts)
    if run.next_step is None:
        return Commit()
    step = saga.get(run.next_step)
    if step is None:
        return missing(saga, run.next_step)
    return Invoke(step, run.iteration + 1 if run.next_step == run.step else 0)


def _begin(saga: Saga, run: Run, facts: Facts) -> Decision:
    """Return how a run that has committed nothing begins."""
    if run.seq == 0 and saga.strategy is not None and facts.outlook is not None:
        at = saga.strategy.begin(facts.outlook)
        if at is not None and at > facts.now:
            return Wait(_look(saga, facts, at))
    return Invoke(saga.steps[0], 0)


def _finalise(saga: Saga, run: Run, body: Body, source: str) -> Decision:
    """Return what is to be done about the finaliser of an execution whose children have ended."""
    if body.children:
        failure = child_failure(finaliser_name(body), body.children, source)
        return RollBack(failure) if run.state is RunState.RUNNING else EndRollbackFailed(failure)
    if run.finaliser_seq is not None:
        return Finalised()
    step = saga.get(body.step)
    if step is None:
        return missing(saga, body.step)
    return Finalised() if step.finaliser is None else Finalise(step, step.finaliser, body)


def _backward(saga: Saga, run: Run, facts: Facts, source: str) -> Decision:
    if facts.body is not None:
        return _finalise(saga, run, facts.body, source)
    if facts.instance is None:
        return EndRolledBack() if run.unresolved is None else EndRollbackFailed(run.unresolved)
    due = _undo(saga, run, facts.instance, source)
    if isinstance(due, EndRollbackFailed) and saga.rollback_failure == "continue":
        return PassOver(facts.instance, due.failure)
    return due


def _undo(saga: Saga, run: Run, instance: Instance, source: str) -> Decision:
    """Return what is to be done next to undo an instance, or that it cannot be undone."""
    step = saga.get(instance.step)
    if run.handler_seq is not None:
        if not instance.handler_children:
            return Handled(instance)
        return _handle_again(step, run, instance, source) or missing(saga, instance.step)
    if run.compensation_seq is not None:
        if not instance.compensation_children:
            return Undone(instance)
        if step is None:
            return missing(saga, instance.step)
        failure = child_failure(undo_name(instance), instance.compensation_children, source)
        handler = step.child_rollback_failure_handler
        if handler is None or step.compensate_retry.allows(run.attempt + 1, failure.to_exception(lazily=True)):
            return CompensationFailed(step, instance, failure)
        return HandleChildRollbackFailure(step, handler, instance, failure)
    if step is None:  # in which order its children are undone is not known, either
        return missing(saga, instance.step)
    reverse = step.options.rollback_children == "reverse"
    # Messages before one that could not be rolled back are left, as earlier instances are, unless all goes on (Q75).
    held_up = reverse and instance.stuck and saga.rollback_failure == "stop"
    if instance.askable and not held_up:
        return AskChildren(instance, reverse)
    if instance.stuck:
        if run.failure is not None and all(child.delivered for child in instance.stuck):
            # They are what the run rolls back for: they were delivered on the forward path (behaviour Q5).
            return EndRollbackFailed(run.failure)
        failure = rollback_failure(undo_name(instance, children=True), instance.stuck, source, run.failure)
        return _handle(step, run, instance, failure)
    if instance.kind is StepKind.STEP and step.compensation is not None:
        return Compensate(step, step.compensation, instance)
    return Undone(instance)


def _handle(step: Step, run: Run, instance: Instance, failure: Failure) -> Decision:
    handler = step.child_rollback_failure_handler
    if handler is None or run.handled >= ROLLBACK_HANDLER_CALLS:
        return EndRollbackFailed(failure)
    return HandleChildRollbackFailure(step, handler, instance, failure)


def _handle_again(step: Step | None, run: Run, instance: Instance, source: str) -> Decision | None:
    """Return what to do when what a handler launched has failed, and with it that attempt (behaviour Q73).

    Nothing is compensated yet: what the handler was called for before is told again, below what is new.
    """
    if step is None:
        return None
    phase = undo_name(instance, children=run.compensation_seq is None)
    failed, before = instance.handler_children, instance.handled
    if any(child.stuck for child in failed):
        return _handle(step, run, instance, rollback_failure(phase, failed, source, before))
    causes = [child.failure for child in failed if child.failure is not None]
    if before is not None:
        causes.append(before)
    still_stuck = before is not None and before.type == ChildRollbackFailed.__name__
    tell = Failure.child_rollback_failed if still_stuck else Failure.child_rolled_back
    return _handle(step, run, instance, tell(phase, causes, source=source))


def sibling_failed(child: Child, source: str) -> Failure:
    """Return why the other children of a step that fails fast are to give up."""
    what = "" if child.failure is None else f": {child.failure.type}"
    return Failure(SIBLING_FAILED, f"saga {child.saga!r} failed{what}", source).within_limits()


def child_failure(step: str, failed: Sequence[Child], source: str) -> Failure:
    """Return what a run fails with when children launched by `step` failed."""
    if any(child.stuck for child in failed):
        return rollback_failure(step, failed, source)
    causes = tuple(child.failure for child in failed if child.failure is not None)
    return Failure.child_rolled_back(step, causes, source=source)


def rollback_failure(phase: str, failed: Sequence[Child], source: str, reason: Failure | None = None) -> Failure:
    """Return the failure of a run some of whose failed children could not be rolled back (behaviour Q59).

    Args:
        phase: what they were children of.
        failed: they, and those that failed with them.
        source: who says so.
        reason: what the run itself rolls back for.

    Returns:
        First why each could not be rolled back, then why they failed, then the reason, each unless it is in there.
    """
    causes = [told for child in failed if child.stuck and (told := child.obstacle or child.failure) is not None]
    why: list[Failure] = []
    for child in failed:
        failure, obstacle = child.failure, child.obstacle
        if failure is None or (child.stuck and (obstacle is None or obstacle.contains(failure))):
            continue
        # One that was told to roll back has nothing to say but what it was told.
        if reason is None or not failure.contains(reason):
            why.append(failure)
    if why:
        causes.append(Failure.children_rolled_back(why, source=source))
    if reason is not None and not any(cause.contains(reason) for cause in causes):
        causes.append(reason)
    return Failure.child_rollback_failed(phase, causes, source=source)


def undo_name(instance: Instance, *, children: bool = False) -> str:
    """Return how a phase of a rollback is called in failures."""
    name = f"Rollback of {instance.step}[{instance.iteration}]"
    return f"{name} (rolling back child scopes)" if children else name


def finaliser_name(body: Body) -> str:
    """Return how the finaliser of an execution is called in failures."""
    return f"Finaliser of {body.step}[{body.iteration}]"


def missing(saga: Saga, step: str) -> Park:
    """Return that a run needs a step which is not in the code."""
    return Park(
        f"no living worker knows step {step!r} of saga {saga.name!r}: start one whose version has it, and the run goes "
        "on by itself",
        step,
    )
