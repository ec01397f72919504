"""Ownership: what follows when shards are gained, lost, or given away."""

from typing import Any, cast

import pytest

from scoop_outbox.broker.protocol import ACKNOWLEDGED
from scoop_outbox.core.plans.outbox import Flow, Place
from scoop_outbox.daemon.counters import RelayCounters
from scoop_outbox.daemon.relay import ownership as ownership_module
from scoop_outbox.daemon.relay import topic_backoff as backoff_module
from scoop_outbox.daemon.relay.backlog import Backlog
from scoop_outbox.daemon.relay.ownership import Ownership
from scoop_outbox.daemon.relay.topic_backoff import TopicBackoff
from scoop_outbox.daemon.relay.watermark import Watermarks
from scoop_outbox.store.callbacks import Interrupted
from tests.clock import Clock
from tests.unit.relay_parts import FakeDriver, FakeLeases, blocked, on_topic


class FakeProbe:
    def __init__(self) -> None:
        self.problem: str | None = None
        self.looked = 0

    async def look(self) -> str | None:
        self.looked += 1
        return self.problem


class World:
    """A relay that owns all shards, has read up to number 100, and has something in hand of shards 1 and 2."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.driver = FakeDriver(delete_published=[(2,)])
        self.leases, self.probe = FakeLeases(), FakeProbe()
        self.backlog = Backlog(cast("Any", self.leases), RelayCounters())
        self.backoff, self.watermarks = TopicBackoff(), Watermarks()
        self.watermarks.lower(dict.fromkeys(range(8), 100))
        published = on_topic((1, 101), (2, 102))
        self.backlog.settle(published, [ACKNOWLEDGED, ACKNOWLEDGED])
        self.backlog.put_ahead(on_topic((1, 103), (2, 104)))
        self.ownership = Ownership(
            *(cast("Any", self.leases), cast("Any", self.probe), self.backlog, self.backoff, self.watermarks)
        )

    def stall(self, seconds: float, *flows: Flow) -> None:
        self.backoff.block(blocked(*flows or [(1, "full")]), (), "no route to host", dict.fromkeys(range(8), 100))
        self.clock.now += seconds

    async def stand_aside(self) -> bool:
        return await self.ownership.stand_aside(cast("Any", self.driver))

    @property
    def in_hand(self) -> list[int]:
        return self.backlog.in_hand(dict.fromkeys(range(8), 0))

    @property
    def read_from_the_beginning(self) -> list[int]:
        return [shard for shard in range(8) if self.watermarks.low(shard) == 0]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    clock = Clock()
    monkeypatch.setattr(backoff_module, "time", clock)
    return World(clock)


@pytest.mark.parametrize(
    "gained, lost, anew, in_hand, ahead, still_blocked",
    [
        ([], [], [], [101, 102], [(1, 103), (2, 104)], [1, 2]),
        ([3], [], [3], [101, 102], [(1, 103), (2, 104)], [1, 2]),
        ([], [1], [1], [102], [(2, 104)], [2]),
        ([5], [2], [2, 5], [101], [(1, 103)], [1]),
        ([1], [1], [1], [102], [(2, 104)], [2]),
        ([], range(8), list(range(8)), [], [], []),
    ],
    ids=["nothing", "gained", "lost", "lost, and another gained", "lost and won back", "lost all"],
)
async def test_a_shard_that_changes_its_owner_is_forgotten_and_read_from_the_beginning(
    world: World,
    gained: list[int],
    lost: list[int],
    anew: list[int],
    in_hand: list[int],
    ahead: list[Place],
    still_blocked: list[int],
) -> None:
    world.stall(0.0, (1, "full"), (2, "full"))
    world.leases.gained, world.leases.lost = set(gained), set(lost)
    await world.ownership.keep(cast("Any", world.driver))
    assert world.read_from_the_beginning == anew
    assert (world.in_hand, world.backlog.ahead.places) == (in_hand, ahead)
    assert sorted(shard for shard, _ in world.backoff.blocked) == still_blocked


@pytest.mark.parametrize(
    "stalled, problem, aside, probed",
    [
        (None, "no route to host", False, 0),
        (14.0, "no route to host", False, 0),
        (16.0, None, False, 1),
        (16.0, "no route to host", True, 1),
    ],
    ids=["all is well", "not for long", "the broker answers", "it is cut off"],
)
async def test_only_a_relay_that_is_cut_off_for_long_leaves_its_shards_to_others(
    world: World,
    caplog: pytest.LogCaptureFixture,
    stalled: float | None,
    problem: str | None,
    aside: bool,
    probed: int,
) -> None:
    if stalled is not None:
        world.stall(stalled)
    world.probe.problem = problem
    assert await world.stand_aside() is aside
    assert (world.probe.looked, world.leases.released) == (probed, aside)
    assert len([one for one in caplog.records if one.name == ownership_module.__name__]) == aside
    assert world.in_hand == ([] if aside else [101, 102])
    assert world.read_from_the_beginning == (list(range(8)) if aside else [])


async def test_what_was_published_is_deleted_before_others_may_have_the_shards(world: World) -> None:
    world.stall(16.0)
    world.probe.problem = "no route to host"
    assert await world.stand_aside()
    assert world.driver.names[-2:] == ["commit", "release_shards"]
    assert world.driver.params("delete_published")["epochs"] == [5] * 8


async def test_a_relay_comes_back_when_it_can_reach_the_broker_and_looks_for_shards_at_once(world: World) -> None:
    world.stall(16.0)
    world.probe.problem = "no route to host"
    assert await world.stand_aside()
    assert await world.stand_aside(), "the broker is not asked by this"
    assert (world.probe.looked, world.leases.doubted) == (1, 0)
    world.probe.problem = None
    assert not await world.stand_aside()
    assert world.leases.doubted == 1


@pytest.mark.parametrize("failing", ["delete_published", "release_shards"])
async def test_a_relay_whose_database_fails_meanwhile_owns_what_it_did(
    world: World, failing: str, caplog: pytest.LogCaptureFixture
) -> None:
    world.stall(16.0)
    world.probe.problem = "no route to host"
    world.driver.failing = {failing}
    with pytest.raises(Interrupted):
        await world.stand_aside()
    assert (world.leases.released, world.read_from_the_beginning) == (False, [])
    assert world.backlog.ahead.places == [(1, 103), (2, 104)]
    assert "relay: shards released" not in caplog.text
    world.driver.failing = set()
    assert await world.stand_aside(), "it tries again"
    assert "relay: shards released" in caplog.text
