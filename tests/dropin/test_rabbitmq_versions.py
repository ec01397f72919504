"""Versions of a service share its queue: whoever gets a message takes it in for all of them, and buries nothing."""

import asyncio
from typing import Any

import psycopg
import pytest

from scoop_outbox import Message, Scoop, Scope
from scoop_outbox.operations.dead_letters import DeadLetters, ReplayStatus
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from tests.dropin.listener import Listener
from tests.rabbitmq.trial import Trial, name, publish_plainly
from tests.waiting import until

SPELLINGS = ["{}", "amq.topic/{}", "{}.#"]


def launcher(database_url: str, rabbit: Trial, topic: str, did: list[str]) -> Scoop:
    app = Scoop(name("launcher"), database=database_url, broker=rabbit.url)
    saga = app.saga("launcher", on=name("begin"))

    def launch(scope: Scope, message: Message) -> None:
        scope.launch(topic, message.payload)

    saga.add_step("launch", launch)
    saga.add_step("after", lambda scope, message: did.append("after"))
    return app


@pytest.mark.parametrize("written", SPELLINGS)
async def test_rev_09_an_old_worker_takes_in_what_only_a_newer_one_has_a_saga_for(
    rabbit: Trial, database_url: str, written: str
) -> None:
    topic, service = name("invoices"), name("shop")
    old = Listener(database_url, rabbit.url, service, "orders." + topic)
    new = Listener(database_url, rabbit.url, service, "orders." + topic, written.format(topic))
    did: list[str] = []
    parent = launcher(database_url, rabbit, topic, did)
    for app in (new.app, parent):
        await app.apply_topology()
    async with old.running(), new.running(), parent.running():
        handles = [await new.app.launch(topic, number) for number in range(30)]
        begin = next(iter(parent.sagas.values())).topic
        handles += [await parent.launch(begin, number) for number in range(30)]
        for number in range(30):
            await publish_plainly(rabbit, "amq.topic", topic, b"%d" % number, message_id=f"m-{number}")
        for handle in handles:
            await handle.wait(60)
        await until(lambda: len(new.seen) == 90, 60)
    assert (new.dead_letters, old.seen) == ([], [])
    assert did == ["after"] * 30


@pytest.mark.parametrize("written", SPELLINGS)
async def test_what_was_buried_can_be_replayed_once_a_saga_is_there(
    rabbit: Trial, database_url: str, written: str
) -> None:
    topic, service = name("invoices"), name("shop")
    old = Listener(database_url, rabbit.url, service, "orders." + topic)
    new = Listener(database_url, rabbit.url, service, "orders." + topic, written.format(topic))
    await new.app.apply_topology()
    launching = Scoop(name("elsewhere"), database=database_url, broker=rabbit.url)
    async with old.running():
        await publish_plainly(rabbit, "amq.topic", topic, b"1", message_id="m-1")
        await launching.launch("amq.topic/" + topic, 2)
        await until(lambda: len(old.dead_letters) == 2, 30)
    await launching.close()
    assert all(f"no saga of {service} listens on {topic!r}" in reason for _, reason in old.dead_letters)

    def replay() -> list[Any]:
        with DeadLetters(database_url) as letters:
            return [letters.replay(number).status for number in list(letters.numbers())]

    assert await asyncio.to_thread(replay) == [ReplayStatus.REFUSED] * 2
    async with new.running():
        assert await asyncio.to_thread(replay) == [ReplayStatus.REPLAYED] * 2
        await new.sees(2)
        # What a broker delivers again has been handled.
        await publish_plainly(rabbit, "amq.topic", topic, b"1", message_id="m-1")
        await publish_plainly(rabbit, "amq.topic", topic, b"3", message_id="m-3")
        await until(lambda: b"3" in new.bodies, 30)
    assert sorted(new.bodies) == [b"1", b"2", b"3"]


@pytest.mark.parametrize(
    "launched, listening",
    [("amq.topic/{}", "{}"), ("{}", "amq.topic/{}"), ("amq.topic/{}", "amq.topic/{}")],
)
async def test_a_step_waits_for_a_saga_however_both_have_written_the_topic(
    rabbit: Trial, database_url: str, launched: str, listening: str
) -> None:
    topic = name("invoices")
    did: list[str] = []
    parent = launcher(database_url, rabbit, launched.format(topic), did)
    shop = Scoop(name("shop"), database=database_url, broker=rabbit.url)
    gate = asyncio.Event()

    async def work(scope: Scope, message: Message) -> None:
        await gate.wait()
        did.append(message.topic)

    shop.saga("work", on=listening.format(topic)).add_step("work", work)
    for app in (shop, parent):
        await app.apply_topology()
    async with shop.running(), parent.running():
        handle = await parent.launch(next(iter(parent.sagas.values())).topic, 1)
        await until(lambda: asked(database_url, "select late from run where saga = 'work'") == [(False,)], 30)
        assert did == []
        gate.set()
        await handle.wait(30)
    assert did == [listening.format(topic), "after"]


def asked(database_url: str, question: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(database_url, options=f"-c search_path={DEFAULT_SCHEMA}") as connection:
        return connection.execute(question.encode()).fetchall()
