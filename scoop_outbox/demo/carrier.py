"""A real broker that carries the messages of the demonstration, and an onlooker who counts them there."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from types import MappingProxyType
from typing import NamedTuple, Self
from urllib.parse import urlsplit

from scoop_outbox import ScoopError
from scoop_outbox.broker import plugins
from scoop_outbox.broker.protocol import Broker, Consumer, Subscription
from scoop_outbox.demo import names
from scoop_outbox.demo.runner import in_thread
from scoop_outbox.devservers._errors import ServerNotFoundError, ServerStartError
from scoop_outbox.devservers.kafka import KAFKA_URL, kafka_for_tests
from scoop_outbox.devservers.rabbitmq import RABBITMQ_URL, rabbitmq_for_tests

_LAST_MESSAGES = 10.0
"""Seconds that the onlooker gets at the end to see what has been handled already."""


class _Kind(NamedTuple):
    """A broker that can be started here."""

    example: str
    named_by: str
    find: Callable[[], AbstractContextManager[str]]


_KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        "kafka": _Kind("kafka://127.0.0.1:9092", KAFKA_URL, kafka_for_tests),
        "rabbitmq": _Kind("amqp://user:password@127.0.0.1:5672/", RABBITMQ_URL, rabbitmq_for_tests),
    }
)
_TITLES = {"kafka": "Apache Kafka", "amqp": "RabbitMQ", "amqps": "RabbitMQ"}


class BrokerNotFoundError(ScoopError):
    """There is no such broker, or it cannot be started here; the message says what to install or to pass."""


class Onlooker:
    """Counts messages where they are: an ordinary consumer, in a group of its own, that no service knows of."""

    def __init__(self, consumer: Consumer, topics: Iterable[str]) -> None:
        """Have seen nothing yet."""
        self._consumer = consumer
        self._topics: dict[str, set[str]] = {topic: set() for topic in topics}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._look_on())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._consumer.close()

    @property
    def counts(self) -> dict[str, int]:
        """How many messages each topic has carried; one that came twice is one."""
        return {topic: len(seen) for topic, seen in self._topics.items()}

    @property
    def total(self) -> int:
        """How many messages there were in all topics together."""
        return sum(map(len, self._topics.values()))

    def check(self) -> None:
        """See that the broker still lets it look on.

        Raises:
            BrokerError: it does not, and why.
        """
        if self._task is not None and self._task.done():
            self._task.result()

    async def missing(self, handled: Iterable[str], within: float = _LAST_MESSAGES) -> set[str]:
        """Return which messages were handled without having been at the broker; wait a little for the last ones."""
        handled = set(handled)
        deadline = time.monotonic() + within
        while (missing := handled.difference(*self._topics.values())) and time.monotonic() < deadline:
            self.check()
            await asyncio.sleep(0.05)
        return missing

    async def _look_on(self) -> None:
        while True:
            deliveries = await self._consumer.receive(500, 0.2)
            for one in deliveries:
                self._topics.setdefault(one.envelope.topic, set()).add(one.envelope.id)
            await self._consumer.acknowledge(deliveries)


class Carrier(NamedTuple):
    """A broker that is ready to be used.

    Attributes:
        url: where it is; it may hold a password.
        where: its address, without user and password.
        created: what was created there, in words.
        outlives_us: whether it runs on when the demonstration has ended, with what was created there.
        onlooker: counts what it carries.
        channels: of the topics that are looked at, those on which homes speak to each other.
    """

    url: str
    where: str
    created: str
    outlives_us: bool
    onlooker: Onlooker
    channels: frozenset[str]

    @property
    def counts(self) -> dict[str, int]:
        """How many messages each topic of the services has carried."""
        return {topic: number for topic, number in self.onlooker.counts.items() if topic not in self.channels}

    @property
    def said(self) -> int:
        """How many control messages the homes have sent each other."""
        return sum(number for topic, number in self.onlooker.counts.items() if topic in self.channels)


def title_of(broker: str | None, settings: Mapping[str, str]) -> str | None:
    """Return what a broker is called, None for the built-in one; and see, before anything is started, that it can be.

    Args:
        broker: a name, `kafka` or `rabbitmq`, or a URL.
        settings: for its client.

    Raises:
        BrokerNotFoundError: it is neither a name that is known nor a URL.
        BrokerError: no installed adapter serves the broker, or the adapter refuses its URL or settings.
    """
    if broker is None:
        return None
    url = _KINDS[broker].example if broker in _KINDS else broker
    if ":" not in url:
        raise BrokerNotFoundError(f"{url!r} is no broker: say kafka or rabbitmq, or the URL of one that runs")
    if plugins.is_builtin(url):
        return None
    plugins.load(url, settings)
    scheme = urlsplit(url).scheme
    return _TITLES.get(scheme, scheme)


@asynccontextmanager
async def carrier(
    broker: str,
    settings: Mapping[str, str],
    subscriptions: Sequence[Subscription],
    controls: Sequence[Subscription] = (),
) -> AsyncIterator[Carrier]:
    """Make a broker ready: start it unless a URL says where it is, create what the services need, and look on.

    Args:
        broker: a name, `kafka` or `rabbitmq`, or a URL.
        settings: for its client.
        subscriptions: what the services receive.
        controls: what homes receive from each other.

    Raises:
        BrokerNotFoundError: it cannot be started here.
        BrokerError: it cannot be used.
    """
    async with AsyncExitStack() as stack:
        kind = _KINDS.get(broker)
        url = broker if kind is None else await stack.enter_async_context(in_thread(_found(kind)))
        outlives_us = kind is None or bool(os.environ.get(kind.named_by))
        opened = plugins.load(url, settings)
        yield await stack.enter_async_context(_prepared(url, opened, subscriptions, controls, outlives_us=outlives_us))


@asynccontextmanager
async def _prepared(
    url: str,
    broker: Broker,
    subscriptions: Sequence[Subscription],
    controls: Sequence[Subscription],
    *,
    outlives_us: bool,
) -> AsyncIterator[Carrier]:
    channels = frozenset(topic for one in controls for topic in one.topics)
    topics = tuple(dict.fromkeys(topic for one in (*subscriptions, *controls) for topic in one.topics))
    onlooker = Subscription("onlooker", names.group("onlooker"), topics, "earliest")
    created = await _create(broker, [*subscriptions, *controls, onlooker])
    where = urlsplit(url).netloc.rpartition("@")[2]
    async with Onlooker(await broker.consumer(onlooker), topics) as looking_on:
        yield Carrier(url, where, created, outlives_us, looking_on, channels)


async def _create(broker: Broker, subscriptions: Sequence[Subscription]) -> str:
    """Create what the services need, and say in words what that was."""
    created: dict[str, None] = {}
    for one in subscriptions:
        items = await broker.topology(one.topics, one, create=True)
        created.update((item.text, None) for item in items if not item.exists)
    kinds = Counter(text.partition(" ")[0] for text in created)
    return ", ".join(f"{number} {kind}{'s' if number > 1 else ''}" for kind, number in kinds.items())


@contextmanager
def _found(kind: _Kind) -> Iterator[str]:
    try:
        server = kind.find()
        url = server.__enter__()
    except (ServerNotFoundError, ServerStartError) as error:
        raise BrokerNotFoundError(f"{error}\nOr say where one runs, by its URL: --broker {kind.example}") from error
    try:
        yield url
    finally:
        server.__exit__(None, None, None)
