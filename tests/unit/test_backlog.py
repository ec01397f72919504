"""Backlog: what a relay has in hand, from the moment it is read until its row is gone."""

import logging
from typing import Any, cast

import pytest

from scoop_outbox.broker.protocol import ACKNOWLEDGED, PublishStatus, Receipt
from scoop_outbox.core.plans.outbox import Place
from scoop_outbox.daemon.counters import RelayCounters
from scoop_outbox.daemon.relay import backlog as backlog_module
from scoop_outbox.daemon.relay.backlog import Backlog
from scoop_outbox.store.callbacks import Interrupted
from tests.clock import Clock
from tests.unit.relay_parts import FakeDriver, FakeLeases, on_topic, outgoing

LOW = dict.fromkeys(range(8), 0)
REFUSED = Receipt(PublishStatus.PERMANENT, "too large")
LATER = Receipt(PublishStatus.RETRIABLE, "no leader")


class World:
    """One backlog, and what is around it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.leases = FakeLeases()
        self.counters = RelayCounters()
        self.backlog = Backlog(cast("Any", self.leases), self.counters)
        self.driver = FakeDriver()

    def publish(self, *receipts: tuple[Place, Receipt]) -> None:
        batch = on_topic(*(place for place, _ in receipts))
        self.backlog.start_publishing(batch)
        self.backlog.end_publishing()
        self.backlog.settle(batch, [receipt for _, receipt in receipts])

    async def delete(self, *, deleted: int = 0, buried: int = 0) -> None:
        self.driver.rows = {"delete_published": [(deleted,)], "bury_unpublishable": [(buried,)]}
        await self.backlog.delete(cast("Any", self.driver))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(backlog_module, "time", clock := Clock())
    return World(clock)


async def test_a_message_is_in_hand_from_its_publishing_until_its_row_is_gone(world: World) -> None:
    backlog, batch = world.backlog, on_topic((1, 10), (2, 11), (1, 12))
    backlog.put_ahead(batch)
    assert (backlog.in_hand(LOW), list(backlog.in_flight)) == ([], []), "it is taken before the next one is read"
    assert backlog.take_ahead() is batch
    assert not backlog.take_ahead()
    backlog.start_publishing(batch)
    assert (backlog.in_hand(LOW), backlog.in_flight) == ([10, 11, 12], batch.places)
    backlog.end_publishing()
    backlog.settle(batch, [ACKNOWLEDGED, REFUSED, LATER])
    assert (backlog.in_hand(LOW), list(backlog.in_flight)) == ([10, 11], []), "what failed for now is read again"
    await world.delete(deleted=1, buried=1)
    assert backlog.in_hand(LOW) == []


@pytest.mark.parametrize(
    "low, in_hand",
    [
        ({1: 0, 2: 0}, [10, 20, 30, 40]),
        ({1: 20, 2: 0}, [30, 40]),
        ({1: 20, 2: 40}, [30]),
        ({2: 0}, [40]),
        ({}, []),
    ],
)
def test_what_lies_below_a_low_watermark_or_in_a_shard_that_is_not_read_need_not_be_left_out(
    world: World, low: dict[int, int], in_hand: list[int]
) -> None:
    world.publish(((1, 10), ACKNOWLEDGED), ((1, 20), REFUSED))
    world.backlog.start_publishing(on_topic((1, 30), (2, 40)))
    assert world.backlog.in_hand(low) == in_hand


@pytest.mark.parametrize(
    "receipts, ahead, later, before_publishing, while_publishing",
    [
        ([], False, 0.0, True, False),
        ([ACKNOWLEDGED], False, 0.0, False, False),
        ([ACKNOWLEDGED], False, 0.02, True, True),
        ([ACKNOWLEDGED], True, 0.02, False, True),
        ([ACKNOWLEDGED] * 3, False, 0.0, False, True),
        ([ACKNOWLEDGED] * 3, True, 0.0, False, True),
        ([REFUSED], False, 0.0, True, False),
        ([REFUSED], True, 0.0, True, False),
        ([LATER], True, 0.02, False, False),
    ],
)
def test_when_rows_are_deleted(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    receipts: list[Receipt],
    ahead: bool,
    later: float,
    before_publishing: bool,
    while_publishing: bool,
) -> None:
    monkeypatch.setattr(backlog_module, "MANY", 3)
    if receipts:
        world.publish(*(((1, seq), receipt) for seq, receipt in enumerate(receipts)))
    if ahead:
        world.backlog.put_ahead(on_topic((1, 100)))
    world.clock.now += later
    assert (world.backlog.due_before_publishing, world.backlog.due_while_publishing) == (
        before_publishing,
        while_publishing,
    )


def test_the_first_row_says_when_all_are_deleted(world: World) -> None:
    assert world.backlog.delete_in is None
    world.publish(((1, 1), LATER), ((1, 2), REFUSED))
    assert world.backlog.delete_in is None
    world.publish(((1, 1), ACKNOWLEDGED))
    assert world.backlog.delete_in == pytest.approx(0.01)
    world.clock.now += 0.008
    world.publish(((1, 3), ACKNOWLEDGED))
    assert world.backlog.delete_in == pytest.approx(0.002)


async def test_rows_are_deleted_in_the_epochs_that_are_owned_and_counted(world: World) -> None:
    world.publish(((1, 10), ACKNOWLEDGED), ((2, 11), ACKNOWLEDGED), ((1, 12), ACKNOWLEDGED), ((3, 13), LATER))
    world.leases.epochs = {1: 7, 2: 8}
    await world.delete(deleted=3)
    params = world.driver.params("delete_published")
    assert (params["shards"], params["seqs"]) == ([1, 2], ["{10,12}", "{11}"])
    assert (params["owned"], params["epochs"]) == ([1, 2], [7, 8])
    assert (world.counters.published, world.counters.deleted, world.counters.retriable) == ({"topic": 3}, 3, 1)
    assert world.leases.doubted == 0
    await world.delete()
    assert len(world.driver.asked) == 4, "nothing is left to be deleted"


@pytest.mark.parametrize("deleted, buried, doubted", [(2, 1, 0), (1, 1, 1), (2, 0, 1), (0, 0, 2)])
async def test_rows_that_are_gone_or_not_ours_make_the_leases_doubtful(
    world: World, deleted: int, buried: int, doubted: int
) -> None:
    world.publish(((1, 1), ACKNOWLEDGED), ((1, 2), ACKNOWLEDGED), ((1, 3), REFUSED))
    await world.delete(deleted=deleted, buried=buried)
    assert world.leases.doubted == doubted
    assert world.backlog.in_hand(LOW) == []
    assert world.counters.deleted == deleted
    assert world.counters.dead_letters.total() == buried


async def test_a_database_that_fails_leaves_everything_in_hand(world: World) -> None:
    world.publish(((1, 1), ACKNOWLEDGED), ((1, 2), REFUSED))
    world.driver.failing = {"delete_published"}
    with pytest.raises(Interrupted):
        await world.delete(buried=0)
    assert world.backlog.in_hand(LOW) == [1]
    assert world.leases.doubted == 1, "what was noticed before is noticed"
    world.driver.failing = set()
    await world.delete(deleted=1)
    assert (world.backlog.in_hand(LOW), world.counters.deleted) == ([], 1)


async def test_dead_letters_are_told_by_their_reasons(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, backlog_module.__name__)
    gone = Receipt(PublishStatus.PERMANENT, "there is no topic gone")
    world.publish(((1, 1), gone), ((1, 2), REFUSED), ((2, 3), gone))
    await world.delete(buried=3)
    assert world.counters.dead_letters == {"no_topic": 2, "too_large": 1}
    assert [record.args for record in caplog.records] == [(2, "there is no topic gone"), (1, "too large")]


@pytest.mark.parametrize(
    "shards, in_hand, ahead",
    [
        (set(), [1, 2, 3, 4, 5], [(1, 6), (2, 7)]),
        ({3}, [1, 2, 3, 4, 5], [(1, 6), (2, 7)]),
        ({1}, [2, 4, 5], [(2, 7)]),
        ({2}, [1, 3, 5], [(1, 6)]),
        (range(8), [5], []),
    ],
)
def test_what_is_in_hand_of_a_lost_shard_is_forgotten_but_for_what_is_in_flight(
    world: World, shards: set[int], in_hand: list[int], ahead: list[Place]
) -> None:
    world.publish(((1, 1), ACKNOWLEDGED), ((2, 2), ACKNOWLEDGED), ((1, 3), REFUSED), ((2, 4), REFUSED))
    world.backlog.start_publishing(on_topic((1, 5)))
    world.backlog.put_ahead(on_topic((1, 6), (2, 7)))
    world.backlog.forget(shards)
    assert world.backlog.in_hand(LOW) == in_hand
    assert world.backlog.ahead.places == ahead


def test_what_was_read_ahead_of_a_blocked_topic_is_dropped_in_its_shard_only(world: World) -> None:
    world.backlog.put_ahead(outgoing((1, 1, "full"), (1, 2, "other"), (2, 3, "full")))
    world.backlog.drop_ahead({(1, "full")})
    assert world.backlog.ahead.places == [(1, 2), (2, 3)]


def test_how_long_the_publisher_takes_is_seen_and_counted(world: World) -> None:
    assert world.backlog.seconds_in_flight == 0
    world.backlog.start_publishing(on_topic((1, 1)))
    world.clock.now += 31.0
    assert world.backlog.seconds_in_flight == pytest.approx(31.0)
    world.backlog.end_publishing()
    assert world.backlog.seconds_in_flight == 0
    assert world.counters.seconds.total == pytest.approx(31.0)
