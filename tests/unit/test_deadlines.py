"""Deadlines as values: how they combine, travel, and when a run is looked at because of them."""

import json
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoop_outbox._deadlines import LONGEST, NONE, TRACE_LIMIT, Budget, Deadline, Deadlines, Timeouts, earlier
from scoop_outbox._emission import Emission
from scoop_outbox.core.deadline import dated, deadline_of, kept_deadline, passed_on
from scoop_outbox.core.run import Facts, Run, RunState, StepKind
from scoop_outbox.core.transition import Mail, Record, Transition
from scoop_outbox.errors import DefinitionError
from scoop_outbox.failure import Failure, Frame
from scoop_outbox.message import Envelope
from scoop_outbox.saga import Saga
from scoop_outbox.wire.headers import DEADLINES
from scoop_outbox.wire.validation import defect

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
PLAIN = Saga("plain", "topic")

times = st.integers(0, 5).map(lambda seconds: NOW + seconds * SECOND)
deadlines = st.recursive(
    st.builds(Deadline, times, st.sampled_from("ab")),
    lambda below: st.builds(earlier, below, below),
    max_leaves=5,
)


def test_dl_04_the_later_one_and_both_traces_go_into_the_trace() -> None:
    x, y = Deadline(NOW, "x"), Deadline(NOW + 9 * SECOND, "y")
    one, other = Deadline(NOW + SECOND, "a", (x,)), Deadline(NOW + 2 * SECOND, "b", (y,))
    expected = Deadline(NOW + SECOND, "a", (x, Deadline(NOW + 2 * SECOND, "b"), y))
    assert earlier(one, other) == earlier(other, one) != one
    assert earlier(one, other) == expected


def test_dl_04_of_two_equal_ones_the_first_counts() -> None:
    found = earlier(Deadline(NOW, "a"), Deadline(NOW, "b"))
    assert found == Deadline(NOW, "a", (Deadline(NOW, "b"),))


@given(deadlines, deadlines)
def test_the_earlier_one_is_never_later_and_its_trace_is_bounded(one: Deadline, other: Deadline) -> None:
    found = earlier(one, other)
    assert found is not None
    assert found.at == min(one.at, other.at)
    assert len(found.trace) <= TRACE_LIMIT
    assert earlier(one, None) == one == earlier(None, one)


@given(st.none() | deadlines, st.none() | st.builds(Budget, st.floats(0.1, 9), st.sampled_from("ab")))
def test_deadlines_come_back_as_they_were_sent(happy_path: Deadline | None, rollback: Budget | None) -> None:
    sent = Deadlines(happy_path, rollback)
    text = sent.dumps()
    assert (text is None) == (sent == NONE)
    assert text is None or Deadlines.from_json(json.loads(text)) == sent


def test_dl_13_what_is_told_names_source_time_and_trace() -> None:
    there = timezone(timedelta(hours=2))
    told = Deadline(NOW.astimezone(there), "me", (Deadline(NOW + SECOND, "you"),)).missed
    assert told == (
        "Missed happy path deadline of me at 2026-11-24T12:00:00+00:00. Deadline trace: "
        '[{"happyPath": {"deadline": "2026-11-24T12:00:01+00:00", "source": "you", "trace": []}}]'
    )
    assert Deadline(NOW, "me").missed.endswith("Deadline trace: []")


def test_dl_05_no_end_of_time_is_too_far() -> None:
    asked = Timeouts.of(1e18, None, None)
    assert asked is not None
    found = asked.resolve(NOW, "me").happy_path
    assert found is not None
    assert found.at == NOW + timedelta(seconds=LONGEST)


@pytest.mark.parametrize("duration", [0, -1, float("nan"), "soon", timedelta(0)])
def test_durations_are_positive(duration: Any) -> None:
    with pytest.raises(DefinitionError, match="timeout="):
        Timeouts.of(duration, None, None)


def test_the_shorter_budget_counts() -> None:
    short, long = Budget(1.0, "a"), Budget(2.0, "b")
    assert Deadlines(rollback=long).within(Deadlines(rollback=short)).rollback == short
    assert Deadlines(rollback=short).within(Deadlines(rollback=long)).rollback == short
    assert NONE.within(Deadlines(rollback=long)).rollback == long


def run(state: RunState = RunState.RUNNING, **more: Any) -> Run:
    ids = [uuid.UUID(int=number) for number in (1, 2)]
    return Run(ids[0], ids[1], "service", "plain", (ids[0],), None, state, created_at=NOW, **more)


LATE = Deadlines(Deadline(NOW + 5 * SECOND, "above"))


@pytest.mark.parametrize(
    "change, facts, due",
    [
        (Transition(run(deadlines=LATE), mail=Mail.DROP_IF_WAITING), Facts(NOW), 5),
        (Transition(run(deadlines=LATE), mail=Mail.DROP), Facts(NOW), 5),
        (Transition(run(deadlines=LATE), mail=Mail.DROP, wake_at=NOW + 2 * SECOND), Facts(NOW), 2),
        (Transition(run(deadlines=LATE), mail=Mail.DROP, wake_at=NOW + 9 * SECOND), Facts(NOW), 5),
        (Transition(run(deadlines=LATE), mail=Mail.DROP), Facts(NOW, child_deadline=NOW + SECOND), 1),
        (Transition(run(), mail=Mail.DROP_IF_WAITING), Facts(NOW), None),
        (Transition(run(deadlines=LATE), mail=Mail.KEEP), Facts(NOW), None),
        (Transition(run(deadlines=LATE), mail=Mail.DROP), Facts(NOW + 5 * SECOND), None),
        (Transition(run(RunState.COMMITTED, deadlines=LATE), mail=Mail.DROP), Facts(NOW), None),
        (Transition(run(RunState.ROLLING_BACK, deadlines=LATE), mail=Mail.DROP), Facts(NOW), None),
        (Transition(run(RunState.ROLLING_BACK, rollback_by=NOW + SECOND), mail=Mail.DROP), Facts(NOW), 1),
        (
            Transition(run(deadlines=LATE, giving_up=Failure("Why", None, "me")), mail=Mail.DROP_IF_WAITING),
            Facts(NOW),
            None,
        ),
    ],
)
def test_a_run_that_waits_is_looked_at_when_its_next_deadline_comes(
    change: Transition, facts: Facts, due: int | None
) -> None:
    before = replace(change.run, state=RunState.ROLLING_BACK)  # a rollback that begins is another matter
    after = dated(change, PLAIN, before, facts, facts.now)
    assert after.wake_at == (None if due is None else NOW + due * SECOND)


def test_a_child_with_a_deadline_of_its_own_is_looked_after_from_its_launch_on() -> None:
    child = Emission(uuid.UUID(int=9), "t", None, b"", "", {}, None, True, Frame("f", 1, None, "f"))
    child = replace(child, child_deadline=NOW + 3 * SECOND)
    change = Transition(run(), emissions=(child,), mail=Mail.DROP_IF_WAITING)
    assert dated(change, PLAIN, run(), Facts(NOW), NOW).wake_at == NOW + 3 * SECOND


def test_q20_the_budget_begins_with_the_rollback() -> None:
    before = run(deadlines=Deadlines(rollback=Budget(7.0, "above")))
    began = dated(Transition(replace(before, state=RunState.ROLLING_BACK)), PLAIN, before, Facts(NOW), NOW)
    assert began.run.rollback_by == NOW + 7 * SECOND
    shorter = Saga("plain", "topic", rollback_timeout=2)
    began = dated(Transition(replace(before, state=RunState.ROLLING_BACK)), shorter, before, Facts(NOW), NOW)
    assert began.run.rollback_by == NOW + 2 * SECOND


def test_what_binds_a_run_goes_down() -> None:
    saga = Saga("plain", "topic", timeout=3, rollback_timeout=2)
    own = Deadline(NOW + 4 * SECOND, "me")
    found = passed_on(saga, run(own_deadline=own, deadlines=LATE), NOW)
    assert found.happy_path is not None
    assert (found.happy_path.at, found.happy_path.source) == (NOW + 3 * SECOND, "plain")
    assert found.rollback == Budget(2.0, "plain")


@pytest.mark.parametrize(
    "timeout, at",
    [(3, 3), (9, 4), (None, 4)],  # as before; raised since, or taken away: then what the run has set itself counts
)
def test_the_timeout_of_a_saga_that_is_kept_with_a_run_gives_way_to_that_of_the_code(
    timeout: float | None, at: int
) -> None:
    own = Deadline(NOW + 4 * SECOND, "plain[worker]")
    kept = kept_deadline(Saga("former", "topic", timeout=3), run(own_deadline=own))
    assert kept == Deadline(NOW + 3 * SECOND, "former", (own,))
    found = deadline_of(Saga("plain", "topic", timeout=timeout, formerly=["former"]), run(own_deadline=kept))
    assert found is not None
    assert found.at == NOW + at * SECOND


def test_dl_10_what_a_compensation_launches_is_bound_by_the_budget_alone() -> None:
    assert passed_on(PLAIN, run(RunState.ROLLING_BACK, deadlines=LATE), NOW) == NONE
    bound = passed_on(PLAIN, run(RunState.ROLLING_BACK, deadlines=LATE, rollback_by=NOW), NOW).happy_path
    assert bound is not None
    assert bound.at == NOW


def test_a_deadline_that_is_over_wakes_once_after_the_callback_that_has_set_it() -> None:
    late = Deadline(NOW - SECOND, "me")
    record = Record(1, "0", StepKind.STEP, 0, 0)
    set_late = Transition(run(own_deadline=late), record, mail=Mail.DROP_IF_WAITING)
    assert dated(set_late, PLAIN, run(), Facts(NOW), NOW).wake_at == late.at
    assert dated(replace(set_late, record=None), PLAIN, run(), Facts(NOW), NOW).wake_at is None


def test_a_parked_run_is_looked_at_at_its_deadline() -> None:
    parked = Transition(run(RunState.PARKED, deadlines=LATE), mail=Mail.DROP)
    assert dated(parked, PLAIN, run(deadlines=LATE), Facts(NOW), NOW).wake_at == NOW + 5 * SECOND
    undoing = Transition(run(RunState.PARKED, deadlines=LATE, undo_seq=1), mail=Mail.DROP)
    assert dated(undoing, PLAIN, run(RunState.ROLLING_BACK), Facts(NOW), NOW).wake_at is None


def test_a_child_that_is_told_to_roll_back_has_the_shorter_budget() -> None:
    told = run(RunState.ROLLING_BACK, seq=2, undo_seq=2, rollback_by=NOW + 9 * SECOND)
    shorter = Saga("plain", "topic", rollback_timeout=2)
    assert dated(Transition(told), shorter, told, Facts(NOW), NOW).run.rollback_by == NOW + 2 * SECOND
    under_way = replace(told, undo_seq=1)
    assert dated(Transition(under_way), shorter, under_way, Facts(NOW), NOW).run.rollback_by == NOW + 9 * SECOND


def test_what_is_shielded_passes_no_deadline_on_but_the_budget() -> None:
    bound = run(deadlines=Deadlines(LATE.happy_path, Budget(7.0, "above")))
    assert passed_on(PLAIN, bound, NOW, shielded=True) == Deadlines(None, Budget(7.0, "above"))


@pytest.mark.parametrize(
    "stored",
    [
        {"rollback": {"timeout": 10**400, "source": "s"}},
        {"rollback": {"timeout": "nan", "source": "s"}},
        {"rollback": {"timeout": 1e300, "source": "s"}},
        {"rollback": {"timeout": -1, "source": "s"}},
        {"rollback": {"source": "s"}},
        {"happyPath": {"deadline": "0001-01-01T00:00:00+14:00", "source": "s"}},
        {"happyPath": {"deadline": "9999-12-31T23:59:59-14:00", "source": "s"}},
        {"happyPath": {"deadline": "2026-11-30T12:00:00", "source": "s"}},
        {"happyPath": {"deadline": 5, "source": "s"}},
        {"happyPath": []},
        [],
    ],
)
def test_what_is_no_deadline_is_refused_before_it_is_taken_in(stored: object) -> None:
    envelope = Envelope(str(uuid.uuid4()), "t", None, b"", "", {DEADLINES: json.dumps(stored)})
    assert defect(envelope) == "its header scoop-deadlines holds no deadlines"


def test_a_trace_within_a_trace_is_not_kept() -> None:
    nested: dict[str, Any] = {"deadline": NOW.isoformat(), "source": "s", "trace": []}
    for _ in range(400):
        nested = {"deadline": NOW.isoformat(), "source": "s", "trace": [nested]}
    found = Deadlines.from_json({"happyPath": nested}).happy_path
    assert found == Deadline(NOW, "s", (Deadline(NOW, "s"),))


@pytest.mark.parametrize("far", [datetime(9999, 12, 31, 23), datetime(1, 1, 1)])  # noqa: DTZ001
@pytest.mark.parametrize("hours", [-12, 0, 12])
def test_any_time_zone_is_told_in_utc(far: datetime, hours: int) -> None:
    asked = Timeouts.of(None, far.replace(tzinfo=timezone(timedelta(hours=hours))), None)
    assert asked is not None
    assert asked.deadline is not None
    assert asked.deadline.utcoffset() == timedelta(0)
    assert json.loads(asked.resolve(NOW, "me").dumps() or "")["happyPath"]["source"] == "me"


@pytest.mark.parametrize("duration", [float("inf"), 1e300, timedelta.max])
def test_durations_without_an_end_are_cut(duration: Any) -> None:
    asked = Timeouts.of(duration, None, duration)
    assert asked == Timeouts(LONGEST, None, LONGEST)
    assert Deadlines.from_json(json.loads(asked.resolve(NOW, "me").dumps() or "")).rollback == Budget(LONGEST, "me")
