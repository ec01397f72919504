"""Outages: a broker that is away, or does not answer, costs time and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from scoop_outbox.broker.protocol import Feature, PublishStatus
from scoop_outbox.message import Envelope
from scoop_outbox.testing.contract.harness import Power
from scoop_outbox.testing.contract.selection import Contract, needs
from scoop_outbox.testing.contract.trial import Sender, Trial, ids, in_order, numbered, until, within

_KEYS = ["a", "b", "c", "d"]


class Outages(Contract):
    """Tests with a server that is stopped or frozen."""

    @needs(Power.STOP)
    async def test_a_broker_that_is_down_at_the_start(self, trial: Trial) -> None:
        topic = await trial.topic()
        messages = numbered(topic, _KEYS, range(5))
        await trial.harness.stop()
        try:
            sender, member = await trial.sender(), await trial.member(topic)
            receipts = await sender.once(messages)
            received = await member.receive(wait=1)
            troubles = member.consumer.problem, await sender.problem()
            async with within(20, "preparing while the broker is down"):
                assert await trial.broker.prepare(trial.subscription(topic)), "what is wrong"
        finally:
            await trial.harness.start()
        await sender.deliver(messages)
        await member.take(messages, acknowledge=True)
        await until(lambda: member.consumer.problem is None, "the consumer is well")
        assert await sender.problem() is None

        assert all(receipt.status is PublishStatus.RETRIABLE for receipt in receipts)
        assert received == []
        assert all(troubles), "both say what is wrong"

    @needs(Power.STOP)
    async def test_closing_while_the_broker_is_down(self, trial: Trial) -> None:
        topic = await trial.topic()
        sender, member = await trial.sender(), await trial.member(topic)
        messages = numbered(topic, _KEYS, range(3))
        await sender.deliver(messages)
        await member.take(messages)

        await trial.harness.stop()
        try:
            await sender.once(numbered(topic, _KEYS, range(3, 4)))
            await member.close()
            await sender.close()
        finally:
            await trial.harness.start()
        heir = await trial.member(topic)
        await heir.take(messages)

        assert ids(messages) <= ids(heir.got)

    @needs(Power.STOP)
    async def test_a_broker_that_goes_down_and_comes_back(self, trial: Trial) -> None:
        topic = await trial.topic()
        sender, member = await trial.sender(), await trial.member(topic)
        published: list[Envelope] = []

        async with member.working(), _publishing(sender, topic, published):
            await until(lambda: len(trial.arrivals) >= 40, "messages flow")
            await trial.harness.stop()
            try:
                await until(lambda: sender.refused, "the publisher notices", 30)
                await until(lambda: member.consumer.problem, "the consumer notices", 30)
            finally:
                await trial.harness.start()
            count = len(published) + 40
            await until(lambda: len(published) >= count, "the publisher goes on")
        async with member.working():
            await until(lambda: ids(published) <= ids(trial.arrivals), "nothing acknowledged is lost")
            await until(lambda: member.consumer.problem is None, "the consumer is well")

        self._check_order(trial)

    @needs(Power.FREEZE)
    async def test_a_broker_that_is_frozen_and_resumed(self, trial: Trial) -> None:
        topic = await trial.topic()
        sender, member = await trial.sender(), await trial.member(topic)
        published: list[Envelope] = []

        async with member.working(), _publishing(sender, topic, published):
            await until(lambda: len(trial.arrivals) >= 40, "messages flow")
            await trial.harness.freeze()
            try:
                # `Sender.once` sees to it that the publisher answers all the same.
                await until(lambda: sender.refused, "the publisher notices", 40)
            finally:
                await trial.harness.thaw()
            count = len(published) + 40
            await until(lambda: len(published) >= count, "the publisher goes on")
        async with member.working():
            await until(lambda: ids(published) <= ids(trial.arrivals), "nothing acknowledged is lost")

        self._check_order(trial)

    @needs(Power.FREEZE)
    async def test_a_short_freeze_costs_nothing(self, trial: Trial) -> None:
        topic = await trial.topic()
        sender, member = await trial.sender(), await trial.member(topic)
        first, second = numbered(topic, _KEYS, range(3)), numbered(topic, _KEYS, range(3, 6))
        await sender.deliver(first)
        await member.take(first)

        await trial.harness.freeze()
        try:
            publishing = asyncio.create_task(sender.deliver(second))
            await asyncio.sleep(1.0)
        finally:
            await trial.harness.thaw()
        await publishing
        await member.take(second)
        await member.acknowledge()

        assert ids(member.got) == ids([*first, *second])
        self._check_order(trial)

    def _check_order(self, trial: Trial) -> None:
        if Feature.ORDER_PER_KEY in self.features:
            for key, numbers in in_order(trial.arrivals).items():
                assert numbers == sorted(numbers), key


@asynccontextmanager
async def _publishing(sender: Sender, topic: str, published: list[Envelope]) -> AsyncIterator[None]:
    """Publish in the background as a relay does; `published` is what the broker has acknowledged."""
    ending = False

    async def publish() -> None:
        number = 0
        while not ending:
            batch = numbered(topic, _KEYS, range(number, number + 5))
            await sender.deliver(batch)
            published.extend(batch)
            number += 5
            await asyncio.sleep(0.02)

    task = asyncio.create_task(publish())
    try:
        yield
    finally:
        ending = True
        await task
