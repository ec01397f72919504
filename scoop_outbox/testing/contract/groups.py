"""Groups: members share the messages, come and go; groups have nothing to do with each other."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

from scoop_outbox.broker.protocol import Feature
from scoop_outbox.message import Envelope
from scoop_outbox.testing.contract.selection import Contract, needs
from scoop_outbox.testing.contract.trial import Member, Sender, Trial, ids, in_order, numbered, until, within

_KEYS = [f"key-{number}" for number in range(24)]
_PROMPTLY = 12.0
"""Seconds in which the others of a group get what a member leaves: far less than it takes to miss a dead one."""


class Groups(Contract):
    """Tests of several consumers."""

    async def test_every_group_gets_every_message(self, trial: Trial) -> None:
        topic = await trial.topic("one", "two")
        sender = await trial.sender()
        one, two = await trial.member(topic, group="one"), await trial.member(topic, group="two")
        messages = numbered(topic, _KEYS, range(5))

        await sender.deliver(messages)
        await one.take(messages, acknowledge=True)
        await two.take(messages, acknowledge=True)

        assert Counter(one.id for one in trial.arrivals) == Counter({message.id: 2 for message in messages})

    async def test_members_of_a_group_share_its_messages(self, trial: Trial) -> None:
        topic = await trial.topic()
        sender, one, two = await trial.sender(), await trial.member(topic), await trial.member(topic)
        # A broker that keeps order without partitions may let one member work, and the others stand by.
        by_turns = Feature.ORDER_PER_KEY in self.features and Feature.REBALANCES not in self.features

        # A few at a time: a broker may give whoever asks first all that is there.
        async with one.working(5), two.working(5):
            if by_turns:
                await _publish_until(sender, topic, lambda: bool(one.got or two.got))
            else:
                await _publish_until(sender, topic, lambda: bool(one.got and two.got))
            await _settled(trial, [one, two])
            before = len(trial.arrivals)
            messages = numbered(topic, _KEYS, range(1000, 1010))
            await sender.deliver(messages)
            await until(lambda: ids(messages) <= ids(trial.arrivals), "everything has come")
        shares = [sum(int(message.body) >= 1000 for message in member.got) for member in (one, two)]

        assert len(trial.arrivals) == before + len(messages), "what one member acknowledged, no other gets"
        assert by_turns or all(shares), shares

    @needs(Feature.ORDER_PER_KEY)
    async def test_order_is_kept_however_many_members_come_and_go(self, trial: Trial) -> None:
        topic = await trial.topic()
        messages = await _come_and_go(trial, topic)

        await until(lambda: ids(messages) <= ids(trial.arrivals), "everything has come")

        for key, numbers in in_order(trial.arrivals).items():
            assert numbers == sorted(numbers), key

    async def test_nothing_is_lost_when_members_come_and_go(self, trial: Trial) -> None:
        topic = await trial.topic()
        messages = await _come_and_go(trial, topic)

        # Also what was acknowledged is so for good: the next one gets nothing of it.
        heir = await trial.member(topic)
        last = numbered(topic, _KEYS, [10_000])
        await (await trial.sender()).deliver(last)
        await heir.take(last)

        assert ids(trial.arrivals) == ids([*messages, *last])
        assert ids(heir.got) == ids(last)

    async def test_what_a_member_leaves_the_others_get_promptly(self, trial: Trial) -> None:
        topic = await trial.topic()
        sender, one, two = await trial.sender(), await trial.member(topic), await trial.member(topic)
        messages = numbered(topic, _KEYS, range(3))
        await sender.deliver(messages)
        async with two.working():
            async with within(60, "receiving everything"):
                while not ids(messages) <= ids(trial.arrivals):
                    await one.receive()
            # `two` has acknowledged what it got, `one` nothing.
            left = {delivery.envelope.id for delivery in one.open}
            await one.close()
            async with within(_PROMPTLY, "getting what another member has left"):
                await until(lambda: left <= {message.id for message in two.got}, "the others have come")
            more = numbered(topic, _KEYS, range(3, 6))
            await sender.deliver(more)
            await until(lambda: ids(more) <= ids(two.got), "who stays gets everything")

    @needs(Feature.REBALANCES)
    async def test_acknowledging_passes_over_what_others_have_got(self, trial: Trial) -> None:
        topic = await trial.topic()
        sender, one = await trial.sender(), await trial.member(topic)
        messages = numbered(topic, _KEYS, range(3))
        await sender.deliver(messages)
        await one.take(messages)
        stale = list(one.open)

        two = await trial.member(topic)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(two.working())
            async with within(60, "giving a part of the topic to the second member"):
                while not two.got:
                    await one.receive()
            assert ids(two.got) < ids(messages), "each has a part"
        async with within(15, "acknowledging"):
            await one.consumer.acknowledge(stale)
        await one.close()
        await two.close()
        heir = await trial.member(topic)
        last = numbered(topic, _KEYS, [10])
        await sender.deliver(last)
        await heir.take(last)

        assert ids(heir.got) == ids(last), "each has acknowledged its part"


async def _publish_until(sender: Sender, topic: str, condition: object) -> None:
    assert callable(condition)
    number = 0
    async with within(60, "sharing the messages of a topic"):
        while not condition():
            await sender.deliver(numbered(topic, _KEYS, [number]))
            number += 1
            await asyncio.sleep(0.1)


async def _settled(trial: Trial, members: list[Member]) -> None:
    """Return once nothing more comes and all is acknowledged."""
    count = -1
    async with within(60, "coming to rest"):
        while count != len(trial.arrivals) or any(member.open for member in members):
            count = len(trial.arrivals)
            await asyncio.sleep(1.0)


async def _come_and_go(trial: Trial, topic: str) -> list[Envelope]:
    """Publish while a second member of the group joins and leaves, until all has come; return what was published."""
    sender, stays = await trial.sender(), await trial.member(topic)
    published: list[Envelope] = []
    ending = asyncio.Event()

    async def publish() -> None:
        number = 0
        while not ending.is_set():
            batch = numbered(topic, _KEYS, range(number, number + 2))
            await sender.deliver(batch)
            published.extend(batch)
            number += 2
            await asyncio.sleep(0.03)

    publishing = asyncio.create_task(publish())
    try:
        async with stays.working():
            await until(lambda: stays.got, "the first member gets something")
            for _ in range(2):
                guest = await trial.member(topic)
                async with guest.working():
                    # It need not get anything, where members stand by for each other.
                    count = len(published) + 400
                    await until(lambda guest=guest, count=count: guest.got or len(published) > count, "a guest works")  # type: ignore[misc]
                await guest.close()
                count = len(trial.arrivals)
                await until(lambda count=count: len(trial.arrivals) > count, "it goes on")  # type: ignore[misc]
            ending.set()
            await publishing
            await until(lambda: ids(published) <= ids(trial.arrivals), "everything has come")
            await until(lambda: not stays.open, "everything is acknowledged")
    finally:
        ending.set()
        await asyncio.gather(publishing, return_exceptions=True)
    await stays.close()
    return published
