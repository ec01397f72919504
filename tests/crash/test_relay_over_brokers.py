"""The owner of the outbox dies or hangs in the midst of publishing to a real broker, and a standby publishes on."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from scoop_outbox import Scoop
from scoop_outbox.broker import plugins
from scoop_outbox.broker.protocol import Subscription
from tests.carriers import REAL
from tests.crash.ledger import count
from tests.crash.processes import Fleet
from tests.waiting import until_blocking

SOON = 100
"""Seconds: RabbitMQ confirms message by message within a key, and slowly while others use the machine."""
KEYS = 4
BACKLOG = 10_000
LATER = 200


class Feed:
    """Launches numbered messages of four keys on one topic, and reads what has come out at the broker.

    Args:
        database_url: whose outbox.
        url: the broker.
    """

    def __init__(self, database_url: str, url: str) -> None:
        name = f"t{secrets.token_hex(6)}.numbers"
        self._subscription = Subscription("reader", name, (name,), "earliest")
        self._broker = plugins.load(url)
        self._app = Scoop("launcher", database=database_url, broker=url)
        self._url = database_url
        self.launched = 0
        asyncio.run(self._create())

    async def _create(self) -> None:
        await self._broker.topology(self._subscription.topics, self._subscription, create=True)

    def launch(self, messages: int) -> None:
        with psycopg.connect(self._url) as connection:
            for _ in range(messages):
                number = self.launched = self.launched + 1
                topic = self._subscription.topics[0]
                self._app.launch_sync(topic, number, key=f"key {number % KEYS}", session=connection)

    def first_seen(self) -> dict[str | None, list[int]]:
        """The numbers of each key, in the order in which somebody sees each for the first time."""
        return asyncio.run(self._read())

    async def _read(self) -> dict[str | None, list[int]]:
        seen: dict[str | None, dict[int, None]] = {}
        consumer = await self._broker.consumer(self._subscription)
        async with asyncio.timeout(SOON):
            while sum(map(len, seen.values())) < self.launched:
                deliveries = await consumer.receive(500, 0.5)
                for one in deliveries:
                    seen.setdefault(one.envelope.key, {}).setdefault(int(one.envelope.body))
                await consumer.acknowledge(deliveries)
        await consumer.close()
        return {key: list(numbers) for key, numbers in seen.items()}

    def close(self) -> None:
        self._app.close_sync()


@pytest.fixture(params=REAL)
def url(request: pytest.FixtureRequest) -> str:
    """A broker."""
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture
def feed(database_url: str, url: str) -> Iterator[Feed]:
    """Messages for its relays."""
    with contextlib.closing(Feed(database_url, url)) as feed:
        yield feed


@pytest.mark.timeout(3 * SOON)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_an_owner_that_is_gone_is_succeeded_without_loss_and_in_order(
    effects: psycopg.Connection[Any], fleet: Fleet, feed: Feed, url: str, how: signal.Signals
) -> None:
    def waiting() -> int:
        return count(effects, "select count(*) from scoop_outbox.outbox")

    feed.launch(1)
    owner = fleet.start("relay", SCOOP_OUTBOX_BROKER=url)
    until_blocking(lambda: waiting() == 0, SOON)  # it is connected
    standby = fleet.start("relay", SCOOP_OUTBOX_BROKER=url)
    standby.wait_until_ready()
    feed.launch(BACKLOG)
    until_blocking(lambda: 0 < waiting() < BACKLOG, SOON, 0.001)
    owner.send(how)
    assert waiting() > 0, "it was done before it was hit"
    feed.launch(LATER)
    until_blocking(lambda: "relay: publishing (shards" in standby.log, SOON)
    until_blocking(lambda: waiting() == 0, SOON)
    owner.send(signal.SIGCONT)
    feed.launch(LATER)
    until_blocking(lambda: waiting() == 0, SOON)
    if how is signal.SIGSTOP:
        # It has found out, and what it still had in hand lies behind what its successor has published.
        until_blocking(lambda: "relay: shards taken over by another relay" in owner.log, SOON)

    expected = {f"key {k}": [n for n in range(1, feed.launched + 1) if n % KEYS == k] for k in range(KEYS)}
    assert feed.first_seen() == expected
    assert count(effects, "select count(*) from scoop_outbox.dead_letter") == 0
