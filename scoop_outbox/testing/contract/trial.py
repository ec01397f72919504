"""What the tests of the contract have in common: topics, publishers and consumers that end with the test."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from scoop_outbox.broker.protocol import (
    Broker,
    Consumer,
    Delivery,
    Feature,
    Publisher,
    PublishStatus,
    Receipt,
    Subscription,
)
from scoop_outbox.message import BYTES, Envelope, uuid7
from scoop_outbox.testing.contract.harness import Harness

LONG = 60.0
"""Seconds after which something will not happen any more."""
ANSWER = 15.0
"""Seconds in which a publisher answers, whatever its broker does."""
GROUP = "group"


def named(stem: str) -> str:
    """Return a name that nobody has used."""
    return f"contract.{stem}.{secrets.token_hex(6)}"


def envelope(topic: str, key: str | None = None, body: bytes = b"{}", **more: str) -> Envelope:
    """Return a message of an id of its own, with text headers by keyword."""
    return Envelope(str(uuid7()), topic, key, body, BYTES, more)


def numbered(topic: str, keys: Iterable[str], numbers: Iterable[int]) -> list[Envelope]:
    """Return messages whose bodies are numbers: each number once for each key."""
    keys = list(keys)
    return [envelope(topic, key, str(number).encode()) for number in numbers for key in keys]


@asynccontextmanager
async def within(seconds: float, what: str) -> AsyncIterator[None]:
    """Fail when the block takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise AssertionError(f"{what} took longer than {seconds} s") from None


async def until(condition: Callable[[], object], what: str, seconds: float = LONG) -> None:
    """Return once the condition holds.

    Raises:
        AssertionError: it does not within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so after {seconds} s: {what}"
        await asyncio.sleep(0.01)


def judge(batch: Sequence[Envelope], receipts: Sequence[Receipt]) -> None:
    """See whether the receipts of a batch are such as the protocol promises."""
    assert len(receipts) == len(batch), "there is one receipt for each message"
    waiting: set[tuple[str, str]] = set()
    for one, receipt in zip(batch, receipts, strict=True):
        assert receipt.status is PublishStatus.ACKNOWLEDGED or receipt.reason, "what failed has a reason"
        if one.key is None:
            continue
        if (one.topic, one.key) in waiting:
            assert receipt.status is PublishStatus.RETRIABLE, "a message was published although one before it was not"
        if receipt.status is PublishStatus.RETRIABLE:
            waiting.add((one.topic, one.key))


class Sender:
    """A publisher, used as a relay uses it.

    Attributes:
        refused: how many batches had messages that failed for now.
    """

    def __init__(self, publisher: Publisher) -> None:
        """Publish nothing yet."""
        self._publisher = publisher
        self._closed = False
        self.refused = 0

    async def once(self, batch: Sequence[Envelope]) -> Sequence[Receipt]:
        """Publish a batch, and check what is said of it."""
        async with within(ANSWER, "publishing a batch"):
            receipts = await self._publisher.publish(batch)
        judge(batch, receipts)
        return receipts

    async def all(self, batch: Sequence[Envelope], seconds: float = LONG) -> list[Receipt]:
        """Publish a batch, again and again what failed for now, until the broker has said its last word on each."""
        last: dict[int, Receipt] = {}
        pending = list(range(len(batch)))
        deadline = time.monotonic() + seconds
        while pending:
            receipts = await self.once([batch[index] for index in pending])
            last.update(zip(pending, receipts, strict=True))
            pending = [index for index in pending if last[index].status is PublishStatus.RETRIABLE]
            if pending:
                self.refused += 1
                assert time.monotonic() < deadline, f"{last[pending[0]].reason} for {seconds} s"
                await asyncio.sleep(0.1)
        return [last[index] for index in range(len(batch))]

    async def deliver(self, batch: Sequence[Envelope], seconds: float = LONG) -> None:
        """Publish a batch all of which must be acknowledged."""
        receipts = await self.all(batch, seconds)
        bad = {receipt.reason for receipt in receipts if receipt.status is not PublishStatus.ACKNOWLEDGED}
        assert not bad, bad

    async def problem(self) -> str | None:
        """Ask the publisher what keeps the broker from taking messages."""
        async with within(ANSWER, "asking whether the broker is there"):
            return await self._publisher.probe()

    async def close(self) -> None:
        """Close the publisher; only the first call does something."""
        if not self._closed:
            self._closed = True
            async with within(ANSWER, "closing a publisher"):
                await self._publisher.close()


class Member:
    """A consumer, used as an intake uses it, and what it got.

    Attributes:
        consumer: the consumer.
        got: all messages in the order in which they came, those that came again too.
        open: what has not been acknowledged.
    """

    def __init__(self, consumer: Consumer, shared: list[Envelope]) -> None:
        """Receive nothing yet."""
        self.consumer = consumer
        self.got: list[Envelope] = []
        self.open: list[Delivery] = []
        self._shared = shared
        self._closed = False

    async def receive(self, limit: int = 500, wait: float = 0.3) -> list[Delivery]:
        """Receive once."""
        async with within(wait + ANSWER, f"receiving for {wait} s"):
            deliveries = list(await self.consumer.receive(limit, wait))
        assert len(deliveries) <= limit, "no more than was asked for"
        assert all(one.defect is None for one in deliveries), [one.defect for one in deliveries]
        assert all(one.position for one in deliveries), "people are told where a message stood"
        messages = [one.envelope for one in deliveries]
        self.got += messages
        self._shared += messages
        self.open += deliveries
        return deliveries

    async def acknowledge(self, count: int | None = None) -> None:
        """Acknowledge what was received, or the first of it."""
        done = self.open[:count]
        del self.open[:count]
        async with within(ANSWER, "acknowledging"):
            await self.consumer.acknowledge(done)

    async def take(self, messages: Sequence[Envelope], seconds: float = LONG, *, acknowledge: bool = False) -> None:
        """Receive until each of the messages has come."""
        missing = {one.id for one in messages} - {one.id for one in self.got}
        deadline = time.monotonic() + seconds
        while missing:
            missing -= {one.envelope.id for one in await self.receive()}
            if acknowledge and self.open:
                await self.acknowledge()
            assert time.monotonic() < deadline or not missing, f"{len(missing)} messages missing; {self.problem}"

    @property
    def problem(self) -> str:
        """What the consumer says is wrong."""
        return f"the consumer says: {self.consumer.problem}"

    @asynccontextmanager
    async def working(self, limit: int = 100) -> AsyncIterator[None]:
        """Receive and acknowledge in the background, one call at a time, `limit` messages at most."""
        ending = False

        async def work() -> None:
            while not ending:
                if await self.receive(limit, 0.2):
                    await self.acknowledge()
                    # A broker in this process may answer without waiting for anything: others want their turn.
                    await asyncio.sleep(0)

        task = asyncio.create_task(work())
        try:
            yield
        finally:
            ending = True
            await task

    async def close(self) -> None:
        """Leave; only the first call does something."""
        if not self._closed:
            self._closed = True
            async with within(ANSWER, "closing a consumer"):
                await self.consumer.close()


class Trial:
    """The topics, groups, publishers and consumers of one test.

    Attributes:
        broker: the broker.
        arrivals: all that any of the consumers got, in order.
    """

    def __init__(self, harness: Harness, features: frozenset[Feature]) -> None:
        """Open nothing yet."""
        broker = harness.broker()
        assert broker is not None, "the built-in broker has no publishers and consumers: use ServiceContract"
        self.harness = harness
        self.broker: Broker = broker
        self.arrivals: list[Envelope] = []
        self._start = "earliest" if Feature.STARTS_ANYWHERE in features else None
        self._unique = secrets.token_hex(6)
        self._closing: list[Callable[[], Awaitable[None]]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for close in reversed(self._closing):
            await close()

    def subscription(self, *topics: str, group: str = GROUP, start: str | None = None) -> Subscription:
        """Return a subscription to topics; groups of one name are the same one within a test."""
        name = f"contract.{group}.{self._unique}"
        return Subscription("contract", name, topics, start or self._start)

    async def topic(self, *groups: str) -> str:
        """Create a topic which groups can receive."""
        topic = named("topic")
        for group in groups or (GROUP,):
            await self.harness.create([topic], self.subscription(topic, group=group))
        return topic

    async def sender(self) -> Sender:
        """Open a publisher."""
        async with within(ANSWER, "opening a publisher"):
            publisher = await self.broker.publisher("contract")
        sender = Sender(publisher)
        self._closing.append(sender.close)
        return sender

    async def member(self, *topics: str, group: str = GROUP, start: str | None = None) -> Member:
        """Open a consumer of a group."""
        async with within(ANSWER, "opening a consumer"):
            consumer = await self.broker.consumer(self.subscription(*topics, group=group, start=start))
        member = Member(consumer, self.arrivals)
        self._closing.append(member.close)
        return member


def ids(messages: Iterable[Envelope]) -> set[str]:
    """Return the ids of messages, in a form that reads well when two sets differ."""
    return {one.id for one in messages}


def in_order(arrivals: Iterable[Envelope]) -> dict[str | None, list[int]]:
    """Return the numbers that came for each key, each at its first arrival."""
    seen: dict[str | None, dict[int, None]] = {}
    for one in arrivals:
        seen.setdefault(one.key, {})[int(one.body)] = None
    return {key: list(numbers) for key, numbers in seen.items()}
