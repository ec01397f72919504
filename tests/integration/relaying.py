"""What the tests of the relay share: a broker that says what the test wants to hear, and an outbox to look into."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg

from scoop_outbox import Scoop
from scoop_outbox._emission import Emission, emission
from scoop_outbox.app import service_of
from scoop_outbox.broker.protocol import ACKNOWLEDGED, PublishStatus, Receipt
from scoop_outbox.core.plans.launch import launch, launch_and_commit
from scoop_outbox.daemon.hints import ProcessHints
from scoop_outbox.daemon.relay.relay import Relay
from scoop_outbox.message import Envelope
from scoop_outbox.store.external_transaction import run_joined_blocking
from scoop_outbox.store.home import Home
from scoop_outbox.store.schema import DEFAULT_SCHEMA, SHARDS


class FakePublisher:
    """Implements `broker.protocol.Publisher`: keeps what it acknowledged."""

    def __init__(self, status: Callable[[Envelope], Receipt] = lambda _: ACKNOWLEDGED) -> None:
        self.status = status
        self.batches: list[list[str]] = []
        self.acknowledged: list[tuple[str | None, str]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.closed = False
        self.probed = 0
        self.problem: str | None = None

    async def publish(self, batch: Sequence[Envelope]) -> Sequence[Receipt]:
        self.batches.append([one.body.decode() for one in batch])
        await self.open.wait()
        failed: set[tuple[str, str | None]] = set()
        receipts = []
        for one in batch:
            lane = one.topic, one.key
            receipt = Receipt(PublishStatus.RETRIABLE) if lane in failed else self.status(one)
            if receipt.status is PublishStatus.RETRIABLE:
                failed.add(lane)
            elif receipt.status is PublishStatus.ACKNOWLEDGED:
                self.acknowledged.append((one.key, one.body.decode()))
            receipts.append(receipt)
        return receipts

    async def probe(self) -> str | None:
        self.probed += 1
        return self.problem

    async def close(self) -> None:
        self.closed = True

    def of(self, key: str | None) -> list[int]:
        return [int(body) for known, body in self.acknowledged if known == key]


@asynccontextmanager
async def relaying(url: str, publisher: FakePublisher) -> AsyncIterator[Relay]:
    home = Home(url, DEFAULT_SCHEMA, "relay test")
    relay = Relay(home, publisher, ProcessHints(home))
    task = asyncio.create_task(relay.run())
    try:
        yield relay
    finally:
        publisher.open.set()
        relay.stop()
        await task
        await home.dispose()


def made(number: int, key: str | None = None, topic: str = "topic") -> Emission:
    return emission(topic, number, key=key, headers=None, context=None, awaited=False, depth=0)


class Silent:
    def outbox(self) -> None: ...

    def mail(self, service: str, saga: str, version: str, run_id: uuid.UUID, delay: float) -> None: ...
    def ended(self, message_id: uuid.UUID) -> None: ...


def write(url: str, *emissions: Emission) -> None:
    app = Scoop("writer", database=url)
    with service_of(app).home.blocking_driver() as driver:
        driver.run(launch_and_commit(emissions, Silent()))
    app.close_sync()


@contextmanager
def written_late(url: str, *emissions: Emission) -> Iterator[Callable[..., None]]:
    """Write messages in a transaction that commits at the end of the block; yield what writes more of them in it."""
    app = Scoop("writer", database=url)
    with psycopg.connect(url) as connection:

        def write_more(*emissions: Emission) -> None:
            run_joined_blocking(launch(emissions), connection, service_of(app).home.queries, lambda: None)

        write_more(*emissions)
        yield write_more


def ask(url: str, question: str, *values: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, options=f"-c search_path={DEFAULT_SCHEMA}") as connection:
        return connection.execute(question.encode(), values).fetchall()


def take_over(url: str) -> None:
    """Own all shards, as another relay would."""
    with psycopg.connect(url) as connection:
        connection.execute(
            "update scoop_outbox.outbox_shard set epoch = epoch + 1, expires_at = now() + interval '1 hour'"
        )


def left(url: str) -> int:
    count: int = ask(url, "select count(*) from outbox")[0][0]
    return count


def shard_of(url: str, key: str) -> int:
    shard: int = ask(url, "select abs(hashtext(%s) %% %s)", key, SHARDS)[0][0]
    return shard


def keys_of_different_shards(url: str, count: int) -> list[str]:
    keys: dict[int, str] = {}
    for number in range(1000):
        keys.setdefault(shard_of(url, f"key {number}"), f"key {number}")
        if len(keys) == count:
            break
    return list(keys.values())
