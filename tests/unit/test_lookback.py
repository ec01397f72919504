"""How far back a worker looks for mail."""

from datetime import timedelta

import pytest

from scoop_outbox.daemon import full_scan as full_scan_module
from scoop_outbox.daemon.worker import lookback as horizon_module
from scoop_outbox.daemon.worker.lookback import Lookback
from tests.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (horizon_module, full_scan_module):
        monkeypatch.setattr(module, "time", clock)
    return clock


def years(back: timedelta) -> bool:
    return back > timedelta(days=365)


def test_the_first_look_is_from_the_beginning_and_then_from_the_oldest_that_lies_there(clock: Clock) -> None:
    lookback = Lookback()
    assert years(lookback.look())
    lookback.looked(30.0)
    clock.now += 2
    assert lookback.look() == timedelta(seconds=30 + 2 + 10)
    lookback.looked(1.0)
    clock.now += 1
    assert lookback.look() == timedelta(seconds=1 + 1 + 10)
    lookback.looked(None)
    assert lookback.look() == timedelta(seconds=10)


def test_mail_that_is_due_later_is_no_reason_to_look_back(clock: Clock) -> None:
    lookback = Lookback()
    lookback.look()
    lookback.looked(-60.0)
    clock.now += 1
    assert timedelta(0) < lookback.look() <= timedelta(seconds=11)


def test_now_and_then_everything_is_looked_through_less_often_the_longer_it_takes(clock: Clock) -> None:
    lookback = Lookback()
    lookback.look()
    clock.now += 1  # it took a second
    lookback.looked(None)
    clock.now += 18
    assert not years(lookback.look())
    lookback.looked(None)
    clock.now += 1
    assert years(lookback.look())
    lookback.looked(None)
    clock.now += 4
    assert not years(lookback.look())
    clock.now += 1
    assert years(lookback.look())


def test_when_there_may_be_older_mail_everything_is_looked_through_at_once(clock: Clock) -> None:
    lookback = Lookback()
    lookback.look()
    lookback.looked(None)
    lookback.forget()
    assert years(lookback.look())
    lookback.looked(None)
    assert not years(lookback.look())
    lookback.forget()
    lookback.looked(None)
    assert years(lookback.look()), "also when it was told in the middle of a look"
