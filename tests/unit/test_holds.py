"""What the broker does not take just now, and when it is tried again."""

import pytest

from scoop_outbox.daemon import holds as holds_module
from scoop_outbox.daemon.holds import Holds
from tests.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(holds_module, "time", clock)
    return clock


def test_a_topic_is_tried_again_in_all_shards_at_once_from_its_first_message_on(clock: Clock) -> None:
    holds = Holds()
    holds.failed({(1, "full"): 10}, [], "full")
    clock.now += 0.09
    holds.failed({(2, "full"): 20, (2, "other"): 15}, [], "full")
    assert holds.try_again() == {}
    clock.now += 0.02
    assert holds.try_again() == {1: 10, 2: 20}
    assert holds.closed == [(2, "other")]
    assert holds.try_again() == {}


def test_each_time_is_twice_as_long_unless_something_went_through(clock: Clock) -> None:
    holds = Holds()
    flow = (1, "full")
    for pause in (0.1, 0.2, 0.4):
        holds.failed({flow: 1}, [], "full")
        assert holds.next_due == pytest.approx(pause)
        clock.now += pause + 0.001
        assert holds.try_again() == {1: 1}
    holds.failed({flow: 5}, [flow], "full")
    assert holds.next_due == pytest.approx(0.1)
    holds.let_go([flow])
    assert not holds
    assert (holds.next_due, holds.reason) == (None, "")


def test_others_of_the_flow_that_go_through_do_not_make_it_quick_again(clock: Clock) -> None:
    holds = Holds()
    flow = (1, "no leader for one partition")
    for pause in (0.1, 0.2, 0.4):
        holds.failed({flow: 7}, [flow], "no leader")
        assert holds.next_due == pytest.approx(pause)
        clock.now += pause + 0.001
        holds.try_again()


def test_when_nothing_goes_through_all_wait_a_little(clock: Clock) -> None:
    holds = Holds()
    holds.failed({(1, "full"): 1}, [], "full")
    assert holds.pause == pytest.approx(0.1)
    clock.now += 20
    holds.failed({(1, "full"): 1}, [], "full")
    assert holds.pause == pytest.approx(0.2)
    assert holds.stalled == pytest.approx(20)
    holds.failed({(1, "full"): 1}, [(1, "other")], "full")
    assert (holds.pause, holds.stalled) == (0, 0)
