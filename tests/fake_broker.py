"""A broker that hands out what a test has prepared, and remembers what it was told."""

import asyncio
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from scoop_outbox.broker.incoming import delivery
from scoop_outbox.broker.protocol import Consumer, Delivery, Feature, Publisher, Resource, Subscription
from scoop_outbox.errors import BrokerError
from scoop_outbox.wire.headers import derived_id


@dataclass
class FakeConsumer:
    """Implements `broker.protocol.Consumer`: hands out batches as they were put, again until acknowledged."""

    broker: "FakeBroker"
    paused: bool = False
    closed: bool = False
    received: int = 0
    handed_out: list[Delivery] = field(default_factory=list)
    problem: str | None = None

    async def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        assert not self.closed
        self.received += 1
        if self.broker.failure is not None:
            raise self.broker.failure
        if self.paused or not self.broker.batches:
            self.broker.put_something.clear()
            try:
                async with asyncio.timeout(min(wait, 0.05)):
                    await self.broker.put_something.wait()
            except TimeoutError:
                return []
            if self.paused or not self.broker.batches:
                return []
        batch = self.broker.batches.pop(0)
        batch, rest = batch[:limit], batch[limit:]
        if rest:
            self.broker.batches.insert(0, rest)
        self.handed_out += batch
        return batch

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        assert not self.closed
        self.broker.on_acknowledge(deliveries)
        assert list(deliveries) == self.handed_out[: len(deliveries)], "in the order of receive, none left out"
        del self.handed_out[: len(deliveries)]
        self.broker.acknowledged += [one.position for one in deliveries]

    async def pause(self) -> None:
        self.paused = True
        self.broker.pauses += 1

    async def resume(self) -> None:
        self.paused = False
        self.broker.resumes += 1

    async def close(self) -> None:
        """Leave: what was not acknowledged is handed out again."""
        self.closed = True
        if self.handed_out:
            self.broker.batches.insert(0, self.handed_out)


class FakeBroker:
    """Implements `broker.protocol.Broker` for one group."""

    features: frozenset[Feature] = frozenset()

    def __init__(self, *batches: Sequence[Delivery]) -> None:
        self.batches: list[list[Delivery]] = [list(batch) for batch in batches]
        self.acknowledged: list[str] = []
        self.consumers: list[FakeConsumer] = []
        self.failure: BaseException | None = None
        self.on_acknowledge: Callable[[Sequence[Delivery]], object] = lambda _: None
        self.pauses = self.resumes = 0
        self.put_something = asyncio.Event()
        self.patterns: dict[str, str] = {}
        self.prepared = 0
        self.reachable = True
        self.refusal: BrokerError | None = None

    def put(self, *batch: Delivery) -> None:
        self.batches.append(list(batch))
        self.put_something.set()

    most_bytes: int | None = None

    def published_as(self, topic: str) -> str:
        return topic

    def names(self, topic: str) -> Sequence[str]:
        return ()

    def pattern(self, topic: str) -> str | None:
        return self.patterns.get(topic)

    async def consumer(self, subscription: Subscription) -> Consumer:
        self.consumers.append(FakeConsumer(self))
        return self.consumers[-1]

    async def publisher(self, name: str) -> Publisher:
        raise AssertionError(f"nothing is published in tests of intake, and {name} wants to")

    async def prepare(self, subscription: Subscription) -> str | None:
        self.prepared += 1
        if self.refusal is not None:
            raise self.refusal
        return None if self.reachable else "it is down"

    async def topology(
        self, topics: Sequence[str], subscription: Subscription | None, *, create: bool
    ) -> list[Resource]:
        return []


def message(
    number: int,
    *,
    topic: str = "orders",
    key: bytes | None = None,
    body: bytes | None = None,
    content_type: str | None = "application/json",
    message_id: uuid.UUID | None = None,
    headers: Mapping[str, str] | None = None,
    **ours: Any,
) -> Delivery:
    """A delivery as an adapter makes it: `number` is its offset, and its body unless another one is given.

    Args:
        number: offset, and body.
        topic: of the message.
        key: of the message.
        body: bytes.
        content_type: None when the producer said none.
        message_id: the value of `scoop-id`; a producer that knows nothing of us sends none.
        headers: of the producer's.
        ours: headers by name with `_` for `-`; what is no text is written as JSON.
    """
    given = dict(headers or {})
    for name, value in ours.items():
        given[name.replace("_", "-")] = value if isinstance(value, str) else json.dumps(value)
    if message_id is not None:
        given["scoop-id"] = str(message_id)
    position = f"{topic}[0]@{number}"
    return delivery(
        topic=topic,
        key=key,
        body=str(number).encode() if body is None else body,
        content_type=content_type,
        headers=given,
        otherwise=derived_id("fake", position),
        position=position,
        tag=number,
    )


def again(one: Delivery, tag: int) -> Delivery:
    """The same message, delivered once more."""
    return replace(one, tag=tag)
