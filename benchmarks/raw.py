"""The ceilings over brokers: what the clients themselves reach, without outbox, relay and intake."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import psycopg
from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractIncomingMessage
from confluent_kafka import Consumer, KafkaError, Message, Producer
from psycopg.types.json import Json
from scoop_outbox_kafka.record import Records
from scoop_outbox_kafka.settings import read_settings
from scoop_outbox_rabbitmq.properties import outgoing
from scoop_outbox_rabbitmq.route import route

from benchmarks.brokers import SERVICE
from scoop_outbox.message import Envelope
from scoop_outbox.wire import headers as wire

WINDOW = 500
_POLL_EVERY = 200
_BATCH = 500
_ANSWER = 30.0
_BARE = b"create table if not exists bare (id uuid primary key, topic text, key text, body bytea, headers json)"
_COPY = b"copy bare (id, topic, key, body, headers) from stdin"

Record = tuple[str, bytes, bytes | None, list[tuple[str, str | bytes | None]]]


class KafkaProducer:
    """confluent-kafka with the settings of the adapter, which make it report failures only."""

    def __init__(self, url: str) -> None:
        self._producer = Producer(read_settings(url, {}).for_producer("benchmark"))
        self._failed = 0

    def publish(self, records: Sequence[Record]) -> None:
        """Publish, and wait until all is acknowledged."""
        for number, (topic, value, key, headers) in enumerate(records):
            while True:
                try:
                    self._producer.produce(topic, value, key, on_delivery=self._failure, headers=headers)
                    break
                except BufferError:  # its queue is full
                    self._producer.poll(0.01)
            if number % _POLL_EVERY == 0:
                self._producer.poll(0)
        left = self._producer.flush(_ANSWER)
        if left or self._failed:
            raise RuntimeError(f"{left + self._failed} messages were not acknowledged")

    def _failure(self, error: KafkaError | None, _: Message) -> None:
        self._failed += 1


def records(envelopes: Sequence[Envelope]) -> list[Record]:
    """Return what the adapter would make of envelopes."""
    made = Records()
    return [
        (one.topic, one.body, None if one.key is None else wire.key_octets(one.key), made.of(one)[1])
        for one in envelopes
    ]


def publish_to_kafka(url: str, envelopes: Sequence[Envelope], batch: int | None = None) -> float:
    """Return how many messages a second the producer publishes, once it is connected.

    With `batch` it waits for the acknowledgements of so many before it goes on.
    """
    ready = records(envelopes)
    producer = KafkaProducer(url)
    producer.publish(ready[:1])
    started = time.perf_counter()
    step = batch or len(ready)
    for first in range(1, len(ready), step):
        producer.publish(ready[first : first + step])
    return (len(ready) - 1) / (time.perf_counter() - started)


def consume_from_kafka(url: str, topic: str, group: str, count: int, store: Callable[[list[Any]], None]) -> float:
    """Return how many messages a second are consumed, stored and committed, behind the first batch."""
    settings = read_settings(url, {}).for_consumer(SERVICE, group)
    consumer = Consumer({**settings, "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    done, first, started = 0, 0, 0.0
    try:
        while done < count:
            messages = [message for message in consumer.consume(_BATCH, 0.1) if message.error() is None]
            if not messages:
                continue
            store([(message.topic(), message.key(), message.value(), message.headers()) for message in messages])
            consumer.commit(message=messages[-1], asynchronous=True)
            done += len(messages)
            if not started:
                first, started = done, time.perf_counter()
        return (done - first) / (time.perf_counter() - started)
    finally:
        consumer.close()


def nowhere(rows: list[Any]) -> None:
    """Store nothing."""


class Copying:
    """Copies batches into a table without looking into them."""

    def __init__(self, database: str) -> None:
        self._connection = psycopg.connect(database, autocommit=True)
        self._connection.execute(_BARE)
        self._connection.execute("truncate bare")

    def __call__(self, rows: list[Any]) -> None:
        with self._connection.transaction(), self._connection.cursor() as cursor, cursor.copy(_COPY) as copy:
            for topic, key, body, headers in rows:
                text = {name: value.decode() for name, value in headers}
                copy.write_row((text["scoop-id"], topic, key.decode(), body, Json(text)))

    def close(self) -> None:
        self._connection.close()


@asynccontextmanager
async def rabbitmq(url: str) -> AsyncIterator[tuple[AbstractChannel, AbstractExchange]]:
    """Connect aio-pika, with confirms and returns."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        yield channel, await channel.get_exchange("amq.topic")


def messages(envelopes: Sequence[Envelope]) -> list[tuple[aio_pika.Message, str]]:
    """Return what the adapter would make of envelopes, and their routing keys."""
    found = []
    for one in envelopes:
        properties = outgoing(one, route(one.topic, "amq.topic"))
        message = aio_pika.Message(
            one.body,
            headers=properties.headers,
            content_type=properties.content_type,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            message_id=properties.message_id,
            timestamp=properties.timestamp,
        )
        found.append((message, one.topic))
    return found


async def publish_window(exchange: AbstractExchange, window: Sequence[tuple[aio_pika.Message, str]]) -> None:
    """Publish at once, and wait for all confirms."""
    await asyncio.gather(*(exchange.publish(message, key, mandatory=True) for message, key in window))


async def publish_to_rabbitmq(url: str, envelopes: Sequence[Envelope]) -> float:
    """Return how many messages a second aio-pika publishes with full windows, once it is connected."""
    ready = messages(envelopes)
    async with rabbitmq(url) as (_, exchange):
        await publish_window(exchange, ready[:1])
        started = time.perf_counter()
        for first in range(1, len(ready), WINDOW):
            await publish_window(exchange, ready[first : first + WINDOW])
        return (len(ready) - 1) / (time.perf_counter() - started)


async def consume_from_rabbitmq(
    url: str, queue: str, count: int, prefetch: int, store: Callable[[list[Any]], None]
) -> float:
    """Return how many messages a second are consumed, stored and acknowledged, behind the first batch."""
    async with rabbitmq(url) as (channel, _):
        await channel.set_qos(prefetch_count=prefetch)
        arrived: list[AbstractIncomingMessage] = []
        woken = asyncio.Event()

        async def take(message: AbstractIncomingMessage) -> None:
            arrived.append(message)
            woken.set()

        consumed = await channel.get_queue(queue)
        await consumed.consume(take)
        done, first, started = 0, 0, 0.0
        while done < count:
            await woken.wait()
            woken.clear()
            while len(arrived) >= min(_BATCH, count - done) > 0:
                batch = arrived[:_BATCH]
                del arrived[:_BATCH]
                store([_row(message) for message in batch])
                await batch[-1].ack(multiple=True)
                done += len(batch)
                if not started:
                    first, started = done, time.perf_counter()
        return (done - first) / (time.perf_counter() - started)


def _row(message: AbstractIncomingMessage) -> tuple[str | None, bytes, bytes, list[tuple[str, bytes]]]:
    headers = [(name, str(value).encode()) for name, value in message.headers.items()]
    return message.routing_key, str(message.headers.get("scoop-key", "")).encode(), message.body, headers


async def purge(url: str, queue: str) -> None:
    """Empty a queue."""
    async with rabbitmq(url) as (channel, _):
        await (await channel.get_queue(queue)).purge()
