"""The rule, as a table: facts and the decision that they lead to."""

import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoop_outbox._deadlines import Deadline
from scoop_outbox.core import diagram
from scoop_outbox.core.deadline import missed
from scoop_outbox.core.decide import child_failure, decide, rollback_failure, undo_name
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
from scoop_outbox.core.run import Body, Child, ChildState, Facts, Instance, Outside, Run, RunState, StepKind
from scoop_outbox.external import COMPLETION, LOOK_AGAIN, External
from scoop_outbox.failure import Failure
from scoop_outbox.policy import ROLLBACK_HANDLER_CALLS
from scoop_outbox.saga import Saga
from scoop_outbox.strategy import OpenChild, Outlook, Participant, Strategy

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
LATER = NOW + timedelta(seconds=1)
SOURCE = "parent[worker]"
BOOM = Failure("Boom", "no", "child[other]")
WORSE = Failure("Worse", "not at all", "child[other]")
WHY = Failure("Why", "at first", "child[other]")
UNDO = Failure("RollbackRequested", "no more", "somebody")
REASON = Failure("Reason", "that is why", SOURCE)
GONE = "a step that was there once"


async def callback(scope: Any, message: Any, error: Any = None) -> None: ...


SAGA = Saga("parent", "topic")
PLAIN = SAGA.add_step("plain", callback)
FULL = SAGA.add_step(
    "full", callback, compensate=callback, on_child_failure=callback, on_child_rollback_failure=callback
)
UNDOABLE = SAGA.add_step("undoable", callback, compensate=callback)
SAGA.add_step("fast", callback, fail_fast=True)
SAGA.add_step("ordered", callback, rollback_children="reverse")
GUARDED = SAGA.add_step("guarded", callback, finally_=callback)
SHIELDED = SAGA.add_step("shielded", callback, on_child_failure=callback, shield=True)


def run(state: RunState = RunState.RUNNING, **more: Any) -> Run:
    ids = [uuid.UUID(int=number) for number in (1, 2)]
    return Run(ids[0], ids[1], "service", "parent", (ids[0],), None, state, **more)


def back(**more: Any) -> Run:
    return run(RunState.ROLLING_BACK, **{"failure": REASON, "step": "full", "seq": 3, "undo_seq": 3, **more})


def child(
    state: ChildState, failure: Failure | None = BOOM, failed_at: datetime | None = NOW, ordinal: int = 1
) -> Child:
    return Child(uuid.UUID(int=7), "child", state, ordinal, None, failure, failed_at=failed_at)


def stuck(
    obstacle: Failure | None = BOOM, failure: Failure | None = None, at: datetime = NOW, *, delivered: bool = False
) -> Child:
    """A child that could not be rolled back; without `failure`, it rolled back because it was told to."""
    told = Failure.parent_said_so(REASON, source=SOURCE) if failure is None else failure
    state = ChildState.ROLLBACK_FAILED
    return Child(uuid.UUID(int=7), "child", state, 1, None, told, obstacle, failed_at=at, delivered=delivered)


def instance(step: str = "full", kind: StepKind = StepKind.STEP, **more: Any) -> Instance:
    return Instance(2, step, kind, 5, **more)


FAILED = [child(ChildState.ROLLED_BACK)]
STUCK = [stuck(BOOM, WHY)]
OURS = (stuck(BOOM),)
BOTH = (stuck(BOOM), stuck(WORSE))


class Strategic(Strategy):
    """Begins later, leaves behind who has not started, and gives up runs of messages with certain numbers."""

    def begin(self, outlook: Outlook) -> datetime | None:
        return LATER

    def leave_behind(self, outlook: Outlook) -> Sequence[OpenChild]:
        return outlook.children

    def look_again(self, outlook: Outlook) -> datetime | None:
        return LATER

    def give_up(self, outlook: Outlook) -> str | None:
        return "why not" if outlook.message_id.int == 8 else None

    def give_up_rollback(self, outlook: Outlook) -> str | None:
        return "why not" if outlook.message_id.int == 9 else None


STRATEGIC = Saga("parent", "topic", strategy=Strategic())
STRATEGIC.add_step("plain", callback)
TOLD = Failure("StrategyGaveUp", "why not", "Strategic of parent")
ABSENT = OpenChild(uuid.UUID(int=7), Participant("service", "child"), started=False, launched_at=NOW)
OUTLOOK = Outlook(NOW, uuid.UUID(int=1), uuid.UUID(int=2), "parent", None, False, NOW, (ABSENT,))
STARTED = replace(OUTLOOK, children=(replace(ABSENT, started=True),))
HOPELESS = replace(OUTLOOK, message_id=uuid.UUID(int=8), children=())
PATIENT = replace(HOPELESS, rolling_back=True)
BACK = replace(PATIENT, message_id=uuid.UUID(int=9))
BODY = Body(3, "guarded", 0)
LEFT_BROKEN = Body(3, "guarded", 0, tuple(FAILED))
FINALISE = Finalise(GUARDED, callback, BODY)
COMMITTED = [child(ChildState.COMMITTED, None, None)]
HANDLER = StepKind.CHILD_FAILURE_HANDLER
UNDOING = "Rollback of full[5]"
BELOW = f"{UNDOING} (rolling back child scopes)"


def facts(**more: Any) -> Facts:
    return Facts(NOW, **more)


def parked(step: str = GONE) -> Park:
    return Park(
        f"no living worker knows step {step!r} of saga 'parent': start one whose version has it, and the run goes "
        "on by itself",
        step,
    )


def failed_in(step: str, *causes: Failure) -> Failure:
    return Failure.child_rolled_back(step, causes, source=SOURCE)


def stuck_in(phase: str, *causes: Failure) -> Failure:
    return Failure.child_rollback_failed(phase, causes, source=SOURCE)


def gave_up(reason: Failure) -> Failure:
    return Failure.gave_up([reason], source=SOURCE)


MISSED = missed(Deadline(NOW, "somebody"))


def no_time_left() -> Failure:
    told = Failure("MissedRollbackDeadline", "Missed rollback deadline at 2026-11-24T12:00:00+00:00", SOURCE)
    return Failure.gave_up([told, REASON], source=SOURCE)


def because(*causes: Failure) -> Failure:
    return Failure.children_rolled_back(causes, source=SOURCE)


BEFORE = stuck_in(BELOW, WORSE, REASON)
LAUNCHED: dict[str, Any] = {"handler_children": tuple(FAILED), "handled": BEFORE, "stuck": OURS}
LAUNCHED_STUCK: dict[str, Any] = {"handler_children": (stuck(WORSE, WHY),), "handled": BEFORE, "stuck": OURS}
OF_COMPENSATION: dict[str, Any] = {"compensation_children": tuple(FAILED)}
BETWEEN: dict[str, Any] = {"step": "plain", "seq": 1, "instance": 1}

CASES: dict[str, tuple[Run, Facts, Decision]] = {
    # Forward
    "the first step": (run(), facts(), Invoke(PLAIN, 0)),
    "the next step": (run(**BETWEEN, next_step="full"), facts(), Invoke(FULL, 0)),
    "the next step, with results of children": (
        run(**BETWEEN, next_step="full"), facts(children=COMMITTED), Invoke(FULL, 0)),
    "a repetition counts on": (run(**BETWEEN, next_step="plain", iteration=4), facts(), Invoke(PLAIN, 5)),
    "another step counts from 0": (run(**BETWEEN, next_step="full", iteration=4), facts(), Invoke(FULL, 0)),
    "back to an earlier step": (
        run(step="full", seq=2, instance=2, next_step="plain", iteration=2), facts(), Invoke(PLAIN, 0)),
    "after the last step": (run(**BETWEEN), facts(), Commit()),
    "the next step is gone": (run(**BETWEEN, next_step=GONE), facts(), parked()),
    "a retry that is due": (run(attempt=1, not_before=NOW), facts(), Invoke(PLAIN, 0)),
    "a retry that is not due": (run(attempt=1, not_before=LATER), facts(), Wait(LATER)),
    "an open child": (run(**BETWEEN, next_step="full"), facts(open_children=True), Wait()),
    "an open child goes before a retry": (run(not_before=LATER), facts(open_children=True), Wait()),
    "an open child goes before failed ones": (
        run(**BETWEEN, next_step="full"), facts(open_children=True, children=FAILED), Wait()),
    "an open child goes before a missing step": (run(**BETWEEN, next_step=GONE), facts(open_children=True), Wait()),
    "an open child goes before the end": (run(**BETWEEN), facts(open_children=True), Wait()),
    "a retry that is not due goes before failed children": (
        run(**BETWEEN, next_step="full", not_before=LATER, attempt=1), facts(children=FAILED), Wait(LATER)),
    "failed children go before a sleep": (
        run(**BETWEEN, next_step="full", not_before=LATER), facts(children=FAILED),
        RollBack(failed_in("plain", BOOM))),
    "not before goes before a missing step": (run(**BETWEEN, next_step=GONE, not_before=LATER), facts(), Wait(LATER)),
    # Failed children
    "failed children without a handler": (
        run(**BETWEEN, next_step="full"), facts(children=FAILED), RollBack(failed_in("plain", BOOM))),
    "failed children with a handler": (
        run(step="full", seq=1, instance=1, next_step="undoable"), facts(children=FAILED),
        HandleChildFailure(FULL, callback, failed_in("full", BOOM))),
    "failed children after the last step": (
        run(step="full", seq=1, instance=1), facts(children=FAILED),
        HandleChildFailure(FULL, callback, failed_in("full", BOOM))),
    "failed children go before a missing next step": (
        run(**BETWEEN, next_step=GONE), facts(children=FAILED), RollBack(failed_in("plain", BOOM))),
    "failed children of a step that is gone": (
        run(step=GONE, seq=1, instance=1, next_step="full"), facts(children=FAILED), parked()),
    "failed and committed children": (
        run(**BETWEEN), facts(children=[*COMMITTED, *FAILED]), RollBack(failed_in("plain", BOOM))),
    "children that could not roll back": (
        run(**BETWEEN), facts(children=STUCK), RollBack(stuck_in("plain", BOOM, because(WHY)))),
    "one that rolled back, one that could not": (
        run(**BETWEEN), facts(children=[*FAILED, stuck(WORSE, WHY, LATER)]),
        RollBack(stuck_in("plain", WORSE, because(BOOM, WHY)))),
    "one that could not, and says why it was to": (
        run(**BETWEEN), facts(children=[stuck(stuck_in("below", WHY), WHY)]),
        RollBack(stuck_in("plain", stuck_in("below", WHY)))),
    "several that could not": (
        run(**BETWEEN), facts(children=[stuck(BOOM, REASON), stuck(WORSE, WHY, LATER)]),
        RollBack(stuck_in("plain", BOOM, WORSE, because(REASON, WHY)))),
    "several failures, in order of time": (
        run(**BETWEEN), facts(children=[child(ChildState.ROLLED_BACK, WORSE, LATER), *FAILED]),
        RollBack(failed_in("plain", BOOM, WORSE))),
    "failures of the same time, in order of launch": (
        run(**BETWEEN), facts(children=[child(ChildState.ROLLED_BACK, WORSE, NOW, 2), *FAILED]),
        RollBack(failed_in("plain", BOOM, WORSE))),
    # Backward
    "nothing left": (back(), facts(), EndRolledBack()),
    "nothing left, but an open child": (back(), facts(open_children=True), Wait()),
    "compensate": (back(), facts(instance=instance()), Compensate(FULL, callback, instance())),
    "a compensation that is tried again": (
        back(attempt=1, not_before=NOW), facts(instance=instance()), Compensate(FULL, callback, instance())),
    "a compensation that is tried again later": (
        back(attempt=1, not_before=LATER), facts(instance=instance()), Wait(LATER)),
    "without a compensation": (back(), facts(instance=instance("plain")), Undone(instance("plain"))),
    "a handler's work is undone with its children": (
        back(), facts(instance=instance(kind=HANDLER)), Undone(instance(kind=HANDLER))),
    "committed children first": (
        back(), facts(instance=instance(askable=True)), AskChildren(instance(askable=True))),
    "committed children of a handler": (
        back(), facts(instance=instance(kind=HANDLER, askable=True)),
        AskChildren(instance(kind=HANDLER, askable=True))),
    "committed children go before those that could not roll back": (
        back(), facts(instance=instance(askable=True, stuck=OURS)), AskChildren(instance(askable=True, stuck=OURS))),
    "a missing step goes before committed children, which it may undo in reverse": (
        back(), facts(instance=instance(GONE, askable=True)), parked()),
    "an open child goes before asking": (
        back(), facts(open_children=True, instance=instance(askable=True)), Wait()),
    "the step to be undone is gone": (back(), facts(instance=instance(GONE)), parked()),
    "its children could not roll back, and it is gone": (
        back(), facts(instance=instance(GONE, stuck=OURS)), parked()),
    "children could not roll back, no handler": (
        back(), facts(instance=instance("undoable", stuck=OURS)),
        EndRollbackFailed(stuck_in("Rollback of undoable[5] (rolling back child scopes)", BOOM, REASON))),
    "children could not roll back, with a handler": (
        back(), facts(instance=instance(stuck=BOTH)),
        HandleChildRollbackFailure(FULL, callback, instance(stuck=BOTH), stuck_in(BELOW, BOOM, WORSE, REASON))),
    "one of them had failed before it was told": (
        back(), facts(instance=instance(stuck=(stuck(BOOM, WHY), stuck(WORSE)))),
        HandleChildRollbackFailure(FULL, callback, instance(stuck=(stuck(BOOM, WHY), stuck(WORSE))),
                                   stuck_in(BELOW, BOOM, WORSE, because(WHY), REASON))),
    "they are the reason for the rollback: delivered already": (
        back(failure=stuck_in("full", BOOM)), facts(instance=instance(stuck=(stuck(BOOM, WHY, delivered=True),))),
        EndRollbackFailed(stuck_in("full", BOOM))),
    "delivered, and equal to one that was not": (
        back(), facts(instance=instance(stuck=(stuck(BOOM, WHY, delivered=True), stuck(BOOM)))),
        HandleChildRollbackFailure(
            FULL, callback, instance(stuck=(stuck(BOOM, WHY, delivered=True), stuck(BOOM))),
            stuck_in(BELOW, BOOM, BOOM, because(WHY), REASON))),
    "not delivered, though the reason for the rollback has an equal failure in it": (
        back(failure=stuck_in("full", BOOM)), facts(instance=instance(stuck=(stuck(BOOM),))),
        HandleChildRollbackFailure(FULL, callback, instance(stuck=(stuck(BOOM),)),
                                   stuck_in(BELOW, BOOM, because(Failure.parent_said_so(REASON, source=SOURCE)),
                                            stuck_in("full", BOOM)))),
    "no reason is known": (
        back(failure=None), facts(instance=instance(stuck=(stuck(BOOM, BOOM),))),
        HandleChildRollbackFailure(FULL, callback, instance(stuck=(stuck(BOOM, BOOM),)), stuck_in(BELOW, BOOM))),
    # What handlers of rollback failures launch
    "what the handler launched has finished": (
        back(handler_seq=4, handled=1), facts(instance=instance(stuck=OURS)), Handled(instance(stuck=OURS))),
    "what the handler launched is under way": (
        back(handler_seq=4, handled=1), facts(open_children=True, instance=instance(stuck=OURS)), Wait()),
    "what the handler launched has failed": (
        back(handler_seq=4, handled=1), facts(instance=instance(**LAUNCHED)),
        HandleChildRollbackFailure(FULL, callback, instance(**LAUNCHED), stuck_in(BELOW, BOOM, BEFORE))),
    "what the handler launched could not be rolled back": (
        back(handler_seq=4, handled=1), facts(instance=instance(**LAUNCHED_STUCK)),
        HandleChildRollbackFailure(
            FULL, callback, instance(**LAUNCHED_STUCK), stuck_in(BELOW, WORSE, because(WHY), BEFORE))),
    "what the handler launched has failed too often": (
        back(handler_seq=4, handled=ROLLBACK_HANDLER_CALLS), facts(instance=instance(**LAUNCHED)),
        EndRollbackFailed(stuck_in(BELOW, BOOM, BEFORE))),
    "what the handler launched has failed, and there is no handler any more": (
        back(handler_seq=4, handled=1), facts(instance=instance("undoable", **LAUNCHED)),
        EndRollbackFailed(stuck_in(BELOW.replace("full", "undoable"), BOOM, BEFORE))),
    "what the handler launched has failed, and its step is gone": (
        back(handler_seq=4, handled=1), facts(instance=instance(GONE, **LAUNCHED)), parked()),
    "what the handler of a compensation's children launched has failed": (
        back(compensation_seq=3, handler_seq=4, handled=1),
        facts(instance=instance(handler_children=tuple(FAILED), handled=failed_in(UNDOING, WHY))),
        HandleChildRollbackFailure(
            FULL, callback, instance(handler_children=tuple(FAILED), handled=failed_in(UNDOING, WHY)),
            failed_in(UNDOING, BOOM, failed_in(UNDOING, WHY)))),
    # Children of compensations
    "children of a compensation have finished": (
        back(compensation_seq=4), facts(instance=instance()), Undone(instance())),
    "children of a compensation are open": (
        back(compensation_seq=4), facts(open_children=True, instance=instance()), Wait()),
    "children of a compensation failed": (
        back(compensation_seq=4), facts(instance=instance(**OF_COMPENSATION)),
        CompensationFailed(FULL, instance(**OF_COMPENSATION), failed_in(UNDOING, BOOM))),
    "children of a compensation could not be rolled back": (
        back(compensation_seq=4), facts(instance=instance(compensation_children=tuple(STUCK))),
        CompensationFailed(
            FULL, instance(compensation_children=tuple(STUCK)), stuck_in(UNDOING, BOOM, because(WHY)))),
    "children of the last attempt of a compensation failed": (
        back(compensation_seq=4, attempt=2), facts(instance=instance(**OF_COMPENSATION)),
        HandleChildRollbackFailure(FULL, callback, instance(**OF_COMPENSATION), failed_in(UNDOING, BOOM))),
    "children of the last attempt of a compensation failed, and nobody handles it": (
        back(compensation_seq=4, attempt=2), facts(instance=instance("undoable", **OF_COMPENSATION)),
        CompensationFailed(
            UNDOABLE, instance("undoable", **OF_COMPENSATION), failed_in("Rollback of undoable[5]", BOOM))),
    "children of a compensation failed, and its step is gone": (
        back(compensation_seq=4), facts(instance=instance(GONE, **OF_COMPENSATION)), parked()),
    "children of a compensation have finished, and its step is gone": (
        back(compensation_seq=4), facts(instance=instance(GONE)), Undone(instance(GONE))),
    # Giving up
    "to be rolled back before its first step": (run(), facts(cancellation=UNDO), RollBack(UNDO)),
    "cancelled before its first step": (run(), facts(cancellation=WHY), RollBack(gave_up(WHY))),
    "cancelled between two steps": (
        run(**BETWEEN, next_step="full"), facts(cancellation=WHY), RollBack(gave_up(WHY))),
    "cancelled after the last step": (run(**BETWEEN), facts(cancellation=WHY), RollBack(gave_up(WHY))),
    "cancelled before a retry": (
        run(attempt=1, not_before=LATER), facts(cancellation=WHY), RollBack(gave_up(WHY))),
    "cancelled, and the next step is gone": (
        run(**BETWEEN, next_step=GONE), facts(cancellation=WHY), RollBack(gave_up(WHY))),
    "cancelled, and children failed": (
        run(step="full", seq=1, instance=1), facts(cancellation=WHY, children=FAILED), RollBack(gave_up(WHY))),
    "cancelled, and open children do not know": (
        run(**BETWEEN), facts(cancellation=WHY, open_children=True, untold=True), CancelChildren(WHY)),
    "cancelled, and open children know": (
        run(**BETWEEN, giving_up=WHY), facts(cancellation=WHY, open_children=True), Wait()),
    "cancelled, and the children have ended": (
        run(**BETWEEN, giving_up=WHY), facts(cancellation=WHY, children=FAILED), RollBack(gave_up(WHY))),
    "why it gave up first counts": (run(**BETWEEN, giving_up=WHY), facts(cancellation=BOOM), RollBack(gave_up(WHY))),
    "a rollback is not cancelled": (
        back(), facts(cancellation=WHY, instance=instance()), Compensate(FULL, callback, instance())),
    "cancelled, and a shielded step's children are open": (
        run(step="shielded", seq=1, instance=1), facts(cancellation=WHY, open_children=True), Wait()),
    "cancelled, and a shielded step's children failed": (
        run(step="shielded", seq=1, instance=1), facts(cancellation=WHY, children=FAILED),
        HandleChildFailure(SHIELDED, callback, failed_in("shielded", BOOM))),
    "cancelled, and a shielded step's children have ended": (
        run(step="shielded", seq=1, instance=1), facts(cancellation=WHY, children=COMMITTED),
        RollBack(gave_up(WHY))),
    # Failing fast
    "a child failed, its step fails fast, and others do not know": (
        run(step="fast", seq=1, instance=1), facts(open_children=True, untold=True, first_failure=FAILED[0]),
        CancelSiblings(Failure("SiblingFailed", "saga 'child' failed: Boom", SOURCE))),
    "a child failed, its step fails fast, and others know": (
        run(step="fast", seq=1, instance=1), facts(open_children=True, first_failure=FAILED[0]), Wait()),
    "a child failed, its step fails fast, and the run gives up": (
        run(step="fast", seq=1, instance=1),
        facts(open_children=True, untold=True, first_failure=FAILED[0], cancellation=WHY), CancelChildren(WHY)),
    # In reverse
    "committed children one message after the other": (
        back(), facts(instance=instance("ordered", askable=True)),
        AskChildren(instance("ordered", askable=True), reverse=True)),
    "one of them could not be rolled back": (
        back(), facts(instance=instance("ordered", askable=True, stuck=OURS)),
        EndRollbackFailed(stuck_in("Rollback of ordered[5] (rolling back child scopes)", BOOM, REASON))),
    # Late
    "its deadline is over": (
        run(**BETWEEN, next_step="full"), facts(deadline=Deadline(NOW, "somebody")), RollBack(gave_up(MISSED))),
    "its deadline is to come": (
        run(**BETWEEN, next_step="full"), facts(deadline=Deadline(LATER, "somebody")), Invoke(FULL, 0)),
    "its deadline is over, and open children do not know": (
        run(**BETWEEN), facts(deadline=Deadline(NOW, "somebody"), open_children=True, untold=True),
        CancelChildren(MISSED)),
    "its deadline is over, and it was cancelled before": (
        run(**BETWEEN), facts(deadline=Deadline(NOW, "somebody"), cancellation=WHY), RollBack(gave_up(WHY))),
    "its deadline is over, but it rolls back": (
        back(), facts(deadline=Deadline(NOW, "somebody"), instance=instance()),
        Compensate(FULL, callback, instance())),
    "a child has not started by its deadline": (
        run(**BETWEEN), facts(open_children=True, child_deadline=NOW), ExpireChildren(NOW)),
    "a child of a compensation has not started by its deadline": (
        back(compensation_seq=4), facts(open_children=True, child_deadline=NOW, instance=instance()),
        ExpireChildren(NOW)),
    "a child may still start": (run(**BETWEEN), facts(open_children=True, child_deadline=LATER), Wait()),
    # Finalisers
    "a step was left": (run(body_seq=3, instance=3, step="guarded"), facts(body=BODY), FINALISE),
    "a step was left, and it was the last": (
        run(body_seq=3, instance=3, step="guarded", next_step=None), facts(body=BODY), FINALISE),
    "a step has failed, and is to be tried again": (run(body_seq=3, attempt=1), facts(body=BODY), FINALISE),
    "a step was left, and its children failed": (
        run(**BETWEEN, body_seq=3), facts(body=BODY, children=FAILED), RollBack(failed_in("plain", BOOM))),
    "a step was left, and children are open": (run(body_seq=3), facts(body=BODY, open_children=True), Wait()),
    "a step was left, and the run gives up": (
        run(body_seq=3), facts(body=BODY, cancellation=WHY), RollBack(gave_up(WHY))),
    "its finaliser waits, and the run is to give up": (
        run(body_seq=3, finaliser_seq=4), facts(body=BODY, cancellation=WHY, open_children=True, untold=True), Wait()),
    "its finaliser is to be tried again later": (
        run(body_seq=3, not_before=LATER), facts(body=BODY), Wait(LATER)),
    "its finaliser was called": (run(body_seq=3, finaliser_seq=4), facts(body=BODY), Finalised()),
    "its finaliser's children failed": (
        run(body_seq=3, finaliser_seq=4), facts(body=LEFT_BROKEN),
        RollBack(failed_in("Finaliser of guarded[0]", BOOM))),
    "its finaliser went from the code": (run(body_seq=3), facts(body=Body(3, "plain", 0)), Finalised()),
    "its step went from the code": (run(body_seq=3), facts(body=Body(3, GONE, 0)), parked()),
    "it rolls back, and a step was left": (back(body_seq=3), facts(body=BODY, instance=instance()), FINALISE),
    "it rolls back, and the finaliser was called": (
        back(body_seq=3, finaliser_seq=4), facts(body=BODY, instance=instance()), Finalised()),
    "it rolls back, and the finaliser's children failed": (
        back(body_seq=3, finaliser_seq=4), facts(body=LEFT_BROKEN, instance=instance()),
        EndRollbackFailed(failed_in("Finaliser of guarded[0]", BOOM))),
    "it rolls back, has no time left, and a finaliser is all that is left": (
        back(rollback_by=NOW, body_seq=3), facts(body=BODY), EndRollbackFailed(no_time_left())),
    "a rollback has no time left": (
        back(rollback_by=NOW), facts(instance=instance()), EndRollbackFailed(no_time_left())),
    "a rollback has no time left, and waits for a retry": (
        back(rollback_by=NOW, not_before=LATER), facts(instance=instance()), EndRollbackFailed(no_time_left())),
    "a rollback has no time left, and waits for children": (
        back(rollback_by=NOW), facts(instance=instance(), open_children=True), Wait()),
    "a rollback has no time left, and nothing is left to be done": (back(rollback_by=NOW), facts(), EndRolledBack()),
    "a rollback has time left": (
        back(rollback_by=LATER), facts(instance=instance()), Compensate(FULL, callback, instance())),
    "cancelled before a shielded step": (
        run(**BETWEEN, next_step="shielded"), facts(cancellation=WHY), RollBack(gave_up(WHY))),
    # Ended
    **{
        f"{state} with {what}": (run(state, **BETWEEN, next_step="full"), known, Wait())
        for state in RunState if state.ended
        for what, known in {
            "nothing": facts(), "a cancellation": facts(cancellation=WHY), "failures": facts(children=FAILED),
            "an instance": facts(instance=instance())}.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_a_run_does_next(name: str) -> None:
    of, known, expected = CASES[name]
    assert decide(SAGA, of, known, SOURCE) == expected


TELLING = External("parent", "topic", on_undo="undo")
SILENT = External("parent", "topic")
DONE = instance(COMPLETION)
COMPLETE = Complete(TELLING.steps[0], "1")
OUTSIDE = Outside("1")
DUE = Deadline(NOW, "somebody")

EXTERNAL_CASES: dict[str, tuple[External[Any], Run, Facts, Decision]] = {
    "nobody has said anything": (TELLING, run(), facts(), Wait(NOW + LOOK_AGAIN)),
    "nobody has, but it is cancelled": (TELLING, run(), facts(cancellation=WHY), RollBack(gave_up(WHY))),
    "nobody has, but it is late": (TELLING, run(), facts(deadline=DUE), RollBack(gave_up(MISSED))),
    "it is completed": (TELLING, run(), facts(outside=OUTSIDE), COMPLETE),
    "it is completed, and cancelled or late": (
        TELLING, run(), facts(outside=OUTSIDE, cancellation=WHY, deadline=DUE), COMPLETE),
    "it has failed": (TELLING, run(), facts(outside=Outside(failure=BOOM)), RollBack(BOOM)),
    "it has failed, and is cancelled": (
        TELLING, run(), facts(outside=Outside(failure=BOOM), cancellation=WHY), RollBack(BOOM)),
    "it rolls back, and has done nothing": (TELLING, back(), facts(), EndRolledBack()),
    "it rolls back, whatever was said": (TELLING, back(), facts(outside=OUTSIDE), EndRolledBack()),
    "somebody is told to undo it": (
        TELLING, back(), facts(instance=DONE), Compensate(TELLING.steps[0], TELLING.steps[0].callbacks[1], DONE)),
    "who was told is waited for": (
        TELLING, back(compensation_seq=4), facts(instance=DONE, open_children=True), Wait()),
    "who was told has done it": (TELLING, back(compensation_seq=4), facts(instance=DONE), Undone(DONE)),
    "nobody is to be told": (SILENT, back(), facts(instance=DONE), Undone(DONE)),
    "it has ended": (TELLING, run(RunState.COMMITTED), facts(outside=OUTSIDE), Wait()),
}  # fmt: skip


@pytest.mark.parametrize("name", EXTERNAL_CASES)
def test_what_an_external_participant_does_next(name: str) -> None:
    external, of, known, expected = EXTERNAL_CASES[name]
    assert decide(external, of, known, SOURCE) == expected


@pytest.mark.parametrize("known", [facts(cancellation=WHY), facts(cancellation=WHY, open_children=True)])
def test_a_shielded_saga_does_not_give_up(known: Facts) -> None:
    shielded = Saga("parent", "topic", shield=True)
    only = shielded.add_step("plain", callback)
    expected = Wait() if known.open_children else Invoke(only, 0)
    assert decide(shielded, run(), known, SOURCE) == expected


GOING_ON = Saga("parent", "topic", rollback_failure="continue")
GOING_ON.add_step("reversed", callback, compensate=callback, rollback_children="reverse")
GOING_ON.add_step("plain", callback)
STUCK_BELOW = "Rollback of reversed[5] (rolling back child scopes)"


@pytest.mark.parametrize(
    "of, known, expected",
    [
        (
            back(),
            facts(instance=instance("reversed", stuck=OURS)),
            PassOver(instance("reversed", stuck=OURS), rollback_failure(STUCK_BELOW, OURS, SOURCE, REASON)),
        ),
        (
            back(),
            facts(instance=instance("reversed", stuck=OURS, askable=True)),
            AskChildren(instance("reversed", stuck=OURS, askable=True), reverse=True),
        ),
        (back(unresolved=BOOM), facts(instance=instance("plain")), Undone(instance("plain"))),
        (back(unresolved=BOOM), facts(), EndRollbackFailed(BOOM)),
        (back(rollback_by=NOW), facts(instance=instance("plain")), EndRollbackFailed(no_time_left())),
    ],
)
def test_a_rollback_may_go_on_past_what_cannot_be_undone(of: Run, known: Facts, expected: Decision) -> None:
    assert decide(GOING_ON, of, known, SOURCE) == expected


@pytest.mark.parametrize(
    "of, known, expected",
    [
        (run(), facts(outlook=OUTLOOK), Wait(LATER)),
        (run(seq=1, attempt=1), facts(outlook=OUTLOOK), Invoke(STRATEGIC.steps[0], 0)),
        (run(**BETWEEN), facts(outlook=OUTLOOK, open_children=True), LeaveBehind((ABSENT,))),
        (run(**BETWEEN), facts(outlook=STARTED, open_children=True), Wait(LATER)),
        (run(**BETWEEN), facts(outlook=HOPELESS), RollBack(gave_up(TOLD))),
        (run(**BETWEEN), facts(outlook=HOPELESS, open_children=True, untold=True), CancelChildren(TOLD)),
        (run(**BETWEEN), facts(outlook=HOPELESS, cancellation=WHY), RollBack(gave_up(WHY))),
        (back(), facts(outlook=PATIENT, instance=instance("plain")), Undone(instance("plain"))),
        (back(), facts(outlook=BACK, instance=instance("plain")), EndRollbackFailed(gave_up(TOLD))),
        (back(), facts(outlook=BACK), EndRolledBack()),
    ],
)
def test_a_strategy_is_asked(of: Run, known: Facts, expected: Decision) -> None:
    assert decide(STRATEGIC, of, known, SOURCE) == expected


def test_every_decision_has_a_case() -> None:
    of_other_sagas = {LeaveBehind, PassOver}
    expected = [decision for *_, decision in (*CASES.values(), *EXTERNAL_CASES.values())]
    assert set(map(type, expected)) | of_other_sagas == set(get_args(Decision))


failures = st.sampled_from([BOOM, WORSE, REASON, stuck_in("full", BOOM)])
steps = st.sampled_from(["plain", "full", "undoable", GONE])
times = st.none() | st.sampled_from([NOW - timedelta(seconds=1), NOW, LATER])
children = st.builds(
    Child,
    st.uuids(),
    st.just("child"),
    st.sampled_from(ChildState),
    st.integers(1, 5),
    st.none() | st.just("1"),
    st.none() | failures,
    st.none() | failures,
    times,
    st.booleans(),
)
several = st.lists(children, max_size=3).map(tuple)
instances = st.builds(
    Instance,
    st.integers(1, 9),
    steps,
    st.sampled_from(StepKind),
    st.integers(0, 9),
    st.booleans(),
    several,
    several,
    several,
    st.none() | failures,
)
any_facts = st.builds(Facts, st.just(NOW), st.booleans(), st.lists(children, max_size=4), st.none() | instances)
any_run = st.builds(
    run,
    st.sampled_from(RunState),
    step=st.none() | steps,
    next_step=st.none() | steps,
    seq=st.integers(0, 9),
    instance=st.integers(0, 9),
    iteration=st.integers(0, 9),
    attempt=st.integers(0, 9),
    not_before=times,
    undo_seq=st.none() | st.integers(0, 9),
    compensation_seq=st.none() | st.integers(0, 9),
    handler_seq=st.none() | st.integers(0, 9),
    handled=st.integers(0, 12),
    failure=st.none() | failures,
)


@given(any_run, any_facts)
def test_whatever_the_facts_there_is_a_decision(of: Run, known: Facts) -> None:
    decision = decide(SAGA, of, known, SOURCE)
    assert isinstance(decision, get_args(Decision))
    assert decide(SAGA, of, known, SOURCE) == decision
    if of.state.ended or known.open_children:
        assert isinstance(decision, Wait)


@given(any_run, any_facts)
def test_no_step_starts_before_its_children_have_ended(of: Run, known: Facts) -> None:
    assert decide(SAGA, of, replace(known, open_children=True), SOURCE) == Wait()


def test_a_failure_without_a_time_comes_last() -> None:
    known = [child(ChildState.ROLLED_BACK, WORSE, None), child(ChildState.ROLLED_BACK, BOOM, LATER, 2)]
    assert [one.failure for one in facts(children=known).failed_children] == [BOOM, WORSE]


def test_a_failed_child_that_told_no_failure_is_still_a_failure() -> None:
    known = facts(children=[child(ChildState.ROLLED_BACK, None)])
    assert decide(SAGA, run(**BETWEEN), known, SOURCE) == RollBack(child_failure("plain", [], SOURCE))


@pytest.mark.parametrize(
    "reason, failures, expected",
    [
        (None, (BOOM,), (BOOM,)),
        (REASON, (BOOM,), (BOOM, REASON)),
        (BOOM, (BOOM,), (BOOM,)),
        (BOOM, (stuck_in("x", BOOM),), (stuck_in("x", BOOM),)),
        (stuck_in("x", BOOM), (BOOM,), (BOOM, stuck_in("x", BOOM))),
    ],
)
def test_the_reason_for_a_rollback_is_told_once(
    reason: Failure | None, failures: tuple[Failure, ...], expected: tuple[Failure, ...]
) -> None:
    told = Failure.parent_said_so(BOOM if reason is None else reason, source=SOURCE)
    failed = [stuck(failure, failure if reason is None else told) for failure in failures]
    assert rollback_failure("phase", failed, SOURCE, reason) == stuck_in("phase", *expected)


def test_phases_are_named_after_the_instance() -> None:
    assert undo_name(instance()) == UNDOING
    assert undo_name(instance(), children=True) == BELOW


def test_the_committed_document_tells_what_the_code_does() -> None:
    committed = Path(__file__).parents[2] / "docs" / "state-machine.md"
    assert committed.read_text("utf-8") == diagram.document(), "run python -m scoop_outbox.core.diagram"


def test_the_documented_rules_mention_every_decision() -> None:
    assert {decision for _, _, decision in diagram.RULES} == set(get_args(Decision))
