"""Backpressure from end to end: a service that has enough to do leaves the rest at the broker, and stays a member."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import aio_pika
import pytest

from scoop_outbox import Message, Scoop
from tests.kafka.trial import Trial as KafkaTrial
from tests.kafka.trial import name
from tests.rabbitmq.trial import Trial as RabbitTrial
from tests.waiting import until

FIRST, MORE = 50, 200
HIGH, SLOTS = 20, 2


class Busy:
    """A service whose steps do not end before they are let go."""

    def __init__(self, database: str, broker: str, topic: str, group: str, start: str | None = None) -> None:
        self.app = Scoop(group, database=database, broker=broker, start=start)
        self.let_go = asyncio.Event()
        self.done: Counter[bytes] = Counter()
        self.app.saga("busy", on=topic).add_step("only", self._only)

    async def _only(self, _: object, message: Message) -> None:
        await self.let_go.wait()
        self.done[message.body] += 1


async def leaves_the_rest(
    busy: Busy, publish: Callable[[int, int], Awaitable[None]], left: Callable[[], Awaitable[int]]
) -> None:
    """Publish, see what is taken in and what is left at the broker, and let the steps go."""
    await publish(0, FIRST)
    async with busy.app.running(slots=SLOTS, high_water=HIGH) as daemons:
        intake = daemons.intake
        assert intake is not None
        await until(lambda: intake.paused, 30)
        await publish(FIRST, FIRST + MORE)
        turns: list[None] = []
        cycle = intake._cycle

        async def counting() -> None:
            await cycle()
            turns.append(None)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(intake, "_cycle", counting)
            await until(lambda: len(turns) > 4, 30)  # it goes on asking the broker, and is given nothing
        assert intake.counters.taken_in == FIRST
        assert await left() == MORE
        assert busy.done == {}
        busy.let_go.set()
        await until(lambda: busy.done.total() == FIRST + MORE, 60)
        await until(lambda: not intake.paused)
    assert set(busy.done.values()) == {1}


async def test_kafka_keeps_what_a_busy_service_does_not_take(kafka: KafkaTrial, database_url: str) -> None:
    topic, group = kafka.topic(), name("busy")
    busy = Busy(database_url, kafka.url, topic, group, "earliest")

    async def publish(first: int, last: int) -> None:
        await asyncio.to_thread(kafka.produce, topic, *(b"%d" % number for number in range(first, last)))

    async def left() -> int:
        asked = kafka.admin.describe_consumer_groups([group], request_timeout=10)
        described = await asyncio.to_thread(asked[group].result, 10)
        (member,) = described.members
        assert [(one.topic, one.partition) for one in member.assignment.topic_partitions] == [(topic, 0)]
        return FIRST + MORE - await asyncio.to_thread(kafka.committed, group, topic)

    await leaves_the_rest(busy, publish, left)


async def test_rabbitmq_keeps_what_a_busy_service_does_not_take(rabbit: RabbitTrial, database_url: str) -> None:
    topic, group = name("topic"), name("busy")
    await rabbit.create(group, topic)
    busy = Busy(database_url, rabbit.url, topic, group)
    channel = await rabbit.channel()
    exchange = await channel.get_exchange("amq.topic")

    async def publish(first: int, last: int) -> None:
        for number in range(first, last):
            await exchange.publish(aio_pika.Message(b"%d" % number, message_id=str(number)), topic)

    async def left() -> int:
        declared = await channel.declare_queue(group, passive=True)
        return declared.declaration_result.message_count or 0

    await leaves_the_rest(busy, publish, left)
