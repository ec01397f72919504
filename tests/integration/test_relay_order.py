"""The order within a key, whatever happens: random writers, random outages of topics, relays that succeed each other.

Each case takes a few seconds. `SCOOP_OUTBOX_FUZZ_SECONDS` makes all of them longer, `SCOOP_OUTBOX_FUZZ_SEED` begins
with another seed.
"""

import asyncio
import itertools
import os
import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta

import psycopg
import pytest

from scoop_outbox.broker.protocol import ACKNOWLEDGED, PublishStatus, Receipt
from scoop_outbox.core.plans.launch import launch
from scoop_outbox.daemon.relay import leases as leases_module
from scoop_outbox.daemon.relay import scan as scan_module
from scoop_outbox.daemon.relay import topic_backoff as backoff_module
from scoop_outbox.daemon.relay import watermark as watermark_module
from scoop_outbox.message import Envelope
from scoop_outbox.store import queries
from scoop_outbox.store.external_transaction import run_joined
from scoop_outbox.store.schema import DEFAULT_SCHEMA, SHARDS
from tests.integration.relaying import FakePublisher, ask, left, made, relaying
from tests.waiting import until

SECONDS = float(os.environ.get("SCOOP_OUTBOX_FUZZ_SECONDS", "3"))
SEED = int(os.environ.get("SCOOP_OUTBOX_FUZZ_SEED", "1"))
DOWN = Receipt(PublishStatus.RETRIABLE, "no leader")
TOPICS = ("A", "B")
Flow = tuple[str, str | None]
FLOWS: list[Flow] = list(itertools.product(TOPICS, ("k1", "k2")))


@dataclass
class Transaction:
    begun: float
    committed: float = 0.0
    messages: list[tuple[Flow, int]] = field(default_factory=list)


class World:
    """A broker whose topics are down now and then, what it has taken, and who has written."""

    def __init__(self, seed: int, *, flaky: float, outages: bool) -> None:
        self.random = random.Random(seed)
        self.flaky = flaky
        self.outages = outages
        self.down: set[str] = set()
        self.first: dict[int, int] = {}  # when each message was published for the first time
        self.transactions: list[Transaction] = []
        self.numbers = itertools.count()
        self.end = time.monotonic() + SECONDS

    def pause(self, *longest: float) -> float:
        return self.random.random() * self.random.choice(longest)

    def status(self, one: Envelope) -> Receipt:
        if one.topic in self.down or self.random.random() < self.flaky:
            return DOWN
        self.first.setdefault(int(one.body), len(self.first))
        return ACKNOWLEDGED

    async def write(self, url: str) -> None:
        """Commit transactions of up to three messages, some of which take their time between them."""
        async with await psycopg.AsyncConnection.connect(url) as connection:
            while time.monotonic() < self.end:
                transaction = Transaction(time.monotonic())
                flow = self.random.choice(FLOWS)
                for _ in range(self.random.choice([1, 2, 2, 3])):
                    topic, key = flow if self.random.random() < 0.7 else self.random.choice(FLOWS)
                    number = next(self.numbers)
                    plan = launch([made(number, key, topic)])
                    await run_joined(plan, connection, queries.load(DEFAULT_SCHEMA), lambda: None)
                    transaction.messages.append(((topic, key), number))
                    await asyncio.sleep(self.pause(0, 0.01, 0.1, 0.4, 1.2, 1.2))
                await connection.commit()
                transaction.committed = time.monotonic()
                self.transactions.append(transaction)
                await asyncio.sleep(self.pause(0.05))

    async def fail(self) -> None:
        """Take topics down for a while, again and again."""
        while time.monotonic() < self.end:
            await asyncio.sleep(self.pause(0.3))
            if self.outages:
                self.down.add(self.random.choice(TOPICS))
            await asyncio.sleep(self.pause(0.2, 0.8, 1.5))
            self.down.clear()
        self.down.clear()

    async def expropriate(self, url: str) -> None:
        """Take shards away from whoever owns them, again and again; a standby takes them."""
        while time.monotonic() < self.end:
            await asyncio.sleep(self.pause(1.5))
            shards = self.random.sample(range(SHARDS), self.random.randint(1, SHARDS))
            ask(
                url,
                "update outbox_shard set expires_at = now() - interval '1 s' where shard = any(%s) returning 1",
                shards,
            )

    def reordered(self) -> list[str]:
        """Return the messages of one key that were published behind one that is promised to come later."""
        found = [
            f"within a transaction: {flow} {one} behind {other}"
            for transaction in self.transactions
            for (flow, one), (of, other) in itertools.combinations(transaction.messages, 2)
            if flow == of and self.first[one] > self.first[other]
        ]
        found += [
            f"of two transactions: {flow} {one} behind {other}"
            for before, after in itertools.permutations(self.transactions, 2)
            if before.committed < after.begun
            for flow, one in before.messages
            for of, other in after.messages
            if flow == of and self.first[one] > self.first[other]
        ]
        return found


class SlowPublisher(FakePublisher):
    """Takes a moment for each batch."""

    def __init__(self, world: World) -> None:
        super().__init__(world.status)
        self._world = world

    async def publish(self, batch: Sequence[Envelope]) -> Sequence[Receipt]:
        await asyncio.sleep(self._world.pause(0.03))
        return await super().publish(batch)


@dataclass(frozen=True)
class Case:
    relays: int = 1
    outages: bool = True
    flaky: float = 0.0
    expropriated: bool = False
    sweep: float = 3600.0
    batch: int = 1000


CASES = {
    "outages": Case(),
    "outages, small batches": Case(batch=3),
    "outages and sweeps": Case(sweep=0.3),
    "flaky": Case(flaky=0.05, outages=False),
    "two relays that succeed each other": Case(relays=2, expropriated=True, flaky=0.01),
}


@pytest.mark.timeout(120 + 4 * SECONDS)
@pytest.mark.parametrize("name", CASES)
async def test_rev_01_d17_the_order_within_a_key_survives(
    name: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    monkeypatch.setattr(watermark_module, "FULL_SCAN_EVERY", case.sweep)
    monkeypatch.setattr(watermark_module, "_EVERY", 0.1)
    monkeypatch.setattr(backoff_module, "LONGEST", 0.5)
    monkeypatch.setattr(leases_module, "LEASE", timedelta(seconds=1))
    monkeypatch.setattr(scan_module, "BATCH", case.batch)
    world = World(SEED, flaky=case.flaky, outages=case.outages)
    async with AsyncExitStack() as stack:
        for _ in range(case.relays):
            await stack.enter_async_context(relaying(database_url, SlowPublisher(world)))
        async with asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(world.write(database_url))
            group.create_task(world.fail())
            if case.expropriated:
                group.create_task(world.expropriate(database_url))
        await until(lambda: left(database_url) == 0, 60, 0.05)
    assert len(world.first) == sum(len(one.messages) for one in world.transactions)
    assert world.reordered() == []
