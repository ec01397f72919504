"""Scan: what is read next, and how much of it."""

import asyncio
import logging
import uuid
from typing import Any, cast

import pytest

from scoop_outbox.broker.protocol import ACKNOWLEDGED, PublishStatus, Receipt
from scoop_outbox.core.plans.outbox import Flow, Outgoing, Place
from scoop_outbox.daemon import full_scan as full_scan_module
from scoop_outbox.daemon.counters import RelayCounters
from scoop_outbox.daemon.relay import scan as scan_module
from scoop_outbox.daemon.relay import topic_backoff as backoff_module
from scoop_outbox.daemon.relay import watermark as watermark_module
from scoop_outbox.daemon.relay.backlog import Backlog
from scoop_outbox.daemon.relay.scan import BATCH, BATCH_BYTES, FIRST, TRIAL, Scan
from scoop_outbox.daemon.relay.topic_backoff import TopicBackoff
from scoop_outbox.daemon.relay.watermark import Watermarks
from tests.clock import Clock
from tests.unit.relay_parts import FakeDriver, FakeLeases, blocked, on_topic, outgoing, rows_of

LATER = Receipt(PublishStatus.RETRIABLE, "no leader")
NOT_PASSED = dict.fromkeys(range(8), 0)


class World:
    """A relay that owns all shards, unless told otherwise, and knows its home."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.driver = FakeDriver(read_home=[(uuid.UUID(int=7),)])
        self.leases = FakeLeases()
        self.backlog = Backlog(cast("Any", self.leases), RelayCounters())
        self.backoff, self.watermarks = TopicBackoff(), Watermarks()
        self.prefetch = FakeDriver()
        self.scan = Scan(
            cast("Any", self.leases), self.backlog, self.backoff, self.watermarks, cast("Any", self.prefetch)
        )

    async def read(self, *places: Place) -> Outgoing:
        self.driver.rows["read_outbox"] = rows_of(on_topic(*places))
        return await self.scan.read(cast("Any", self.driver))

    @property
    def asked(self) -> dict[str, Any]:
        """With what the outbox was read last."""
        return dict(self.driver.params("read_outbox"))

    def block(self, *flows: Flow) -> None:
        self.backoff.block(blocked(*flows), (), "no leader", NOT_PASSED)


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> World:
    clock = Clock()
    for module in (backoff_module, watermark_module, full_scan_module, scan_module):
        monkeypatch.setattr(module, "time", clock)
    world = World(clock)
    await world.scan.begin_anew(cast("Any", world.driver))
    return world


async def test_nothing_is_asked_without_shards_or_before_the_home_is_known(world: World) -> None:
    world.leases.epochs = {}
    assert not await world.read((1, 1))
    unknown = Scan(
        cast("Any", FakeLeases()), world.backlog, world.backoff, world.watermarks, cast("Any", world.prefetch)
    )
    assert not await unknown.read(cast("Any", world.driver))
    assert world.driver.names == ["read_home"]


async def test_the_home_is_asked_for_its_name_once_whatever_server_answers(world: World) -> None:
    world.watermarks.lower({1: 100})
    await world.scan.begin_anew(cast("Any", world.driver))
    assert (world.driver.names, world.watermarks.low(1)) == (["read_home"], 0)


@pytest.mark.parametrize(
    "full, limit, most_bytes",
    [
        ([], FIRST, BATCH_BYTES),
        ([1], BATCH * 8, BATCH_BYTES * 8),
        ([1, 2], BATCH * 4, BATCH_BYTES * 4),
        (range(8), BATCH, BATCH_BYTES),
    ],
)
async def test_the_fewer_shards_there_is_more_of_the_more_is_read_of_each(
    world: World, monkeypatch: pytest.MonkeyPatch, full: list[int], limit: int, most_bytes: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(scan_module, "FIRST", 1)
        await world.read(*((shard, shard + 1) for shard in full))
    assert world.scan.draining is bool(full)
    await world.read()
    assert (world.asked["most"], world.asked["bytes"]) == (limit, most_bytes)
    assert world.scan.draining is False


async def test_a_topic_is_tried_again_with_a_few_messages_once(world: World) -> None:
    world.block((1, "full"), (2, "full"))
    world.scan.note_due()
    await world.read()
    assert (world.asked["blocked_shards"], world.asked["blocked_topics"]) == ([1, 2], ["full", "full"])
    assert world.asked["most"] == FIRST
    world.clock.now += 0.2
    world.scan.note_due()
    await world.read((1, 1))
    assert (world.asked["blocked_shards"], world.asked["most"]) == ([], TRIAL)
    await world.read()
    assert world.asked["most"] == FIRST


async def test_a_topic_is_read_again_from_where_it_was_blocked_and_everything_now_and_then(world: World) -> None:
    world.scan.note_due()
    world.watermarks.lower(dict.fromkeys(range(8), 100))
    world.backoff.block({(1, "full"): 60}, (), "no leader", dict.fromkeys(range(8), 50))
    world.clock.now += 0.2
    world.scan.note_due()
    assert [world.watermarks.low(shard) for shard in (0, 1, 2)] == [100, 50, 100]
    world.clock.now += watermark_module.FULL_SCAN_EVERY + 1.0
    world.scan.note_due()
    assert [world.watermarks.low(shard) for shard in range(8)] == [0] * 8
    await world.read()
    assert world.asked["low"] == [0] * 8


async def test_what_is_in_hand_is_left_out(world: World) -> None:
    world.backlog.start_publishing(on_topic((1, 10), (2, 11)))
    await world.read()
    assert world.asked["in_hand"] == [10, 11]


async def test_what_was_read_of_a_shard_that_changed_its_owner_meanwhile_is_thrown_away(world: World) -> None:
    world.driver.running.clear()
    world.driver.may_answer.clear()
    reading = asyncio.create_task(world.read((1, 10), (2, 11)))
    await world.driver.running.wait()
    world.watermarks.lower({1: 0})
    world.driver.may_answer.set()
    assert (await reading).places == [(2, 11)]


@pytest.mark.parametrize(
    "found, in_flight, still_blocked",
    [([], False, False), ([], True, True), ([(1, 1)], False, True)],
    ids=["none is left", "it may be in flight", "it is there"],
)
async def test_a_topic_of_which_nothing_is_left_is_blocked_no_more(
    world: World,
    found: list[Place],
    in_flight: bool,
    still_blocked: bool,
) -> None:
    world.block((1, "topic"))
    world.clock.now += 0.2
    world.scan.note_due()
    if in_flight:
        world.backlog.start_publishing(on_topic((1, 5)))
    await world.read(*found)
    assert bool(world.backoff) is still_blocked


async def test_what_is_read_ahead_goes_to_the_backlog_unless_the_database_fails(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, scan_module.__name__)
    world.prefetch.rows["read_outbox"] = rows_of(on_topic((1, 10)))
    await world.scan.read_ahead()
    assert (world.backlog.take_ahead().places, caplog.records) == ([(1, 10)], [])
    world.prefetch.failing = {"read_outbox"}
    await world.scan.read_ahead()
    assert (world.backlog.ahead.places, len(caplog.records)) == ([], 1)


@pytest.mark.parametrize(
    "failed, owned, ahead, now_blocked, kept, again_above",
    [
        ((), range(8), [], [], [], {}),
        ([2], range(8), [(1, 3, "a"), (1, 4, "b"), (2, 5, "a")], [(1, "a")], [(1, 4), (2, 5)], {1: 1}),
        ([2], range(8), [(1, 1, "a")], [(1, "a")], [], {1: 0}),
        ([2], [0, 2], [(2, 5, "a")], [], [(2, 5)], {}),
    ],
    ids=["all went through", "one failed", "what came to light stands before it", "another relay has the shard"],
)
def test_topics_that_fail_are_blocked_and_what_was_read_ahead_of_them_is_dropped(
    failed: list[int],
    owned: list[int],
    ahead: list[tuple[int, int, str]],
    now_blocked: list[Flow],
    kept: list[Place],
    again_above: dict[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backoff_module, "time", clock := Clock())
    world = World(clock)
    world.watermarks.lower(dict.fromkeys(range(8), 100))
    world.leases.epochs = dict.fromkeys(owned, 5)
    batch = outgoing((1, 2, "a"), (2, 3, "a"), (1, 3, "b"))
    receipts = [LATER if seq in failed else ACKNOWLEDGED for _, seq in batch.places]
    world.backlog.put_ahead(outgoing(*ahead))
    world.scan.note_receipts(batch, world.backlog.settle(batch, receipts))
    assert world.backoff.blocked == now_blocked
    assert world.backlog.ahead.places == kept
    clock.now += 1.0
    assert world.backoff.try_due() == again_above


def test_a_topic_that_went_through_is_blocked_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff_module, "time", clock := Clock())
    world = World(clock)
    world.block((1, "a"), (2, "a"))
    batch = outgoing((1, 1, "a"))
    world.scan.note_receipts(batch, world.backlog.settle(batch, [ACKNOWLEDGED]))
    assert world.backoff.blocked == [(2, "a")]
