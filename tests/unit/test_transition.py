"""What becomes of a run, as a table: what was due, how it ended, and the transition."""

import functools
import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoop_outbox._deadlines import Deadline, Timeouts
from scoop_outbox._emission import Emission
from scoop_outbox._sleep import Asleep
from scoop_outbox.core import backward, deadline, decision, forward, transition
from scoop_outbox.core.run import RUN_TRANSITIONS, Instance, Run, RunState, StepKind
from scoop_outbox.core.transition import Mail, Raised, Record, Returned, Transition
from scoop_outbox.errors import StepError
from scoop_outbox.failure import Failure, Frame
from scoop_outbox.policy import Retry
from scoop_outbox.saga import Saga
from scoop_outbox.step import GoTo, Repeat

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
step_returned = functools.partial(forward.step_returned, now=NOW)
SOURCE = "parent[worker]"
HERE = Frame("shop.py", 7, None, "place_order")
BOOM = Failure("Boom", "no", SOURCE)
REASON = Failure("Reason", "that is why", SOURCE)


class NotNow(Exception):
    pass


def callback(scope: Any, message: Any, error: Any = None) -> None: ...


SAGA = Saga("parent", "topic")
FIRST = SAGA.add_step("first", callback, compensate=callback, compensate_retry=Retry(attempts=1))
SECOND = SAGA.add_step("second", callback)
PATIENT = SAGA.add_step(
    "patient",
    callback,
    retry=Retry(attempts=3, backoff=1.0, jitter=0.5, on=(NotNow,)),
    compensate_retry=Retry(attempts=3, backoff=4.0, jitter=0.0),
)
ASIDE = Saga("aside", "topic")
SHIELDED = ASIDE.add_step("shielded", callback, shield=True)
COMPLETING = ASIDE.add_step("completing", callback, complete_on_give_up=True)

STEP, HANDLER, COMPENSATION = StepKind.STEP, StepKind.CHILD_FAILURE_HANDLER, StepKind.COMPENSATION


def launched(*, awaited: bool = True) -> Emission:
    return Emission(uuid.UUID(int=9), "topic", None, b"1", "application/json", {}, None, awaited, HERE)


AWAITED, GLOBAL = (launched(),), (launched(awaited=False),)


def run(state: RunState = RunState.RUNNING, **more: Any) -> Run:
    ids = [uuid.UUID(int=number) for number in (1, 2)]
    return Run(ids[0], ids[1], "service", "parent", (ids[0],), None, state, **{"context": '{"a":1}', **more})


def returned(
    value: object = None, emissions: Any = (), context: str | None = "{}", result: str | None = None
) -> Returned:
    return Returned(value, emissions, context, result)


def raised(error: Exception | None = None, context: str | None = '{"left":1}') -> Raised:
    return Raised(error or NotNow("no"), BOOM, context)


MIDDLE = run(step="first", next_step="second", seq=4, instance=3, iteration=2, attempt=1, handled=2, not_before=NOW)
START = run()
BACK = run(RunState.ROLLING_BACK, step="second", seq=6, instance=6, undo_seq=5, failure=REASON, attempt=1)
WAITING = replace(BACK, compensation_seq=6)
HANDLED = replace(BACK, handler_seq=6, handled=2)
OF_FIRST = Instance(3, "first", STEP, 2)
VERY_FIRST = Instance(1, "first", STEP, 0)
OF_PATIENT = Instance(3, "patient", STEP, 2)

invoke = decision.Invoke(SECOND, 0)
handle = decision.HandleChildFailure(FIRST, callback, BOOM)
compensate = decision.Compensate(FIRST, callback, OF_FIRST)
again = decision.Compensate(PATIENT, callback, OF_PATIENT)
swallow = decision.HandleChildRollbackFailure(FIRST, callback, OF_FIRST, BOOM)
SUSPENDED = replace(MIDDLE, attempt=0, not_before=None)


def forwarded(**changes: Any) -> Run:
    same = {"step": "second", "next_step": "patient", "seq": 5, "instance": 5, "iteration": 0, "context": "{}"}
    return replace(MIDDLE, attempt=0, handled=0, **{"not_before": None, **same, **changes})


def rolling_back(of: Run, failure: Failure, **changes: Any) -> Run:
    same = {"attempt": 0, "handled": 0, "not_before": None}
    return replace(of, state=RunState.ROLLING_BACK, failure=failure, **{**same, **changes})


CASES: dict[str, tuple[Run, Transition, Transition]] = {
    # Steps
    "a step goes straight on": (
        MIDDLE, step_returned(SAGA, MIDDLE, invoke, returned()),
        Transition(forwarded(), Record(5, "second", STEP, 0, 1), mail=Mail.KEEP, yields=True)),
    "a step that launched waits": (
        MIDDLE, step_returned(SAGA, MIDDLE, invoke, returned(None, AWAITED)),
        Transition(forwarded(), Record(5, "second", STEP, 0, 1), AWAITED, mail=Mail.DROP_IF_WAITING, yields=True)),
    "a launch on the global scope is not waited for": (
        MIDDLE, step_returned(SAGA, MIDDLE, invoke, returned(None, GLOBAL)),
        Transition(forwarded(), Record(5, "second", STEP, 0, 1), GLOBAL, mail=Mail.KEEP, yields=True)),
    "the last step ends the run": (
        START, step_returned(SAGA, START, decision.Invoke(PATIENT, 0), returned(result="1")),
        Transition(
            replace(START, state=RunState.COMMITTED, step="patient", seq=1, instance=1, context="{}", result="1"),
            Record(1, "patient", STEP, 0, 0), mail=Mail.DROP, yields=True)),
    "the last step waits for what it launched": (
        START, step_returned(SAGA, START, decision.Invoke(PATIENT, 0), returned(None, AWAITED)),
        Transition(replace(START, step="patient", seq=1, instance=1, context="{}"),
                   Record(1, "patient", STEP, 0, 0), AWAITED, mail=Mail.DROP_IF_WAITING, yields=True)),
    "the last step does not wait for a launch on the global scope": (
        START, step_returned(SAGA, START, decision.Invoke(PATIENT, 0), returned(None, GLOBAL)),
        Transition(replace(START, state=RunState.COMMITTED, step="patient", seq=1, instance=1, context="{}"),
                   Record(1, "patient", STEP, 0, 0), GLOBAL, mail=Mail.DROP, yields=True)),
    "Repeat": (
        MIDDLE, step_returned(SAGA, MIDDLE, decision.Invoke(SECOND, 3), returned(Repeat())),
        Transition(forwarded(next_step="second", iteration=3), Record(5, "second", STEP, 3, 1), yields=True)),
    "the last step repeats": (
        START, step_returned(SAGA, START, decision.Invoke(PATIENT, 0), returned(Repeat())),
        Transition(replace(START, step="patient", next_step="patient", seq=1, instance=1, context="{}"),
                   Record(1, "patient", STEP, 0, 0), yields=True)),
    "GoTo by name": (
        MIDDLE, step_returned(SAGA, MIDDLE, invoke, returned(GoTo("first"))),
        Transition(forwarded(next_step="first"), Record(5, "second", STEP, 0, 1), yields=True)),
    "GoTo a step": (
        MIDDLE, step_returned(SAGA, MIDDLE, invoke, returned(GoTo(PATIENT))),
        Transition(forwarded(next_step="patient"), Record(5, "second", STEP, 0, 1), yields=True)),
    "a result stays until it is replaced": (
        replace(MIDDLE, result="1"), step_returned(SAGA, replace(MIDDLE, result="1"), invoke, returned()),
        Transition(forwarded(result="1"), Record(5, "second", STEP, 0, 1), yields=True)),
    "a step without retry rolls back, with the context that it left": (
        MIDDLE, forward.step_raised(MIDDLE, invoke, raised(), NOW, 0.0),
        Transition(rolling_back(MIDDLE, BOOM, seq=5, undo_seq=5, context='{"left":1}'),
                   Record(5, "second", STEP, 0, 1, BOOM))),
    "the first attempt of several": (
        START, forward.step_raised(START, decision.Invoke(PATIENT, 0), raised(), NOW, 0.0),
        Transition(replace(START, seq=1, attempt=1, not_before=NOW + timedelta(seconds=1)),
                   Record(1, "patient", STEP, 0, 0, BOOM), mail=Mail.DROP, wake_at=NOW + timedelta(seconds=1))),
    "the second attempt waits twice as long, less what chance takes": (
        replace(START, seq=1, attempt=1),
        forward.step_raised(replace(START, seq=1, attempt=1), decision.Invoke(PATIENT, 0), raised(), NOW, 0.5),
        Transition(replace(START, seq=2, attempt=2, not_before=NOW + timedelta(seconds=1.5)),
                   Record(2, "patient", STEP, 0, 1, BOOM), mail=Mail.DROP, wake_at=NOW + timedelta(seconds=1.5))),
    "the last attempt": (
        replace(START, seq=2, attempt=2),
        forward.step_raised(replace(START, seq=2, attempt=2), decision.Invoke(PATIENT, 0), raised(), NOW, 0.0),
        Transition(rolling_back(START, BOOM, seq=3, undo_seq=3, context='{"left":1}'),
                   Record(3, "patient", STEP, 0, 2, BOOM))),
    "an exception that the policy does not name": (
        START, forward.step_raised(START, decision.Invoke(PATIENT, 0), raised(ValueError()), NOW, 0.0),
        Transition(rolling_back(START, BOOM, seq=1, undo_seq=1, context='{"left":1}'),
                   Record(1, "patient", STEP, 0, 0, BOOM))),
    # Child failures
    "handled: the step's choice stands": (
        SUSPENDED, forward.handler_returned(SAGA, SUSPENDED, handle, returned()),
        Transition(replace(SUSPENDED, seq=5, handled=3, context="{}"),
                   Record(5, "first", HANDLER, 2, 2), consumes=3, yields=True)),
    "handled: the handler goes elsewhere": (
        SUSPENDED, forward.handler_returned(SAGA, SUSPENDED, handle, returned(GoTo("patient"))),
        Transition(replace(SUSPENDED, next_step="patient", seq=5, handled=3, context="{}"),
                   Record(5, "first", HANDLER, 2, 2), consumes=3, yields=True)),
    "handled: the handler repeats the step": (
        SUSPENDED, forward.handler_returned(SAGA, SUSPENDED, handle, returned(Repeat(), result="2")),
        Transition(replace(SUSPENDED, next_step="first", seq=5, handled=3, context="{}", result="2"),
                   Record(5, "first", HANDLER, 2, 2), consumes=3, yields=True)),
    "handled: what the handler launched is waited for": (
        SUSPENDED, forward.handler_returned(SAGA, SUSPENDED, handle, returned(None, AWAITED)),
        Transition(replace(SUSPENDED, seq=5, instance=5, handled=3, context="{}"),
                   Record(5, "first", HANDLER, 2, 2), AWAITED, consumes=3, mail=Mail.DROP_IF_WAITING, yields=True)),
    "the handler raised": (
        SUSPENDED, forward.handler_raised(SUSPENDED, handle, raised()),
        Transition(rolling_back(SUSPENDED, BOOM, seq=5, undo_seq=5, context='{"left":1}'),
                   Record(5, "first", HANDLER, 2, 2, BOOM))),
    "children failed and nobody handles it": (
        SUSPENDED, transition.roll_back(SUSPENDED, BOOM, SUSPENDED.context),
        Transition(rolling_back(SUSPENDED, BOOM, undo_seq=4))),
    # Rolling back
    "children are asked": (
        BACK, backward.ask_children(BACK, decision.AskChildren(OF_FIRST), SOURCE),
        Transition(BACK, asks=(3, Failure.parent_said_so(REASON, source=SOURCE)), mail=Mail.DROP_IF_WAITING)),
    "compensated": (
        BACK, backward.compensation_returned(BACK, compensate, returned()),
        Transition(replace(BACK, seq=7, context="{}", undo_seq=2, attempt=0),
                   Record(7, "first", COMPENSATION, 2, 1, undoes=3), undone=3)),
    "compensated, and launched on the global scope": (
        BACK, backward.compensation_returned(BACK, compensate, returned(None, GLOBAL)),
        Transition(replace(BACK, seq=7, context="{}", undo_seq=2, attempt=0),
                   Record(7, "first", COMPENSATION, 2, 1, undoes=3), GLOBAL, undone=3)),
    "a compensation that launched waits": (
        BACK, backward.compensation_returned(BACK, compensate, returned(None, AWAITED)),
        Transition(replace(BACK, seq=7, context="{}", compensation_seq=7),
                   Record(7, "first", COMPENSATION, 2, 1, undoes=3), AWAITED, mail=Mail.DROP_IF_WAITING)),
    "its children have finished": (
        WAITING, backward.undone(WAITING, OF_FIRST),
        Transition(replace(WAITING, undo_seq=2, compensation_seq=None, attempt=0), undone=3)),
    "the first instance is undone: nothing is left": (
        BACK, backward.compensation_returned(BACK, decision.Compensate(FIRST, callback, VERY_FIRST), returned()),
        Transition(replace(BACK, state=RunState.ROLLED_BACK, seq=7, context="{}", undo_seq=0, attempt=0),
                   Record(7, "first", COMPENSATION, 0, 1, undoes=1), mail=Mail.DROP, undone=1)),
    "the first instance is undone, behind something that could not be": (
        replace(BACK, unresolved=BOOM), backward.undone(replace(BACK, unresolved=BOOM), VERY_FIRST),
        Transition(replace(BACK, unresolved=BOOM, undo_seq=0, attempt=0), undone=1)),
    "a compensation failed for good": (
        BACK, backward.compensation_raised(SAGA, BACK, compensate, raised(), NOW, 0.0),
        Transition(replace(BACK, state=RunState.ROLLBACK_FAILED, seq=7, obstacle=BOOM, context='{"left":1}'),
                   Record(7, "first", COMPENSATION, 2, 1, BOOM, undoes=3), mail=Mail.DROP)),
    "a compensation is tried again, from the context before it": (
        BACK, backward.compensation_raised(SAGA, BACK, again, raised(), NOW, 0.9),
        Transition(replace(BACK, seq=7, attempt=2, not_before=NOW + timedelta(seconds=8)),
                   Record(7, "patient", COMPENSATION, 2, 1, BOOM, undoes=3), mail=Mail.DROP,
                   wake_at=NOW + timedelta(seconds=8))),
    "children of a compensation failed: it is tried again": (
        WAITING,
        backward.compensation_failed(SAGA, WAITING, decision.CompensationFailed(PATIENT, OF_PATIENT, BOOM), NOW, 0.0),
        Transition(replace(WAITING, attempt=2, compensation_seq=None, not_before=NOW + timedelta(seconds=8)),
                   mail=Mail.DROP, wake_at=NOW + timedelta(seconds=8))),
    "children of a compensation failed for good": (
        WAITING,
        backward.compensation_failed(SAGA, WAITING, decision.CompensationFailed(FIRST, OF_FIRST, BOOM), NOW, 0.0),
        Transition(replace(WAITING, state=RunState.ROLLBACK_FAILED, obstacle=BOOM), mail=Mail.DROP)),
    "a failed rollback of a child is swallowed": (
        BACK, backward.child_rollback_handled(BACK, swallow, returned()),
        Transition(replace(BACK, seq=7, context="{}", handled=1),
                   Record(7, "first", HANDLER, 2, 0, BOOM, undoes=3, swallows=True), consumes=3)),
    "what its handler launched is waited for, and nothing is swallowed yet": (
        BACK, backward.child_rollback_handled(BACK, swallow, returned(None, AWAITED)),
        Transition(replace(BACK, seq=7, context="{}", handled=1, handler_seq=7),
                   Record(7, "first", HANDLER, 2, 0, BOOM, undoes=3, swallows=True), AWAITED,
                   mail=Mail.DROP_IF_WAITING)),
    "what its handler launched on the global scope is not waited for": (
        BACK, backward.child_rollback_handled(BACK, swallow, returned(None, GLOBAL)),
        Transition(replace(BACK, seq=7, context="{}", handled=1),
                   Record(7, "first", HANDLER, 2, 0, BOOM, undoes=3, swallows=True), GLOBAL, consumes=3)),
    "its handler is called again": (
        HANDLED, backward.child_rollback_handled(HANDLED, swallow, returned(None, AWAITED)),
        Transition(replace(HANDLED, seq=7, context="{}", handled=3, handler_seq=7),
                   Record(7, "first", HANDLER, 2, 2, BOOM, undoes=3, swallows=True), AWAITED,
                   mail=Mail.DROP_IF_WAITING)),
    "its handler is called again, and launches nothing": (
        HANDLED, backward.child_rollback_handled(HANDLED, swallow, returned()),
        Transition(replace(HANDLED, seq=7, context="{}", handled=3, handler_seq=None),
                   Record(7, "first", HANDLER, 2, 2, BOOM, undoes=3, swallows=True), consumes=3)),
    "what its handler launched has finished": (
        HANDLED, backward.handled(HANDLED, OF_FIRST), Transition(replace(HANDLED, handler_seq=None), consumes=3)),
    "what the handler of a compensation's children launched has finished": (
        replace(HANDLED, compensation_seq=5), backward.handled(replace(HANDLED, compensation_seq=5), OF_FIRST),
        Transition(replace(HANDLED, undo_seq=2, handler_seq=None, handled=0, attempt=0), undone=3)),
    "a failure of a compensation's own child is swallowed": (
        WAITING, backward.child_rollback_handled(WAITING, swallow, returned()),
        Transition(replace(WAITING, seq=7, context="{}", undo_seq=2, compensation_seq=None, attempt=0),
                   Record(7, "first", HANDLER, 2, 0, BOOM, undoes=3, swallows=True), undone=3)),
    "a failed rollback of a child is not swallowed": (
        HANDLED, backward.child_rollback_not_handled(SAGA, HANDLED, swallow, raised()),
        Transition(replace(HANDLED, state=RunState.ROLLBACK_FAILED, seq=7, obstacle=BOOM, context='{"left":1}'),
                   Record(7, "first", HANDLER, 2, 2, BOOM, undoes=3), mail=Mail.DROP)),
    # Giving up
    "children that are open are told": (
        SUSPENDED, transition.cancel_children(SUSPENDED, REASON),
        Transition(replace(SUSPENDED, giving_up=REASON), cancels=REASON, mail=Mail.DROP_IF_WAITING)),
    "children that have not started by their deadline have failed": (
        SUSPENDED, deadline.expire_children(SUSPENDED, NOW, SOURCE),
        Transition(SUSPENDED, expires=Failure.gave_up([deadline.missed(Deadline(NOW, SOURCE))], source=SOURCE),
                   mail=Mail.DROP_IF_WAITING)),
    "a step that has set a deadline": (
        MIDDLE, step_returned(
            SAGA, MIDDLE, invoke, replace(returned(), asks=Timeouts(1.0), deadline=Deadline(NOW, SOURCE))),
        Transition(forwarded(own_deadline=Deadline(NOW, SOURCE)), Record(5, "second", STEP, 0, 1), yields=True)),
    "a step that says nothing leaves the deadline": (
        replace(MIDDLE, own_deadline=Deadline(NOW, SOURCE)),
        step_returned(SAGA, replace(MIDDLE, own_deadline=Deadline(NOW, SOURCE)), invoke, returned()),
        Transition(forwarded(own_deadline=Deadline(NOW, SOURCE)), Record(5, "second", STEP, 0, 1), yields=True)),
    "a step that has lifted the deadline": (
        replace(MIDDLE, own_deadline=Deadline(NOW, SOURCE)),
        step_returned(SAGA, replace(MIDDLE, own_deadline=Deadline(NOW, SOURCE)), invoke,
                              replace(returned(), asks=Timeouts())),
        Transition(forwarded(), Record(5, "second", STEP, 0, 1), yields=True)),
    "it has given up, and its children have ended": (
        replace(SUSPENDED, giving_up=REASON),
        transition.roll_back(replace(SUSPENDED, giving_up=REASON), BOOM, SUSPENDED.context),
        Transition(rolling_back(SUSPENDED, BOOM, undo_seq=SUSPENDED.seq))),
    "a shielded step is committed, whatever is asked": (
        MIDDLE, step_returned(ASIDE, MIDDLE, decision.Invoke(SHIELDED, 0), returned()),
        Transition(forwarded(step="shielded", next_step="completing"), Record(5, "shielded", STEP, 0, 1))),
    "a step that completes on giving up is committed, whatever is asked": (
        MIDDLE, step_returned(ASIDE, MIDDLE, decision.Invoke(COMPLETING, 0), returned(GoTo("shielded"))),
        Transition(forwarded(step="completing", next_step="shielded"), Record(5, "completing", STEP, 0, 1))),
    "the last step, if it is committed whatever is asked, does not end the run": (
        MIDDLE, step_returned(ASIDE, MIDDLE, decision.Invoke(COMPLETING, 0), returned()),
        Transition(forwarded(step="completing", next_step=None), Record(5, "completing", STEP, 0, 1))),
    # Sleeping
    "a step sleeps": (
        MIDDLE, step_returned(SAGA, MIDDLE, invoke, returned(Asleep(HOUR))),
        Transition(forwarded(not_before=NOW + HOUR), Record(5, "second", STEP, 0, 1), mail=Mail.DROP,
                   wake_at=NOW + HOUR, yields=True)),
    "a step sleeps until a point in time, and waits for what it has launched": (
        MIDDLE, step_returned(SAGA, MIDDLE, invoke, returned(Asleep(NOW + HOUR), AWAITED)),
        Transition(forwarded(not_before=NOW + HOUR), Record(5, "second", STEP, 0, 1), AWAITED,
                   mail=Mail.DROP_IF_WAITING, wake_at=NOW + HOUR, yields=True)),
    "a step would sleep until what is over": (
        MIDDLE, step_returned(SAGA, MIDDLE, invoke, returned(Asleep(NOW))),
        Transition(forwarded(), Record(5, "second", STEP, 0, 1), yields=True)),
    # Ends
    "committed": (
        SUSPENDED, forward.committed(SAGA, SUSPENDED),
        Transition(replace(SUSPENDED, state=RunState.COMMITTED), mail=Mail.DROP, yields=True)),
    "rolled back": (
        BACK, backward.rolled_back(BACK), Transition(replace(BACK, state=RunState.ROLLED_BACK), mail=Mail.DROP)),
    "rollback failed": (
        BACK, backward.rollback_failed(BACK, BOOM),
        Transition(replace(BACK, state=RunState.ROLLBACK_FAILED, obstacle=BOOM), mail=Mail.DROP)),
    "parked": (
        MIDDLE, transition.parked(MIDDLE, "why", "a step"),
        Transition(replace(MIDDLE, state=RunState.PARKED, reason="why", needs="a step"), mail=Mail.DROP)),
    "parked while rolling back": (
        BACK, transition.parked(BACK, "why"),
        Transition(replace(BACK, state=RunState.PARKED, reason="why"), mail=Mail.DROP)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_becomes_of_a_run(name: str) -> None:
    _, change, expected = CASES[name]
    assert change == expected


@pytest.mark.parametrize("name", CASES)
def test_a_run_changes_its_state_as_the_table_allows(name: str) -> None:
    before, change, _ = CASES[name]
    assert before.state == change.run.state or (before.state, change.run.state) in RUN_TRANSITIONS


def test_every_change_that_a_run_makes_by_itself_has_a_case() -> None:
    changes = {(before.state, change.run.state) for before, change, _ in CASES.values()}
    ordered = {
        (RunState.COMMITTED, RunState.ROLLING_BACK),  # by the parent
        (RunState.PARKED, RunState.RUNNING),  # by a person, or by a worker that knows what it needs
        (RunState.PARKED, RunState.ROLLING_BACK),
        (RunState.PARKED, RunState.ROLLBACK_FAILED),
        (RunState.ROLLBACK_FAILED, RunState.ROLLING_BACK),
    }
    assert {(one, other) for one, other in changes if one != other} == set(RUN_TRANSITIONS) - ordered


@pytest.mark.parametrize("name", CASES)
def test_an_ended_run_keeps_no_mail_and_a_waiting_retry_is_woken(name: str) -> None:
    _, change, _ = CASES[name]
    assert not change.run.state.ended or change.mail is Mail.DROP
    assert change.wake_at is None or change.wake_at == change.run.not_before


@pytest.mark.parametrize("value", [0, False, "second", Repeat, GoTo, object(), [], {}])
def test_a_step_returns_nothing_else(value: object) -> None:
    with pytest.raises(StepError, match="returns None, Repeat"):
        forward.next_step(SAGA, "first", value)


@pytest.mark.parametrize("name", ["nowhere", "", "First", "first "])
def test_gt_11_goto_a_name_that_does_not_exist_tells_the_names_that_do(name: str) -> None:
    with pytest.raises(StepError, match="'first', 'second', 'patient'"):
        forward.next_step(SAGA, "first", GoTo(name))


@pytest.mark.parametrize("value, follows", [(None, "second"), (Repeat(), "first"), (GoTo("patient"), "patient")])
def test_what_follows_a_step(value: object, follows: str) -> None:
    assert forward.next_step(SAGA, "first", value) == follows


def test_nothing_follows_the_last_step() -> None:
    assert forward.next_step(SAGA, "patient", None) is None


AT = Frame("launch.py", 3, None, "launcher")


@pytest.mark.parametrize(
    "fail",
    [
        lambda of: transition.roll_back(of, BOOM, None),
        lambda of: forward.step_raised(of, invoke, raised(), NOW, 0.0),
        lambda of: backward.rollback_failed(of, BOOM),
    ],
)
def test_a_failure_tells_where_the_message_was_launched(fail: Callable[[Run], Transition]) -> None:
    change = fail(run(launched_at=AT))
    assert change.run.told is not None
    assert change.run.told.launched_at == AT
    assert change.record is None or change.record.failure is change.run.told


@given(st.integers(0, 5), st.floats(0, 1, exclude_max=True), st.sampled_from([NotNow(), ValueError()]))
def test_q44_attempts_are_counted_and_end(attempt: int, chance: float, error: Exception) -> None:
    before = replace(START, seq=attempt, attempt=attempt)
    change = forward.step_raised(before, decision.Invoke(PATIENT, 0), raised(error), NOW, chance)
    assert change.record is not None
    assert (change.record.seq, change.record.attempt) == (attempt + 1, attempt)
    if attempt < 2 and isinstance(error, NotNow):
        assert change.run.attempt == attempt + 1
        assert change.run.context == before.context
        assert change.wake_at is not None
        assert NOW < change.wake_at <= NOW + timedelta(seconds=2)
    else:
        assert (change.run.state, change.run.attempt, change.wake_at) == (RunState.ROLLING_BACK, 0, None)
        assert json.loads(change.run.context or "") == {"left": 1}
