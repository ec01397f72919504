"""Receiving: nothing is forgotten that was not acknowledged, and nothing comes that was not asked for."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict

from scoop_outbox.testing.contract.harness import Power
from scoop_outbox.testing.contract.selection import Contract, needs
from scoop_outbox.testing.contract.trial import Trial, envelope, ids, numbered, until, within


class Receiving(Contract):
    """Tests of one consumer at a time."""

    async def test_waiting_ends_with_the_first_message(self, trial: Trial) -> None:
        topic = await trial.topic()
        sender, member = await trial.sender(), await trial.member(topic)
        first, second = envelope(topic), envelope(topic)
        await sender.deliver([first])
        await member.take([first])  # it is a member now

        began = time.monotonic()
        nothing = await member.receive(wait=0.5)
        waited = time.monotonic() - began
        waiting = asyncio.create_task(member.receive(wait=30))
        await sender.deliver([second])
        async with within(8, "getting what was published while somebody waited"):
            came = await waiting

        assert nothing == []
        assert 0.3 < waited < 5
        assert [one.envelope.id for one in came] == [second.id]
        assert member.consumer.problem is None

    async def test_no_more_comes_than_was_asked_for(self, trial: Trial) -> None:
        topic = await trial.topic()
        sender, member = await trial.sender(), await trial.member(topic)
        messages = [envelope(topic, "k") for _ in range(20)]

        await sender.deliver(messages)
        async with within(60, "receiving 20 messages"):
            while len(member.got) < len(messages):
                await member.receive(3)

        assert ids(member.got) == ids(messages)
        assert len(member.got) == len(messages)

    async def test_what_was_not_acknowledged_comes_again_after_closing(self, trial: Trial) -> None:
        topic = await trial.topic()
        sender, first = await trial.sender(), await trial.member(topic)
        messages = numbered(topic, ["k"], range(10))
        await sender.deliver(messages)
        await first.take(messages)

        await first.acknowledge(4)
        await first.close()
        second = await trial.member(topic)
        await second.take(messages[4:])
        await second.acknowledge()
        await second.close()
        third = await trial.member(topic)
        last = envelope(topic, "k")
        await sender.deliver([last])
        await third.take([last])

        assert [one.id for one in second.got] == [one.id for one in messages[4:]]
        assert ids(third.got) == ids([last])

    @needs(Power.PROCESSES)
    async def test_what_was_not_acknowledged_comes_again_after_the_consumer_was_killed(self, trial: Trial) -> None:
        topic = await trial.topic()
        sender = await trial.sender()
        messages = numbered(topic, ["k"], range(10))
        await sender.deliver(messages)
        facts = {
            "url": trial.harness.url,
            "settings": trial.harness.settings,
            "subscription": asdict(trial.subscription(topic)),
            "receive": len(messages),
            "acknowledge": 4,
        }

        victim = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "scoop_outbox.testing.contract.killed_consumer",
            json.dumps(facts),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert victim.stdout is not None
            async with within(60, "receiving in another process"):
                told = await victim.stdout.readline()
            assert told == b"received\n"
        finally:
            if victim.returncode is None:
                victim.kill()
            await victim.wait()
        heir = await trial.member(topic)
        await heir.take(messages[4:])

        assert ids(messages[4:]) <= ids(heir.got)

    async def test_acknowledging_nothing_changes_nothing(self, trial: Trial) -> None:
        topic = await trial.topic()
        sender, member = await trial.sender(), await trial.member(topic)
        message = envelope(topic)
        await sender.deliver([message])
        await member.take([message])

        await member.consumer.acknowledge([])
        await member.close()
        heir = await trial.member(topic)
        await heir.take([message])

        assert ids(heir.got) == ids([message])

    async def test_a_paused_consumer_takes_no_more_and_stays_a_member(self, trial: Trial) -> None:
        topic = await trial.topic()
        sender, member = await trial.sender(), await trial.member(topic)
        before = numbered(topic, ["k"], range(5))
        await sender.deliver(before)
        await member.take(before)

        await member.consumer.pause()
        while await member.receive(wait=0.5):
            pass
        later = numbered(topic, ["k", "l", "m"], range(5, 15))
        await sender.deliver(later)
        paused_until = time.monotonic() + 2
        while time.monotonic() < paused_until:
            assert await member.receive() == [], "it was paused"
        await member.consumer.resume()
        await member.take(later)

        assert [one.id for one in member.got[:5]] == [one.id for one in before]
        assert len(member.got) == len(before) + len(later), "a member gets nothing twice"
        await member.acknowledge()
        await member.close()
        heir = await trial.member(topic)
        assert await heir.receive(wait=3) == []

    async def test_who_pauses_before_it_is_a_member_joins_paused(self, trial: Trial) -> None:
        topic = await trial.topic()
        sender, member = await trial.sender(), await trial.member(topic)
        first, second = numbered(topic, ["k", "l", "m"], range(2)), numbered(topic, ["k", "l", "m"], range(2, 9))
        await sender.deliver(first)

        await member.consumer.pause()
        joined_by = time.monotonic() + 3
        while time.monotonic() < joined_by:
            await member.receive()
        await sender.deliver(second)
        paused_until = time.monotonic() + 2
        while time.monotonic() < paused_until:
            assert await member.receive() == [], "it was paused"
        await member.consumer.resume()
        await member.take([*first, *second])

        assert len(member.got) == len(first) + len(second)

    @needs(Power.STOP)
    async def test_acknowledging_passes_over_what_was_lost(self, trial: Trial) -> None:
        topic = await trial.topic()
        sender, member = await trial.sender(), await trial.member(topic)
        messages = numbered(topic, ["k"], range(10))
        await sender.deliver(messages)
        await member.take(messages)

        await trial.harness.stop()
        await trial.harness.start()
        await member.acknowledge()
        more = numbered(topic, ["k"], range(10, 20))
        await sender.deliver(more)
        await member.take(more, acknowledge=True)
        await until(lambda: member.consumer.problem is None, "the consumer is well again")

        assert ids(member.got) == ids([*messages, *more])
