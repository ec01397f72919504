"""Two connections at the same moment: a message and an order about it, and the same news twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from scoop_outbox.message import uuid7
from scoop_outbox.wire.control import Kind
from tests.homes.ear import SAGA, SERVICE, TOPIC, Child, Ear, Peer, failure
from tests.waiting import until

MESSAGE, CANCEL = "message", "cancel"


@pytest_asyncio.fixture
async def ears(database_url: str) -> AsyncIterator[tuple[Ear, Ear]]:
    """Two members of the group of one home."""
    async with AsyncExitStack() as stack:
        pair = Ear(database_url), Ear(database_url)
        for ear in pair:
            stack.push_async_callback(ear.close)
        yield pair


async def one_behind_the_other(ears: tuple[Ear, Ear], first: Event, second: Event) -> None:
    """Let one transaction do all it has to do and not commit until another waits for it."""
    ear = ears[0]
    async with asyncio.TaskGroup() as group:
        with ear.holding("outbox"):  # both of them have something to tell, and do it last
            group.create_task(first(ear))
            await until(lambda: ear.waiting() == 1)
            group.create_task(second(ears[1]))
            await until(lambda: ear.waiting() == 2)


Event = Callable[[Ear], Coroutine[Any, Any, None]]


def events(there: Peer, child: Child) -> dict[str, Event]:
    """What happens to a child."""

    async def message(ear: Ear) -> None:
        await ear.take_in(there.launched(child))

    async def cancel(ear: Ear) -> None:
        await ear.hear(there.orders("cancel", child.said(0), reason=failure("why")))

    return {MESSAGE: message, CANCEL: cancel}


@pytest.mark.parametrize("heard_of", [True, False], ids=["of a home that is known", "of one never heard of"])
@pytest.mark.parametrize("order", [(MESSAGE, CANCEL), (CANCEL, MESSAGE)], ids=" first, ".join)
async def test_a_message_and_its_cancellation_meet(
    ears: tuple[Ear, Ear], order: tuple[str, str], heard_of: bool
) -> None:
    there, child = Peer(), Child(uuid7())
    if heard_of:
        await ears[0].hear(there.says(Kind.CONFIRMED, revision=1))
    happens = events(there, child)
    await one_behind_the_other(ears, happens[order[0]], happens[order[1]])
    ear = ears[0]
    runs = ear.ask("select id, parent_home from run")
    told = [(one["children"][0]["state"], one["children"][0]["generation"]) for one in ear.said(Kind.NEWS)]
    if order[0] == MESSAGE:
        assert runs == [(child.run, there.sender.id)]
        assert ear.ask("select target, kind from request") == [(child.run, "cancel")]
        assert told == [("started", 1)]
    else:
        assert runs == []
        assert ear.count("request") == 0
        assert told == [("cancelled", 1)]
    assert ear.ask("select run_id, cancelled from foreign_child") == [(child.run, order[0] == CANCEL)]
    for event in happens.values():  # and once more, late
        await event(ear)
    assert ear.ask("select id, parent_home from run") == runs


@pytest.mark.parametrize("event", [MESSAGE, CANCEL])
async def test_the_same_twice_at_the_same_time(ears: tuple[Ear, Ear], event: str) -> None:
    there, child = Peer(), Child(uuid7())
    happens = events(there, child)[event]
    await one_behind_the_other(ears, happens, happens)
    assert ears[0].count("run") == ears[0].count("mailbox") == (event == MESSAGE)
    assert ears[0].ask("select run_id, cancelled, generation from foreign_child") == [(child.run, event == CANCEL, 1)]


async def test_another_saga_of_the_service_starts_though_the_one_that_is_waited_for_is_cancelled(
    ears: tuple[Ear, Ear],
) -> None:
    ear = ears[0]
    ear.execute(
        "insert into subscription (service, topic, saga, via_broker) values (%s, %s, 'b', true)", SERVICE, TOPIC
    )
    there, first = Peer(), Child(uuid7())
    second = Child(first.message, saga="b")

    async def message(ear: Ear) -> None:
        await ear.take_in(there.launched(first, second))

    async def cancel(ear: Ear) -> None:
        await ear.hear(there.orders("cancel", first.said(0)))

    await one_behind_the_other(ears, cancel, message)
    assert ear.ask("select id, parent_home from run") == [(second.run, there.sender.id)]


async def test_a_child_that_is_waited_for_under_a_former_name_starts_once(ears: tuple[Ear, Ear]) -> None:
    ear, there, child = ears[0], Peer(), Child(uuid7(), saga="former")
    ear.execute("insert into renamed (service, former, saga) values (%s, 'former', %s)", SERVICE, SAGA)
    for _ in range(2):
        await ear.take_in(there.launched(child))
    assert ear.ask("select id, saga, parent_home from run") == [(child.run, "former", there.sender.id)]


@pytest.mark.parametrize("order", [(MESSAGE, CANCEL), (CANCEL, MESSAGE)], ids=" is undone, not ".join)
async def test_whoever_comes_second_does_it_all_if_the_first_is_undone(
    ears: tuple[Ear, Ear], order: tuple[str, str]
) -> None:
    there, child = Peer(), Child(uuid7())
    happens = events(there, child)
    ear = ears[0]
    with ear.holding("outbox"):
        first = asyncio.create_task(happens[order[0]](ear))
        await until(lambda: ear.waiting() == 1)
        ((pid,),) = ear.ask(
            "select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        )
        second = asyncio.create_task(happens[order[1]](ears[1]))
        await until(lambda: ear.waiting() == 2)
        ear.ask("select pg_terminate_backend(%s)", pid)
        with pytest.raises(Exception, match="terminat"):
            await first
    await second
    assert ear.count("run") == (order[1] == MESSAGE)
    assert ear.ask("select cancelled from foreign_child") == [(order[1] == CANCEL,)]


async def test_members_of_a_group_that_hear_the_same_in_different_orders_do_not_wait_in_a_circle(
    ears: tuple[Ear, Ear],
) -> None:
    """A deadlock would be seen: whoever is chosen to end it raises."""
    ear, homes = ears[0], [Peer(name) for name in ("a", "b", "c")]
    parents, children = [uuid7() for _ in range(5)], [Child(uuid7()) for _ in range(40)]
    for parent in parents:
        ear.execute(
            "insert into message (id, topic, body, content_type, headers) values (%s, 'R', '', '', '{}')", parent
        )
        ear.execute(
            "insert into run (id, message_id, service, saga, lineage) values (%s, %s, 'o', 'o', array[%s::uuid])",
            *(parent, parent, parent),
        )
    for number, child in enumerate(children):
        ear.execute(
            "insert into child (message_id, service, saga, run_id, seq, ordinal, home) "
            "values (%s, %s, %s, %s, 1, 1, %s)",
            *(*child, parents[number % 5], homes[0].sender.id),
        )
    foreign = [Child(uuid7()) for _ in range(20)]
    await ear.take_in(*(homes[1].launched(one) for one in foreign))
    chance = random.Random(1)

    async def hear(ear: Ear, generation: int) -> None:
        said = [
            chance.choice(homes).news(*(one.said(generation, state="started") for one in chance.sample(children, 20)))
            for _ in range(5)
        ]
        said += [
            chance.choice(homes).orders(order, *(one.said(generation) for one in chance.sample(foreign, 10)))
            for order in ("cancel", "roll_back", "where", "cancel")
        ]
        await ear.hear(*chance.sample(said, len(said)))

    for generation in range(1, 31):
        await asyncio.gather(*(hear(one, generation) for one in ears))
    assert ear.count("dead_letter") == 0
