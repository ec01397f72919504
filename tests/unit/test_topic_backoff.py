"""What the broker does not take just now, and when it is tried again."""

import pytest

from scoop_outbox.daemon.relay import topic_backoff as backoff_module
from scoop_outbox.daemon.relay.topic_backoff import TopicBackoff
from tests.clock import Clock

BEHIND = dict.fromkeys(range(8), 1000)
"""Watermarks that have left everything behind that fails."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(backoff_module, "time", clock)
    return clock


def test_a_topic_is_tried_again_in_all_shards_at_once_from_its_first_message_on(clock: Clock) -> None:
    backoff = TopicBackoff()
    backoff.block({(1, "full"): 10}, [], "full", BEHIND)
    clock.now += 0.09
    backoff.block({(2, "full"): 20, (2, "other"): 15}, [], "full", BEHIND)
    assert backoff.try_due() == {}
    clock.now += 0.02
    assert backoff.try_due() == {1: 9, 2: 19}
    assert backoff.blocked == [(2, "other")]
    assert backoff.try_due() == {}


@pytest.mark.usefixtures("clock")
def test_the_line_names_a_few_topics_and_its_field_all_of_them(caplog: pytest.LogCaptureFixture) -> None:
    topics = [f"topic{number}" for number in range(7)]
    TopicBackoff().block({(1, topic): 10 for topic in topics}, [], "full", BEHIND)
    (record,) = caplog.records
    assert record.getMessage().startswith("relay: topics blocked, retrying later (topic0, topic1, ")
    assert "topic6" not in record.getMessage()
    assert vars(record)["topics"] == topics


def test_each_time_is_twice_as_long_unless_something_went_through(clock: Clock) -> None:
    backoff = TopicBackoff()
    flow = (1, "full")
    for pause in (0.1, 0.2, 0.4):
        backoff.block({flow: 1}, [], "full", BEHIND)
        assert backoff.next_due == pytest.approx(pause)
        clock.now += pause + 0.001
        assert backoff.try_due() == {1: 0}
    backoff.block({flow: 5}, [flow], "full", BEHIND)
    assert backoff.next_due == pytest.approx(0.1)
    backoff.unblock([flow])
    assert not backoff
    assert (backoff.next_due, backoff.reason) == (None, "")


def test_others_of_the_flow_that_go_through_do_not_make_it_quick_again(clock: Clock) -> None:
    backoff = TopicBackoff()
    flow = (1, "no leader for one partition")
    for pause in (0.1, 0.2, 0.4):
        backoff.block({flow: 7}, [flow], "no leader", BEHIND)
        assert backoff.next_due == pytest.approx(pause)
        clock.now += pause + 0.001
        backoff.try_due()


def test_when_nothing_goes_through_all_wait_a_little(clock: Clock) -> None:
    backoff = TopicBackoff()
    backoff.block({(1, "full"): 1}, [], "full", BEHIND)
    assert backoff.pause == pytest.approx(0.1)
    clock.now += 20
    backoff.block({(1, "full"): 1}, [], "full", BEHIND)
    assert backoff.pause == pytest.approx(0.2)
    assert backoff.stalled == pytest.approx(20)
    backoff.block({(1, "full"): 1}, [(1, "other")], "full", BEHIND)
    assert (backoff.pause, backoff.stalled) == (0, 0)


def test_rev_01_what_is_held_back_is_read_again_from_the_low_watermark_at_that_time_on(clock: Clock) -> None:
    backoff = TopicBackoff()
    backoff.block({(1, "full"): 10, (2, "full"): 20}, [], "full", {1: 4, 2: 30})
    clock.now += 1
    assert backoff.try_due() == {1: 4, 2: 19}
    # The low watermark was lowered for the trial, and has come as far as what was read.
    backoff.block({(1, "full"): 10}, [], "full", {1: 8})
    clock.now += 1
    assert backoff.try_due() == {1: 8}


def test_rev_01_a_shard_is_read_again_from_the_lowest_of_its_flows_on(clock: Clock) -> None:
    backoff = TopicBackoff()
    backoff.block({(1, "A"): 10}, [], "full", {1: 4})
    backoff.block({(1, "B"): 30}, [], "full", {1: 20})
    clock.now += 1
    assert backoff.try_due() == {1: 4}


def test_what_is_held_back_is_read_from_the_beginning_when_another_server_may_answer(clock: Clock) -> None:
    backoff = TopicBackoff()
    backoff.block({(1, "full"): 10}, [], "full", {1: 4})
    backoff.reset()
    clock.now += 1
    assert backoff.try_due() == {1: 0}
