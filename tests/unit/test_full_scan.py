"""When to look from the beginning."""

import pytest

from scoop_outbox.daemon import full_scan as full_scan_module
from scoop_outbox.daemon.full_scan import FullScan
from tests.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(full_scan_module, "time", clock)
    return clock


def due(sweep: FullScan) -> bool:
    return sweep.due


@pytest.mark.parametrize("took, pause", [(0.01, 5), (0.25, 5), (2.0, 40), (3.0, 60), (50.0, 60)])
def test_the_longer_it_takes_the_less_often_but_at_least_once_in_a_minute(
    clock: Clock, took: float, pause: float
) -> None:
    sweep = FullScan()
    assert due(sweep)
    sweep.begin()
    assert not due(sweep), "nobody else is to begin another one"
    sweep.looked(took)
    clock.now += pause - 0.01
    assert not due(sweep)
    clock.now += 0.02
    assert due(sweep)


def test_a_look_that_is_none_from_the_beginning_says_nothing_of_how_long_one_takes(clock: Clock) -> None:
    sweep = FullScan()
    sweep.begin()
    sweep.looked(0.01)
    sweep.looked(2.0)
    clock.now += 5.01
    assert due(sweep)


def test_when_something_may_be_left_behind_it_is_due_at_once(clock: Clock) -> None:
    sweep = FullScan()
    sweep.begin()
    sweep.soon()
    assert due(sweep)
    sweep.looked(1.0)
    assert due(sweep), "the look that was under way may have been too early"
