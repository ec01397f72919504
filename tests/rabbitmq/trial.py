"""What tests of the adapter do again and again: open what must be closed, publish, receive, look from outside."""

import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Self

import aio_pika
from aio_pika.abc import AbstractChannel
from aiormq.abc import ChannelFrame, FieldTable
from aiormq.channel import Channel
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.header import ContentHeader
from scoop_outbox_rabbitmq import RabbitBroker, open_broker
from scoop_outbox_rabbitmq.consumer import RabbitConsumer
from scoop_outbox_rabbitmq.publisher import RabbitPublisher

from scoop_outbox.broker.protocol import Delivery, PublishStatus, Receipt, Subscription
from scoop_outbox.message import BYTES, Envelope, uuid7

ACKNOWLEDGED, FOR_NOW, FOR_GOOD = PublishStatus.ACKNOWLEDGED, PublishStatus.RETRIABLE, PublishStatus.PERMANENT


def name(stem: str = "topic") -> str:
    """A name that nobody else has."""
    return f"{stem}.{secrets.token_hex(6)}"


def envelope(topic: str, key: str | None = None, body: bytes = b"{}", **headers: str) -> Envelope:
    """A message of its own."""
    return Envelope(str(uuid7()), topic, key, body, BYTES, headers)


def verdicts(receipts: Sequence[Receipt]) -> list[PublishStatus]:
    """What the broker said."""
    return [receipt.status for receipt in receipts]


class Trial:
    """Everything that is opened in a test, and closed at its end."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._opened.aclose()

    def broker(self, **settings: object) -> RabbitBroker:
        return open_broker(self.url, {name.replace("__", "."): value for name, value in settings.items()})

    async def publisher(self, **settings: object) -> RabbitPublisher:
        publisher = await self.broker(**settings).publisher("test")
        assert isinstance(publisher, RabbitPublisher)
        self._opened.push_async_callback(publisher.close)
        return publisher

    async def consumer(self, group: str, *topics: str, **settings: object) -> RabbitConsumer:
        consumer = await self.broker(**settings).consumer(Subscription("test", group, topics))
        assert isinstance(consumer, RabbitConsumer)
        self._opened.push_async_callback(consumer.close)
        return consumer

    async def create(self, group: str, *topics: str, **settings: object) -> None:
        """Declare the queue and bind it."""
        await self.broker(**settings).topology(topics, Subscription("test", group, topics), create=True)

    async def channel(self) -> AbstractChannel:
        """A channel of a client that knows nothing of us."""
        connection = await aio_pika.connect(self.url, timeout=10)
        self._opened.push_async_callback(connection.close)
        return await connection.channel(on_return_raises=True)

    async def queue(self, *topics: str, **arguments: Any) -> str:
        """A classic queue bound to routing keys of amq.topic."""
        channel = await self.channel()
        table: FieldTable = {key.replace("_", "-"): value for key, value in arguments.items()}
        queue = await channel.declare_queue(name("queue"), durable=True, arguments=table)
        for topic in topics:
            await queue.bind("amq.topic", topic)
        return queue.name

    async def bodies(self, queue: str) -> list[bytes]:
        """All that is in a queue, taken out."""
        declared = await (await self.channel()).get_queue(queue)
        found = []
        while (message := await declared.get(fail=False, timeout=5)) is not None:
            await message.ack()
            found.append(message.body)
        return found


async def received(consumer: RabbitConsumer, count: int) -> list[Delivery]:
    """So many messages."""
    came: list[Delivery] = []
    for _ in range(60):
        if len(came) >= count:
            break
        came += await consumer.receive(500, 0.5)
    assert len(came) == count, [one.position for one in came]
    return came


async def publish_plainly(
    trial: Trial, exchange: str, key: str, body: bytes, spoil: tuple[bytes, bytes] = (b"", b""), **properties: Any
) -> None:
    """Publish as clients do that invent nothing: without a message_id unless there is one.

    `spoil` replaces bytes on the wire.
    """
    channel = await (await trial.channel()).get_underlay_channel()
    publish = commands.Basic.Publish(exchange=exchange, routing_key=key)
    header = ContentHeader(body_size=len(body), properties=commands.Basic.Properties(**properties))
    frames = ChannelFrame.marshall(channel.number, [publish, header, *([ContentBody(body)] if body else [])])
    if spoil[0]:
        frames = replace(frames, payload=frames.payload.replace(*spoil))
    assert isinstance(channel, Channel)
    await channel.write_queue.put(frames)
    # Answered behind it.
    await channel.basic_qos(prefetch_count=1)
