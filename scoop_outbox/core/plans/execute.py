"""The plan of executing a run: claim, decide, call, settle. The rules are in `decide`, `forward` and `backward`."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from enum import Enum, auto
from typing import Any

from scoop_outbox._failure.traceback import keep_root
from scoop_outbox._sleep import FixedSleep
from scoop_outbox.core import backward, decision, finaliser, forward, transition
from scoop_outbox.core.deadline import dated, expire_children
from scoop_outbox.core.decide import decide, giving_up
from scoop_outbox.core.decision import Decision
from scoop_outbox.core.plans.claim import Claim, Executor, claim
from scoop_outbox.core.plans.deadlines import date_outcome
from scoop_outbox.core.plans.placement import place_run
from scoop_outbox.core.plans.required_handlers import check_handlers
from scoop_outbox.core.plans.settle import settle
from scoop_outbox.core.plans.strategy import expect_participants
from scoop_outbox.core.run import Body, ChildState, changed
from scoop_outbox.core.statement import (
    READ_CLOCK,
    ROLLBACK,
    ROLLBACK_TO_SAVEPOINT,
    Call,
    CallOutcome,
    Checkpoint,
    Interrupt,
    Plan,
    Refused,
    ask,
)
from scoop_outbox.core.transition import Mail, Raised, Returned, Transition
from scoop_outbox.errors import RunCancelled, StepError, UnhandledMessage
from scoop_outbox.external import External
from scoop_outbox.failure import Failure
from scoop_outbox.scope import Result
from scoop_outbox.step import Callback, Step, is_async

_NO_SAVEPOINT = "3B001"

STEPS_IN_A_ROW = 32
"""How many steps of one run a slot executes before it looks at other runs: a run that repeats must not starve them."""


class Execution(Enum):
    """How far `execute` got."""

    NOTHING = auto()  # another worker holds the run, or it is none of ours
    DONE = auto()
    OTHER_COLOUR = auto()  # the next callback is for the other driver


def execute(run_id: uuid.UUID, executor: Executor) -> Plan[Execution]:
    """Execute a run as far as it goes: one transaction a step, and in each exactly one thing."""
    claimed = yield from claim(run_id, executor)
    if claimed is None:
        return Execution.NOTHING
    for count in range(1, STEPS_IN_A_ROW + 1):
        due = decide(claimed.saga, claimed.run, claimed.facts, claimed.source)
        mine = executor.deployment.mine.get(claimed.run.saga)
        if isinstance(due, decision.Park) or (mine is not None and claimed.run.version != mine.id):
            placed = yield from place_run(claimed, due, executor)
            if placed is None:
                return Execution.NOTHING
            due = placed
        call = _call(due, claimed)
        outcome: CallOutcome | None = None
        if call is not None:
            if is_async(call.callback) is not executor.coroutines:
                yield from ask(ROLLBACK)
                return Execution.OTHER_COLOUR
            outcome = yield call
            if isinstance(outcome, Returned):
                outcome = yield from _handled(call, outcome, executor)
            if isinstance(outcome, Returned):
                finalises = isinstance(due, decision.Finalise)
                outcome = yield from date_outcome(outcome, claimed, call.step, finalises=finalises)
                outcome = yield from expect_participants(outcome, claimed.saga, across=executor.across())
        if isinstance(outcome, Raised) and _is_cancelled(outcome.error):
            outcome = yield from _withdrawn(outcome)
        elif isinstance(outcome, Raised):
            outcome = yield from _left_within(claimed, due, outcome)
        more = count < STEPS_IN_A_ROW and not executor.draining()
        if isinstance(outcome, Raised) and not outcome.open:
            go_on = yield from _settle_failure(claimed, due, outcome, executor, go_on=more)
        else:
            change = _dated(due, claimed, outcome, executor)
            returned = isinstance(outcome, Returned)
            try:
                go_on = yield from settle(claimed, change, executor, go_on=more, called=returned)
            except Refused as refusal:
                if call is not None and isinstance(outcome, Returned):
                    refused = _refused(refusal, call, outcome)
                    go_on = yield from _settle_failure(claimed, due, refused, executor, go_on=more)
                elif change.yields:
                    go_on = yield from _give_way(claimed, refusal, executor, go_on=more)
                else:
                    raise
        if go_on is None:
            break
        claimed = go_on
    return Execution.DONE


def _is_cancelled(error: BaseException) -> bool:
    """Tell whether a callback let through what a checkpoint has raised, alone or in a group."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(RunCancelled) is not None
    return isinstance(error, RunCancelled)


def _left_within(claimed: Claim, due: Decision, outcome: Raised) -> Plan[Raised]:
    """Call the finaliser of a step that has failed, if it belongs to the transaction of the step: it is undone with it.

    So what it does outside the database is all that remains of it (behaviour TF-02). What it raises takes the place of
    what the step has raised, which becomes its cause.
    """
    if not isinstance(due, decision.Invoke) or due.step.finaliser is None:
        return outcome
    if due.step.options.finally_transaction != "step" or not outcome.open:
        return outcome
    body = Body(claimed.run.seq + 1, due.step.name, due.iteration)
    call = _call(decision.Finalise(due.step, due.step.finaliser, body), claimed)
    assert call is not None  # noqa: S101 - a finaliser is a callback
    ended = yield call
    if isinstance(ended, Raised):
        keep_root(outcome.error if isinstance(outcome.error, Exception) else None, ended.error)
        failure = Failure.of(ended.error, source=call.source)
        return replace(ended, failure=failure, context=outcome.context)
    yield from ask(ROLLBACK_TO_SAVEPOINT)
    return outcome


def _withdrawn(outcome: Raised) -> Plan[Raised]:
    """End the transaction of a callback that was stopped: the run is claimed again, to see whether it gives up."""
    if outcome.open:
        yield from ask(ROLLBACK)
    return replace(outcome, open=False)


def _handled(call: Call, outcome: Returned, executor: Executor) -> Plan[CallOutcome]:
    """Return the outcome of a callback, which has failed if what it launched lacks the handlers that it needs."""
    try:
        yield from check_handlers(outcome.emissions, across=executor.across())
    except UnhandledMessage as error:
        _, clock = yield from ask(ROLLBACK_TO_SAVEPOINT, READ_CLOCK)
        return _failed(call, outcome, error, at=clock[0][0])
    return outcome


def _refused(refusal: Refused, call: Call, outcome: Returned) -> Raised:
    """Return the outcome of a callback whose transaction the database did not accept."""
    error = refusal.error
    if getattr(error, "sqlstate", None) == _NO_SAVEPOINT:
        error = StepError.ended_its_transaction(call.step, call.run.saga)
    return _failed(call, outcome, error, at=None)


def _failed(call: Call, outcome: Returned, error: Exception, *, at: datetime | None) -> Raised:
    """Return the outcome of a callback that has returned, but failed; `at` is None when its transaction is gone."""
    if call.handles:
        keep_root(call.error, error)
    return Raised(error, Failure.of(error, source=call.source), outcome.context, open=at is not None, at=at)


def _settle_failure(
    claimed: Claim, due: Decision, outcome: Raised, executor: Executor, *, go_on: bool
) -> Plan[Claim | None]:
    """Record the failure of a callback whose transaction is gone, and with it the savepoint.

    The database refused to commit what it wrote (a deferred constraint, say), or it ended the transaction itself.
    So the failure is written in a transaction of its own, unless another worker was faster and executes it again, or
    the run has been asked to give up, which may be why the database refused.
    """
    again = yield from claim(claimed.run.id, executor)
    if again is None:
        return None
    reason = giving_up(again.saga, again.run, again.facts)
    if reason is not None:
        executor.reports.discarded(claimed.run, decision.needed(due) or "", claimed.message)
    if again.run.seq != claimed.run.seq:
        return (yield from _left(again, go_on=go_on))
    if reason is not None:
        if not isinstance(due, decision.Invoke) or due.step.finaliser is None:
            return (yield from _left(again, go_on=go_on))
        return (yield from settle(again, forward.step_discarded(again.run, due, reason), executor, go_on=go_on))
    again.run = changed(again.run, version=claimed.run.version)
    change = _dated(due, again, outcome, executor)
    return (yield from settle(again, change, executor, go_on=go_on))


def _give_way(claimed: Claim, refusal: Refused, executor: Executor, *, go_on: bool) -> Plan[Claim | None]:
    """Return a run that was asked to give up when it was about to end, claimed anew."""
    again = yield from claim(claimed.run.id, executor)
    if again is None:
        return None
    if giving_up(again.saga, again.run, again.facts) is None:
        yield from ask(ROLLBACK)
        raise refusal
    return (yield from _left(again, go_on=go_on))


def _left(claimed: Claim, *, go_on: bool) -> Plan[Claim | None]:
    """Return a claim that nothing was done with yet, or give it back: its lock would stay with an idle connection."""
    if go_on:
        return claimed
    yield from ask(ROLLBACK)
    return None


def _call(due: Decision, claimed: Claim) -> Call | None:
    """Return the call that a decision asks for, if it asks for one."""
    run, saga = claimed.run, claimed.saga

    def make(callback: Callback, step: str, numbers: tuple[int, int, int], kind: str, **more: Any) -> Call:
        seq, iteration, attempt = numbers
        key = f"{run.id}:{seq}:{kind}"
        source, message = claimed.source, claimed.message
        return Call(callback, run, step, message, iteration, attempt, key, source, **more)

    def check(value: object) -> object:
        return forward.next_step(saga, step.name, value)

    match due:
        case decision.Invoke(step=Step(invoke=FixedSleep())):
            return None
        case decision.Invoke(step, iteration):
            numbers = (run.instance + 1, iteration, run.attempt)
            here = None if step.options.complete_on_give_up else _checkpoint(claimed, step)
            return make(
                *(step.invoke, step.name, numbers, "step"),
                results=_results(claimed),
                check=check,
                checkpoint=here,
                timeout=step.options.timeout,
                interrupt=None if here is None or not step.options.interrupt else Interrupt(),
            )
        case decision.HandleChildFailure(step, handler, failure):
            numbers = (run.instance, run.iteration, run.handled)
            error, here = failure.to_exception(), _checkpoint(claimed, step)
            return make(
                *(handler, step.name, numbers, "child-failure"),
                error=error,
                handles=True,
                check=check,
                checkpoint=here,
            )
        case decision.Finalise(step, callback, body):
            return make(callback, step.name, (body.seq, body.iteration, run.attempt), "finaliser")
        case decision.Compensate(step, compensation, instance):
            numbers = (instance.seq, instance.iteration, run.attempt)
            reason = None if run.failure is None else run.failure.to_exception(lazily=True)
            own = [Result(saga.name, run.message_id, _loaded(run.result))] if isinstance(saga, External) else []
            return make(compensation, step.name, numbers, "compensation", error=reason, results=own)
        case decision.HandleChildRollbackFailure(step, handler, instance, failure):
            numbers = (instance.seq, instance.iteration, run.handled)
            error = failure.to_exception()
            kind = "child-rollback-failure"
            if (
                instance.stuck
            ):  # in reverse, it is called for one message after the other; and then for the compensation
                kind += f":{max(child.ordinal for child in instance.stuck)}"
            return make(handler, step.name, numbers, kind, error=error, handles=True)
        case _:
            return None


def _checkpoint(claimed: Claim, step: Step) -> Checkpoint | None:
    """Return what the callbacks of a step ask for that gives way when its run gives up."""
    if claimed.saga.shield or step.options.shield:
        return None
    deadline = claimed.facts.deadline
    return Checkpoint(claimed.run.id, None if deadline is None else deadline.at)


def _results(claimed: Claim) -> list[Result]:
    return [
        Result(child.saga, child.message_id, _loaded(child.result))
        for child in claimed.facts.children
        if child.state is ChildState.COMMITTED
    ]


def _loaded(result: str | None) -> Any:
    return None if result is None else json.loads(result)


def _dated(due: Decision, claimed: Claim, outcome: CallOutcome | None, executor: Executor) -> Transition:
    """Return what becomes of the run, and when it is to be looked at because of deadlines."""
    change = _change(due, claimed, outcome, executor.chance)
    if claimed.saga.strategy is not None and _may_wait(change):
        change = replace(change, mail=Mail.LOOK)
    return dated(change, claimed.saga, claimed.run, claimed.facts, _now(claimed, outcome))


def _may_wait(change: Transition) -> bool:
    """Tell whether a run may wait from now on, for children or for its next attempt: its strategy says for how long."""
    waits_for_attempt = change.record is not None and change.mail is Mail.DROP and not change.run.state.ended
    return change.mail is Mail.DROP_IF_WAITING or waits_for_attempt


def _now(claimed: Claim, outcome: CallOutcome | None) -> datetime:
    """Return when a callback has failed, or else when the run was claimed."""
    return outcome.at if isinstance(outcome, Raised) and outcome.at is not None else claimed.facts.now


def _change(due: Decision, claimed: Claim, outcome: CallOutcome | None, chance: Callable[[], float]) -> Transition:
    """Return what becomes of the run, now that the decision was carried out."""
    run, saga, now = claimed.run, claimed.saga, _now(claimed, outcome)
    raised = outcome if isinstance(outcome, Raised) else None
    returned = outcome if isinstance(outcome, Returned) else Returned(None, (), run.context, None)
    match due:
        case decision.Wait(until):
            return forward.waits(saga, run, until)
        case decision.Invoke(step=Step(invoke=FixedSleep(asleep=asleep))):
            return forward.step_returned(saga, run, due, replace(returned, value=asleep), now)
        case decision.Invoke():
            if raised is not None:
                return forward.step_raised(run, due, raised, now, chance())
            return forward.step_returned(saga, run, due, returned, now)
        case decision.Complete():
            return forward.completed(run, due)
        case decision.HandleChildFailure():
            if raised is not None:
                return _delivered(claimed, forward.handler_raised(run, due, raised))
            return forward.handler_returned(saga, run, due, returned)
        case decision.Finalise():
            if raised is not None:
                return finaliser.finaliser_raised(run, due, raised, now, chance())
            return finaliser.finaliser_returned(run, due, returned, now, chance())
        case decision.Finalised():
            return finaliser.finalised(run)
        case decision.RollBack(failure):
            change = transition.roll_back(run, failure, run.context)
            # One that gives up was not told of children that are stuck: its rollback is (behaviour Q76).
            return change if giving_up(saga, run, claimed.facts) is not None else _delivered(claimed, change)
        case decision.CancelChildren(reason):
            return transition.cancel_children(run, reason)
        case decision.CancelSiblings(reason):
            return Transition(run, cancels=reason, mail=Mail.DROP_IF_WAITING)
        case decision.LeaveBehind(children):
            return Transition(run, leaves=children, mail=Mail.DROP)
        case decision.ExpireChildren(deadline):
            return expire_children(run, deadline, claimed.source)
        case decision.Commit():
            return forward.committed(saga, run)
        case decision.Park(reason, needs):
            return transition.parked(run, reason, needs)
    return _change_back(due, claimed, outcome, chance())


def _change_back(due: Decision, claimed: Claim, outcome: CallOutcome | None, chance: float) -> Transition:
    """Return what becomes of a run that rolls back, now that the decision was carried out."""
    run, saga, now = claimed.run, claimed.saga, _now(claimed, outcome)
    raised = outcome if isinstance(outcome, Raised) else None
    returned = outcome if isinstance(outcome, Returned) else Returned(None, (), run.context, None)
    match due:
        case decision.AskChildren():
            return backward.ask_children(run, due, claimed.source)
        case decision.Compensate():
            if raised is not None:
                return backward.compensation_raised(saga, run, due, raised, now, chance)
            return backward.compensation_returned(run, due, returned)
        case decision.HandleChildRollbackFailure():
            if raised is not None:
                return backward.child_rollback_not_handled(saga, run, due, raised)
            return backward.child_rollback_handled(run, due, returned)
        case decision.CompensationFailed():
            return backward.compensation_failed(saga, run, due, now, chance)
        case decision.Handled(instance):
            return backward.handled(run, instance)
        case decision.PassOver():
            return backward.passed_over(run, due)
        case decision.Undone(instance):
            return backward.undone(run, instance)
        case decision.EndRolledBack():
            return backward.rolled_back(run)
        case decision.EndRollbackFailed(failure):
            return backward.rollback_failed(run, failure)
    raise AssertionError(due)


def _delivered(claimed: Claim, change: Transition) -> Transition:
    """Return the beginning of a rollback for failed children: those that are stuck have been told of (behaviour Q5)."""
    run, body = claimed.run, claimed.facts.body
    seq, children = (run.instance, claimed.facts.children)
    if body is not None and body.children:
        seq, children = run.finaliser_seq or 0, body.children
    return replace(change, delivers=seq) if any(child.stuck for child in children) else change
