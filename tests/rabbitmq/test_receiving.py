"""Receiving: from our own queue and from those of others, on a real broker."""

import asyncio
from datetime import UTC, datetime

import aio_pika
import pytest

from scoop_outbox.broker.protocol import Delivery, Feature
from scoop_outbox.errors import BrokerError
from scoop_outbox.headers import octets
from tests.rabbitmq.trial import Trial, envelope, name, received
from tests.waiting import until


async def depth(trial: Trial, queue: str) -> int:
    """How many messages nobody holds."""
    declared = await (await trial.channel()).declare_queue(queue, passive=True)
    return declared.declaration_result.message_count or 0


async def test_a_plain_message_has_an_identity_of_its_own(trial: Trial) -> None:
    topic, group = name(), name("group")
    await trial.create(group, topic)
    exchange = await (await trial.channel()).get_exchange("amq.topic")
    # Without the client's own invention of an id, as other clients publish.
    raw = await trial.channel()
    consumer = await trial.consumer(group, topic)
    underlay = await raw.get_underlay_channel()

    async def publish(body: bytes, message_id: str | None = None, app: str | None = None) -> None:
        properties = aio_pika.Message(body, message_id=message_id, app_id=app, content_type="text/plain").properties
        if message_id is None:
            properties.message_id = "\0"
        await underlay.basic_publish(body, exchange=exchange.name, routing_key=topic, properties=properties)

    for body, message_id, app in [
        (b"1", "m", "shop"),
        (b"2", "m", "shop"),
        (b"1", "m", "till"),
        (b"1", "n", "shop"),
    ]:
        await publish(body, message_id, app)
    one, two, three, four = await received(consumer, 4)

    assert one.envelope.id == two.envelope.id
    assert len({one.envelope.id, three.envelope.id, four.envelope.id}) == 3
    assert (one.defect, one.envelope.key, one.envelope.content_type) == (None, None, "text/plain")
    assert one.envelope.headers["amqp-message-id"] == "m"
