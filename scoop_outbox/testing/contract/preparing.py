"""Preparing: what a group needs is there and it begins where it was told, before anything is published to it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from scoop_outbox.broker.protocol import Feature
from scoop_outbox.errors import BrokerError
from scoop_outbox.testing.contract.selection import Contract, needs
from scoop_outbox.testing.contract.trial import Trial, ids, named, numbered, until

_KEYS = ["k", "l", "m"]


class Preparing(Contract):
    """Tests of groups that are new to a topic."""

    async def test_what_exists_is_prepared(self, trial: Trial) -> None:
        topic = await trial.topic()

        assert await trial.broker.prepare(trial.subscription(topic)) is None
        assert await trial.broker.prepare(trial.subscription(topic)) is None, "again"

    @needs(Feature.KNOWS_TOPICS)
    async def test_preparing_names_what_is_missing(self, trial: Trial) -> None:
        topic = named("missing")

        with pytest.raises(BrokerError, match=topic):
            await trial.broker.prepare(trial.subscription(topic))

    @needs(Feature.STARTS_ANYWHERE)
    async def test_a_new_group_has_to_say_where_it_starts(self, trial: Trial) -> None:
        topic = await trial.topic()
        silent = trial.subscription(topic, group="new")
        silent = type(silent)(silent.service, silent.group, silent.topics, None)

        with pytest.raises(BrokerError, match="start"):
            await trial.broker.prepare(silent)

    async def test_what_is_published_once_it_is_prepared_reaches_the_group(self, trial: Trial) -> None:
        topic = await trial.topic()
        sender = await trial.sender()
        start = "latest" if Feature.STARTS_ANYWHERE in self.features else None
        subscription = trial.subscription(topic, start=start)

        assert await trial.broker.prepare(subscription) is None
        messages = numbered(topic, _KEYS, range(3))
        await sender.deliver(messages)
        assert await trial.broker.prepare(subscription) is None, "another process of the service, a little later"
        member = await trial.member(topic, start=start)
        await member.take(messages)

        assert ids(member.got) == ids(messages)

    @needs(Feature.STARTS_ANYWHERE)
    async def test_a_group_that_has_members_is_prepared_for_another_topic(self, trial: Trial) -> None:
        old, new = await trial.topic(), await trial.topic()
        sender, member = await trial.sender(), await trial.member(old, start="latest")
        both = trial.subscription(old, new, start="latest")
        async with member.working():
            await until(lambda: member.consumer.problem is None, "the old version is at work")
            await sender.deliver(numbered(new, _KEYS, range(3)))
            assert await trial.broker.prepare(both) is None
            messages = numbered(new, _KEYS, range(3, 6))
            await sender.deliver(messages)
        await member.close()
        newer = await trial.member(new, start="latest")
        await newer.take(messages)

        assert ids(newer.got) == ids(messages), "it begins when it was prepared"

    @needs(Feature.STARTS_ANYWHERE)
    async def test_a_group_starts_at_the_beginning_at_the_end_or_at_a_time(self, trial: Trial) -> None:
        topic = await trial.topic()
        sender = await trial.sender()
        old = numbered(topic, ["k", "l"], range(5))
        await sender.deliver(old)
        await asyncio.sleep(0.05)  # brokers that keep time do so in milliseconds
        moment = datetime.now(UTC).isoformat()
        await asyncio.sleep(0.05)
        recent = numbered(topic, ["k", "l"], range(5, 10))
        await sender.deliver(recent)

        beginning = await trial.member(topic, group="beginning", start="earliest")
        middle = await trial.member(topic, group="middle", start=moment)
        end = await trial.member(topic, group="end", start="latest")
        await asyncio.gather(beginning.take([*old, *recent]), middle.take(recent), end.receive(wait=5))
        new = numbered(topic, ["k", "l"], range(10, 15))
        await sender.deliver(new)
        await asyncio.gather(beginning.take(new), middle.take(new), end.take(new))

        assert ids(beginning.got) == ids([*old, *recent, *new])
        assert ids(middle.got) == ids([*recent, *new])
        assert ids(end.got) == ids(new)

    @needs(Feature.STARTS_ANYWHERE)
    async def test_a_group_starts_where_another_one_is(self, trial: Trial) -> None:
        topic = await trial.topic()
        sender, old = await trial.sender(), await trial.member(topic, group="old")
        messages = numbered(topic, ["k"], range(10))
        await sender.deliver(messages)
        await old.take(messages)
        await old.acknowledge(6)
        await old.close()

        new = await trial.member(topic, group="new", start=f"group:{trial.subscription(topic, group='old').group}")
        await new.take(messages[6:])

        assert ids(new.got) == ids(messages[6:])
