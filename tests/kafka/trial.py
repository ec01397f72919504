"""What tests of the adapter do again and again: open what must be closed, publish, receive, look from outside."""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import cached_property
from typing import Any, Self

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic  # type: ignore[attr-defined]
from scoop_outbox_kafka import KafkaBroker, open_broker
from scoop_outbox_kafka.consumer import KafkaConsumer
from scoop_outbox_kafka.publisher import KafkaPublisher

from scoop_outbox.broker.protocol import Delivery, PublishStatus, Receipt, Subscription
from scoop_outbox.message import BYTES, Envelope, uuid7

ACKNOWLEDGED, FOR_NOW, FOR_GOOD = PublishStatus.ACKNOWLEDGED, PublishStatus.RETRIABLE, PublishStatus.PERMANENT


def name(stem: str = "topic") -> str:
    """A name that nobody else has."""
    return f"{stem}-{secrets.token_hex(6)}"


def envelope(topic: str, key: str | None = None, body: bytes = b"{}", **headers: str) -> Envelope:
    """A message of its own."""
    return Envelope(str(uuid7()), topic, key, body, BYTES, headers)


def verdicts(receipts: Sequence[Receipt]) -> list[PublishStatus]:
    """What the broker said."""
    return [receipt.status for receipt in receipts]


def bodies(deliveries: Sequence[Delivery]) -> list[bytes]:
    """What came."""
    return [one.envelope.body for one in deliveries]


class Trial:
    """Everything that is opened in a test, and closed at its end."""

    def __init__(self, url: str, settings: Mapping[str, object] | None = None) -> None:
        self.url = url
        self.settings = dict(settings or {})
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._opened.aclose()

    @property
    def client(self) -> dict[str, Any]:
        """How a client that knows nothing of us connects."""
        return {"bootstrap.servers": self.url.removeprefix("kafka://")}

    @cached_property
    def admin(self) -> AdminClient:
        # One, for it must live until what it is asked is answered.
        return AdminClient(self.client)

    def broker(self, **settings: object) -> KafkaBroker:
        return open_broker(
            self.url, {**self.settings, **{name.replace("__", "."): of for name, of in settings.items()}}
        )

    async def publisher(self, **settings: object) -> KafkaPublisher:
        # Else each topic that does not exist would cost three seconds.
        settings.setdefault("producer__topic__metadata__propagation__max__ms", 500)
        publisher = await self.broker(**settings).publisher("test")
        assert isinstance(publisher, KafkaPublisher)
        self._opened.push_async_callback(publisher.close)
        return publisher

    async def consumer(
        self, group: str, *topics: str, start: str | None = "earliest", **settings: object
    ) -> KafkaConsumer:
        # The first member notices a second one by its heartbeats.
        if "consumer__group__protocol" not in settings:
            settings.setdefault("consumer__heartbeat__interval__ms", 300)
        consumer = await self.broker(**settings).consumer(Subscription("test", group, topics, start))
        assert isinstance(consumer, KafkaConsumer)
        self._opened.push_async_callback(consumer.close)
        return consumer

    def topic(self, partitions: int = 1, replicas: int = 1, **settings: str) -> str:
        """A new topic."""
        topic = name()
        self.create(topic, partitions, replicas, **settings)
        return topic

    def create(self, topic: str, partitions: int = 1, replicas: int = 1, **settings: str) -> None:
        config = {name.replace("_", "."): value for name, value in settings.items()}
        new = NewTopic(topic, partitions, replicas, config=config)
        # Seen once, on a busy machine and a broker just started: a client that got no answer at all. Another one does.
        for patience, admin in ((5, self.admin), (25, AdminClient(self.client))):
            try:
                admin.create_topics([new], operation_timeout=patience)[topic].result(patience)
            except TimeoutError:
                continue
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
            return
        raise TimeoutError(f"the topic {topic} could not be created")

    def enlarge(self, topic: str, partitions: int) -> None:
        self.admin.create_partitions([NewPartitions(topic, partitions)], operation_timeout=10)[topic].result(10)

    def produce(self, topic: str, *values: bytes | None, key: bytes | None = None, **more: Any) -> None:
        """Publish as a client that knows nothing of us."""
        producer = Producer({**self.client, "linger.ms": 0})
        told: list[KafkaError | None] = []
        for value in values:
            producer.produce(topic, value, key, on_delivery=lambda error, _: told.append(error), **more)
        producer.flush(10)
        assert told == [None] * len(values)

    def headers(self, topic: str) -> dict[str, bytes]:
        """The headers of the only message there is, or of the last."""
        found = self.read(topic)[-1].headers()
        assert isinstance(found, list)
        return {name: value for name, value in found if isinstance(value, bytes)}

    def read(self, topic: str, partition: int = 0) -> list[Message]:
        """Read all that there is, as a client that knows nothing of us."""
        settings = {"enable.auto.commit": False, "enable.partition.eof": True}
        consumer = Consumer({**self.client, **settings, "group.id": name("reader")})
        try:
            consumer.assign([TopicPartition(topic, partition, 0)])
            found: list[Message] = []
            while (message := consumer.poll(10)) is not None:
                error = message.error()
                if error is None:
                    found.append(message)
                else:
                    assert error.code() == KafkaError._PARTITION_EOF
                    return found
            raise AssertionError(found)
        finally:
            consumer.close()

    def committed(self, group: str, topic: str, partition: int = 0) -> int:
        """The offset that a group has committed; -1001 if none."""
        consumer = Consumer({**self.client, "group.id": group})
        try:
            (found,) = consumer.committed([TopicPartition(topic, partition)], timeout=10)
            return int(found.offset)
        finally:
            consumer.close()

    def commit(self, group: str, topic: str, offset: int, partition: int = 0) -> None:
        """Commit for a group that has no members."""
        consumer = Consumer({**self.client, "group.id": group})
        try:
            consumer.commit(offsets=[TopicPartition(topic, partition, offset)], asynchronous=False)
        finally:
            consumer.close()


async def received(consumer: KafkaConsumer, count: int, *, acknowledge: bool = True) -> list[Delivery]:
    """So many messages."""
    came: list[Delivery] = []
    async with asyncio.timeout(20):
        while len(came) < count:
            batch = await consumer.receive(500, 0.2)
            came += batch
            if acknowledge:
                await consumer.acknowledge(batch)
    assert len(came) == count, [one.position for one in came]
    return came


async def nothing(consumer: KafkaConsumer) -> None:
    """Nothing comes, though it would have by now: the consumer is at home in its group."""
    for _ in range(5):
        assert bodies(await consumer.receive(500, 0.1)) == []


async def joined(consumer: KafkaConsumer) -> None:
    """Wait until the consumer has been assigned something."""
    async with asyncio.timeout(20):
        while not consumer._assignment._generations:
            assert await consumer.receive(1, 0.05) == []
