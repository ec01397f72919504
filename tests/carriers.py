"""What carries the messages of a test: the built-in broker, or a real one, with topics that no other test can see."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from scoop_outbox import Scoop
from scoop_outbox.app import service_of
from scoop_outbox.broker import plugins
from scoop_outbox.broker.protocol import Broker, Consumer, Delivery, Feature, Publisher, Receipt, Resource, Subscription
from scoop_outbox.message import Envelope

BUILTIN, KAFKA, RABBITMQ = "builtin", "kafka", "rabbitmq"
REAL = (KAFKA, RABBITMQ)
HOMES = tuple(f"{name}-homes" for name in REAL)
"""The real brokers, with a home for each saga."""


class Carrier:
    """Attaches the services of a test to a broker; topics and groups get a prefix of the test's own there.

    Args:
        url: the broker; None is the built-in one.
        settings: of its adapter.
        scatters: whether each saga of a service has a home of its own.
    """

    def __init__(
        self, url: str | None = None, settings: Mapping[str, str] | None = None, *, scatters: bool = False
    ) -> None:
        self.url = url
        self.scatters = scatters
        self._settings = dict(settings or {})
        self._prefix = f"t{secrets.token_hex(6)}."

    def carry(self, app: Scoop) -> Scoop:
        """Let messages of a service travel this way."""
        if self.url is not None:
            service_of(app).start = "earliest"
            service_of(app).servers.broker = _OwnTopics(plugins.load(self.url, self._settings), self._prefix)
        return app


class _OwnTopics:
    """A broker whose topics are created when they are first used, and whose names no other test can meet."""

    def __init__(self, broker: Broker, prefix: str) -> None:
        self._broker = broker
        self._prefix = prefix
        self._created: set[str] = set()

    @property
    def features(self) -> frozenset[Feature]:
        return self._broker.features

    def _mine(self, subscription: Subscription) -> Subscription:
        topics = tuple(self._prefix + topic for topic in subscription.topics)
        return replace(subscription, group=self._prefix + subscription.group, topics=topics)

    @property
    def most_bytes(self) -> int | None:
        return self._broker.most_bytes

    def published_as(self, topic: str) -> str:
        return self._broker.published_as(self._prefix + topic)

    def names(self, topic: str) -> Sequence[str]:
        return self._broker.names(self._prefix + topic)

    def pattern(self, topic: str) -> str | None:
        return self._broker.pattern(self._prefix + topic)

    async def publisher(self, name: str) -> Publisher:
        return _OwnPublisher(self, await self._broker.publisher(name))

    async def consumer(self, subscription: Subscription) -> Consumer:
        return _OwnConsumer(await self._broker.consumer(self._mine(subscription)), self._prefix)

    async def prepare(self, subscription: Subscription) -> str | None:
        # What is subscribed exists before anything is launched; a queue would miss what comes before it.
        mine = self._mine(subscription)
        await self.topology((), subscription, create=True)
        self._created.update(mine.topics)
        return await self._broker.prepare(mine)

    async def topology(
        self, topics: Sequence[str], subscription: Subscription | None, *, create: bool
    ) -> list[Resource]:
        mine = None if subscription is None else self._mine(subscription)
        return await self._broker.topology([self._prefix + topic for topic in topics], mine, create=create)

    async def published(self, batch: Sequence[Envelope]) -> list[Envelope]:
        mine = [one._replace(topic=self._prefix + one.topic) for one in batch]
        new = sorted({one.topic for one in mine} - self._created)
        if new:
            await self._broker.topology(new, None, create=True)
            self._created.update(new)
        return mine


class _OwnPublisher:
    def __init__(self, broker: _OwnTopics, publisher: Publisher) -> None:
        self._broker = broker
        self._publisher = publisher

    async def publish(self, batch: Sequence[Envelope]) -> Sequence[Receipt]:
        return await self._publisher.publish(await self._broker.published(batch))

    async def probe(self) -> str | None:
        return await self._publisher.probe()

    async def close(self) -> None:
        await self._publisher.close()


class _OwnConsumer:
    def __init__(self, consumer: Consumer, prefix: str) -> None:
        self._consumer = consumer
        self._prefix = prefix
        self.acknowledge = consumer.acknowledge
        self.pause = consumer.pause
        self.resume = consumer.resume
        self.close = consumer.close

    @property
    def problem(self) -> str | None:
        return self._consumer.problem

    async def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        return [
            replace(one, envelope=one.envelope._replace(topic=one.envelope.topic.removeprefix(self._prefix)))
            for one in await self._consumer.receive(limit, wait)
        ]


def carrier_of(name: str, request: pytest.FixtureRequest, settings: Mapping[str, str]) -> Carrier:
    """The carrier of a name; its server is started when the first test needs it."""
    broker, _, homes = name.partition("-")
    url = None if name == BUILTIN else request.getfixturevalue(f"{broker}_url")
    return Carrier(url, settings, scatters=bool(homes))
