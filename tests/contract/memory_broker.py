"""A broker within one process: the smallest adapter that keeps the contract."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scoop_outbox.broker import (
    ACKNOWLEDGED,
    BrokerError,
    Consumer,
    Delivery,
    Envelope,
    Feature,
    Publisher,
    PublishStatus,
    Receipt,
    Resource,
    Subscription,
    delivery,
    wire,
)

LIMIT = 4_000_000


@dataclass(frozen=True)
class Packet:
    """A message as the server keeps it."""

    number: int
    topic: str
    key: bytes | None
    body: bytes
    content_type: str
    headers: Mapping[str, bytes]


class Queue:
    """What one group has still to get."""

    def __init__(self) -> None:
        self.waiting: deque[Packet] = deque()
        self.changed = asyncio.Event()

    def put_back(self, packets: Sequence[Packet]) -> None:
        self.waiting.extendleft(reversed(packets))
        self.changed.set()


class Server:
    """What other brokers have on another machine."""

    def __init__(self) -> None:
        self.groups: dict[str, set[str]] = {}  # the groups that receive a topic
        self.queues: defaultdict[str, Queue] = defaultdict(Queue)
        self.count = 0

    def put(self, topic: str, key: bytes | None, body: bytes, content_type: str, headers: Mapping[str, bytes]) -> None:
        self.count += 1
        packet = Packet(self.count, topic, key, body, content_type, headers)
        for group in self.groups[topic]:
            self.queues[group].waiting.append(packet)
            self.queues[group].changed.set()


SERVERS: defaultdict[str, Server] = defaultdict(Server)


class MemoryPublisher:
    def __init__(self, server: Server) -> None:
        self._server = server

    async def publish(self, batch: Sequence[Envelope]) -> Sequence[Receipt]:
        return [self._publish(one) for one in batch]

    def _publish(self, one: Envelope) -> Receipt:
        if not self._server.groups.get(one.topic):
            return Receipt(PublishStatus.PERMANENT, f"nobody can receive topic {one.topic!r}: create it")
        if len(one.body) > LIMIT:
            return Receipt(PublishStatus.PERMANENT, f"its body has {len(one.body)} bytes; {LIMIT} is the limit")
        key = None if one.key is None else wire.key_octets(one.key)
        headers = {name: wire.octets(value) for name, value in wire.outgoing(one).items()}
        self._server.put(one.topic, key, one.body, one.content_type, headers)
        return ACKNOWLEDGED

    async def probe(self) -> str | None:
        return None

    async def close(self) -> None:
        pass


class MemoryConsumer:
    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._held: dict[int, Packet] = {}
        self._paused = False

    async def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        try:
            async with asyncio.timeout(wait):
                while self._paused or not self._queue.waiting:
                    self._queue.changed.clear()
                    await self._queue.changed.wait()
        except TimeoutError:
            return []
        packets = [self._queue.waiting.popleft() for _ in range(min(limit, len(self._queue.waiting)))]
        self._held.update({packet.number: packet for packet in packets})
        return [
            delivery(
                topic=packet.topic,
                key=packet.key,
                body=packet.body,
                content_type=packet.content_type,
                headers={name: wire.text(value) for name, value in packet.headers.items()},
                otherwise=wire.derived_id("memory", str(packet.number)),
                position=f"{packet.topic}#{packet.number}",
                tag=packet.number,
            )
            for packet in packets
        ]

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        for one in deliveries:
            self._held.pop(one.tag, None)

    async def pause(self) -> None:
        self._paused = True

    async def resume(self) -> None:
        self._paused = False

    async def close(self) -> None:
        self._queue.put_back(list(self._held.values()))
        self._held.clear()

    @property
    def problem(self) -> str | None:
        return None


class MemoryBroker:
    def __init__(self, server: Server) -> None:
        self._server = server

    @property
    def features(self) -> frozenset[Feature]:
        return frozenset({Feature.KNOWS_TOPICS, Feature.LIMITS_SIZE})

    @property
    def most_bytes(self) -> int | None:
        return None

    def names(self, topic: str) -> Sequence[str]:
        return ()

    def published_as(self, topic: str) -> str:
        return topic

    def pattern(self, topic: str) -> str | None:
        return None

    async def publisher(self, name: str) -> Publisher:
        return MemoryPublisher(self._server)

    async def consumer(self, subscription: Subscription) -> Consumer:
        return MemoryConsumer(self._server.queues[subscription.group])

    async def prepare(self, subscription: Subscription) -> str | None:
        missing = [item.text for item in await self.topology((), subscription, create=False) if not item.exists]
        if missing:
            raise BrokerError(f"not there: {', '.join(missing)}. Create it with: scoop-outbox topology apply")
        return None

    async def topology(
        self, topics: Sequence[str], subscription: Subscription | None, *, create: bool
    ) -> list[Resource]:
        groups = self._server.groups
        items = [Resource(f"topic {topic}", topic in groups) for topic in topics]
        wanted = () if subscription is None else subscription.topics
        group = "" if subscription is None else subscription.group
        items += [Resource(f"topic {topic} for group {group}", group in groups.get(topic, ())) for topic in wanted]
        if create:
            for topic in topics:
                groups.setdefault(topic, set())
            for topic in wanted:
                groups.setdefault(topic, set()).add(group)
        return items


def open_broker(url: str, settings: Mapping[str, object]) -> MemoryBroker:
    """Return the broker of a URL such as memory://name."""
    if settings:
        raise BrokerError(f"the memory broker has no settings, so not {', '.join(map(repr, settings))} either")
    return MemoryBroker(SERVERS[url])
