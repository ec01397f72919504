"""The entry point: what scoop_outbox calls with a URL and settings."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from scoop_outbox.broker import BrokerError, Consumer, Feature, Publisher, Resource, Subscription, own_cancellation_only
from scoop_outbox_rabbitmq import topology as existing
from scoop_outbox_rabbitmq.connection import LOST, Link, UnreachableError, close, explain, open_link
from scoop_outbox_rabbitmq.consumer import RabbitConsumer
from scoop_outbox_rabbitmq.publisher import RabbitPublisher
from scoop_outbox_rabbitmq.route import Routes, names, pattern, route, routes
from scoop_outbox_rabbitmq.settings import Settings, read_settings

_ANSWER = 20.0


class RabbitBroker:
    """RabbitMQ, as scoop_outbox uses it.

    Args:
        settings: where, and how.
    """

    def __init__(self, settings: Settings) -> None:
        """Connect nothing yet."""
        self._settings = settings
        self._bound: set[existing.Binding] = set()

    def __repr__(self) -> str:
        return f"<RabbitBroker {', '.join(f'{host}:{port}' for host, port in self._settings.hosts)}>"

    @property
    def features(self) -> frozenset[Feature]:
        """What RabbitMQ can do.

        One queue keeps its order only for one consumer at a time, and a pipeline cannot hold back the later messages
        of a key when one is refused.
        """
        always = frozenset({Feature.KNOWS_TOPICS, Feature.LIMITS_SIZE})
        if not self._settings.mandatory:
            always -= {Feature.KNOWS_TOPICS}
        in_order = self._settings.single_active_consumer and not self._settings.pipeline
        return always | {Feature.ORDER_PER_KEY} if in_order else always

    @property
    def most_bytes(self) -> int | None:
        """Nothing: what a body may have (`max_message_size`) is the broker's to say, when it is published."""
        return None

    def names(self, topic: str) -> Sequence[str]:
        """Return the other names of a topic: its exchange may be written or left out, and with or without %xx.

        What comes out of a queue of the topic's own came there by bindings that nobody here knows: it has none.
        """
        if topic in self._settings.queues:
            return ()
        return [one for one in names(route(topic, self._settings.exchange), self._settings.exchange) if one != topic]

    def published_as(self, topic: str) -> str:
        """Return the exchange, a slash and the routing key."""
        return str(route(topic, self._settings.exchange))

    def pattern(self, topic: str) -> str | None:
        """Return the regular expression of the topics that a topic with wildcards stands for; see `names`."""
        if topic in self._settings.queues:
            return None
        return pattern(route(topic, self._settings.exchange), self._settings.exchange)

    async def publisher(self, name: str) -> Publisher:
        """Open a publisher; it connects when there is something to publish."""
        return RabbitPublisher(self._settings, name)

    async def consumer(self, subscription: Subscription) -> Consumer:
        """Open a consumer; it connects when it is first asked for messages."""
        return RabbitConsumer(self._settings, self._routes(subscription), _name(subscription))

    async def prepare(self, subscription: Subscription) -> str | None:
        """See whether a subscription can work; see the protocol. A queue keeps what comes, whoever is there."""
        wanted = self._routes(subscription)
        try:
            async with self._link(_name(subscription)) as link:
                await existing.check(link, wanted, self._settings)
        except UnreachableError as error:
            return str(error)
        return None

    async def topology(
        self, topics: Sequence[str], subscription: Subscription | None, *, create: bool
    ) -> list[Resource]:
        """Return what has to exist, and create what does not; see the protocol."""
        wanted = None if subscription is None else self._routes(subscription)
        try:
            async with self._link("topology") as link:
                return await existing.topology(link, topics, wanted, self._settings, self._bound, create=create)
        except UnreachableError as error:
            raise BrokerError(str(error)) from None

    def _routes(self, subscription: Subscription) -> Routes:
        # A queue begins with the earliest message that it has kept.
        if subscription.start not in (None, "earliest"):
            raise BrokerError(
                f"the start {subscription.start!r} means nothing to RabbitMQ: a queue gets what is published "
                "once it is bound, and keeps it. Leave the start out, or say earliest"
            )
        return routes(subscription.group, subscription.topics, self._settings.exchange, dict(self._settings.queues))

    @asynccontextmanager
    async def _link(self, name: str) -> AsyncIterator[Link]:
        link = await open_link(self._settings, name)
        try:
            with own_cancellation_only():
                async with asyncio.timeout(_ANSWER):
                    yield link
        except LOST as error:
            raise UnreachableError(f"RabbitMQ has not answered ({explain(error)})") from error
        finally:
            await close(link)


def _name(subscription: Subscription) -> str:
    return f"{subscription.service} intake {os.getpid()}"


def open_broker(url: str, settings: dict[str, object]) -> RabbitBroker:
    """Return the broker that a URL and settings describe; connect nothing.

    Args:
        url: `amqp://user:password@host:5672/vhost`, or `amqps://`; several hosts with commas; settings behind `?`.
        settings: on top of those in the URL.

    Raises:
        BrokerError: one of them is wrong; the message says which, and never shows the password.
    """
    return RabbitBroker(read_settings(url, settings))
