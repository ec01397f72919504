"""Which calls are slow, and that each is told of once: the time is what the test says."""

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from scoop_outbox import Message
from scoop_outbox.core.run import Run, RunState
from scoop_outbox.core.statement import Call
from scoop_outbox.daemon.worker.slow_steps import SlowSteps

MESSAGE: Message[Any] = Message(
    uuid.uuid4(), "orders", "A-1", b"1", "application/json", {}, datetime(2026, 1, 1, tzinfo=UTC)
)


class Told:
    """Stands for the reports of a worker."""

    def __init__(self) -> None:
        self.of: list[tuple[str, int, float]] = []

    def slow(self, call: Call, seconds: float) -> None:
        self.of.append((call.step, call.attempt, seconds))


def call(step: str, *, attempt: int = 0, timeout: float | None = None) -> Call:
    run = Run(uuid.uuid4(), MESSAGE.id, "shop", "order", (), None, RunState.RUNNING)
    return Call(lambda: None, run, step, MESSAGE, 0, attempt, f"{run.id}:1:step", "here", timeout=timeout)


def looked(*looks: tuple[float, list[Call]], slow_after: float = 60.0) -> tuple[SlowSteps, Told]:
    told = Told()
    now: list[Call] = []
    slow = SlowSteps(told, lambda: now, slow_after)  # type: ignore[arg-type] # all that it asks of reports
    for at, calls in looks:
        now[:] = calls
        slow.look(at)
    return slow, told


def test_a_call_is_slow_when_it_has_been_seen_for_long_and_is_told_of_once() -> None:
    pay = call("pay")
    slow, told = looked((0, [pay]), (59.9, [pay]))
    assert (told.of, slow.now, slow.counts) == ([], 0, {})
    slow, told = looked((0, [pay]), (30, [pay]), (60, [pay]), (65, [pay]), (1000, [pay]))
    assert (told.of, slow.now, slow.counts) == ([("pay", 0, 60)], 1, {("order", "pay"): 1})


def test_calls_that_follow_each_other_are_not_one() -> None:
    calls = [call("pay", attempt=number) for number in range(10)]
    slow, told = looked(*((10.0 * number, [one]) for number, one in enumerate(calls)))
    assert (told.of, slow.now) == ([], 0)


def test_each_attempt_is_told_of() -> None:
    first, second = call("pay"), call("pay", attempt=1)
    slow, told = looked((0, [first]), (60, [first]), (70, [second]), (130, [second]), (140, []))
    assert [attempt for _, attempt, _ in told.of] == [0, 1]
    assert (slow.now, slow.counts) == (0, {("order", "pay"): 2})


def test_what_comes_twice_is_one_call() -> None:
    pay = call("pay")
    slow, told = looked((0, [pay, pay]), (60, [pay, pay]))
    assert (len(told.of), slow.now) == (1, 1)


def test_a_step_with_a_limit_of_its_own_is_none_of_ours() -> None:
    report = call("report", timeout=600.0)
    slow, told = looked((0, [report]), (300, [report]))
    assert (told.of, slow.now) == ([], 0)


@pytest.mark.parametrize("count", [1, 16])
def test_all_slots_are_looked_at(count: int) -> None:
    calls = [call(f"step {number}") for number in range(count)]
    slow, told = looked((0, calls), (61, calls))
    assert (sorted(step for step, *_ in told.of), slow.now) == (sorted(one.step for one in calls), count)
