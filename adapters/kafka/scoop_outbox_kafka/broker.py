"""The entry point: what scoop_outbox calls with a URL and settings."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from scoop_outbox.broker import Consumer, Feature, Publisher, Resource, Subscription
from scoop_outbox_kafka import topology as existing
from scoop_outbox_kafka.consumer import KafkaConsumer
from scoop_outbox_kafka.preparing import prepare
from scoop_outbox_kafka.publisher import KafkaPublisher
from scoop_outbox_kafka.settings import Settings, read_settings
from scoop_outbox_kafka.start import parse_start


class KafkaBroker:
    """Apache Kafka, as scoop_outbox uses it.

    Args:
        settings: where, and how.
    """

    def __init__(self, settings: Settings) -> None:
        """Connect nothing yet."""
        self._settings = settings

    def __repr__(self) -> str:
        return f"<KafkaBroker {self._settings.bootstrap}>"

    @property
    def features(self) -> frozenset[Feature]:
        """What Kafka can do: all of it."""
        return frozenset(Feature)

    @property
    def most_bytes(self) -> int | None:
        """What librdkafka sends; what a topic takes (`max.message.bytes`) is the broker's to say."""
        return self._settings.message_max_bytes

    def names(self, topic: str) -> Sequence[str]:  # noqa: ARG002 - of the protocol
        """Return nothing: a topic of Kafka has one name."""
        return ()

    def published_as(self, topic: str) -> str:
        """Return the topic."""
        return topic

    def pattern(self, topic: str) -> str | None:  # noqa: ARG002 - of the protocol
        """Return None: a topic of Kafka stands for itself alone."""
        return None

    async def publisher(self, name: str) -> Publisher:
        """Open a publisher; it connects when there is something to publish."""
        return await asyncio.to_thread(KafkaPublisher, self._settings, f"scoop-{name}")

    async def consumer(self, subscription: Subscription) -> Consumer:
        """Open a consumer; it joins its group when it is first asked for messages."""
        return await asyncio.to_thread(KafkaConsumer, self._settings, subscription)

    async def prepare(self, subscription: Subscription) -> str | None:
        """Commit where the group begins on topics on which it has never been; see the protocol."""
        parse_start(subscription.start)
        return await asyncio.to_thread(prepare, self._settings, subscription)

    async def topology(
        self, topics: Sequence[str], subscription: Subscription | None, *, create: bool
    ) -> list[Resource]:
        """Return the topics that have to exist, and create those that do not; see the protocol."""
        received = () if subscription is None else subscription.topics
        return await existing.topology(self._settings, [*topics, *received], create=create)


def open_broker(url: str, settings: dict[str, object]) -> KafkaBroker:
    """Return the broker that a URL and settings describe; connect nothing.

    Args:
        url: `kafka://[user:password@]host[:port][,host...][?setting=value&...]`.
        settings: on top of those in the URL.

    Raises:
        BrokerError: one of them is wrong; the message says which, and never shows a password.
    """
    return KafkaBroker(read_settings(url, settings))
