"""What was lost at the broker comes back once somebody asks after it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from scoop_outbox import DistributedError, GaveUp
from scoop_outbox.app import service_of
from scoop_outbox.core.plans.homes import read_identity
from scoop_outbox.core.plans.silence import ask_silent
from scoop_outbox.daemon.announcer import control_subscription
from scoop_outbox.message import uuid7
from scoop_outbox.wire.control import Kind, read_control
from tests.homes.conftest import MakeHome
from tests.homes.ear import Child, Ear, Peer, failure
from tests.homes.homes import know_each_other, running
from tests.scenarios.shop import LONG, Gate, Journal, Shop, launches, raises
from tests.waiting import until

LONG_AGO = datetime.min.replace(tzinfo=UTC)


async def test_nothing_is_said_of_a_child_whose_message_may_be_on_its_way(ear: Ear) -> None:
    """It may lie in a queue for longer than anybody has patience, and is a child all the same when it comes."""
    there, child, seen = Peer(), Child(uuid7()), Child(uuid7())
    await ear.hear(there.orders("where", child.said(0), seen.said(1)))
    (told,) = ear.said(Kind.NEWS)
    assert [(one["run"], one["state"]) for one in told["children"]] == [(str(seen.run), "unknown")]
    await ear.take_in(there.launched(child))
    await ear.hear(there.orders("where", child.said(0)))
    assert [one["children"][0]["state"] for one in ear.said(Kind.NEWS)] == ["unknown", "started", "started"]


@pytest.mark.parametrize("state", ["waiting", "started", "cancelling", "rolling_back"])
async def test_what_children_were_told_is_said_again(ear: Ear, state: str) -> None:
    there, children, parent = Peer(), [Child(uuid7()) for _ in range(3)], uuid7()
    await ear.hear(there.says(Kind.CONFIRMED, revision=1))
    reason = uuid7()
    ear.execute(
        "insert into failure (id, causes, type, source, document) values (%s, '{}', 'Boom', 'me', %s)",
        *(reason, json.dumps(failure("why"))),
    )
    ear.execute("insert into message (id, topic, body, content_type, headers) values (%s, 'R', '', '', '{}')", parent)
    ear.execute(
        "insert into run (id, message_id, service, saga, lineage, failure, giving_up, context, rollback_by) "
        "values (%s, %s, 'o', 'o', array[%s::uuid], %s, %s, '{\"a\": 1}', '2031-02-03T04:05:06Z')",
        *(parent, parent, parent, reason, reason),
    )
    for child in children:
        ear.execute(
            "insert into child (message_id, service, saga, run_id, seq, ordinal, home, state, generation) "
            "values (%s, %s, %s, %s, 1, 1, %s, %s, 2)",
            *(*child, parent, there.sender.id, state),
        )
    ear.execute("set timezone to 'Asia/Kolkata'")
    await ear.run(ask_silent(LONG_AGO, timedelta(0), None, ear.home.failures))
    said = ear.said(Kind.ORDERS)
    for one in said:
        read_control(json.dumps(one).encode())
        assert [child["run"] for child in one["children"]] == [str(child.run) for child in sorted(children)]
    orders = {one["order"]: one for one in said}
    told = {"cancelling": "cancel", "rolling_back": "roll_back"}.get(state)
    assert list(orders) == (["where"] if told is None else ["where", told])
    if told == "cancel":
        assert orders["cancel"]["reason"]["message"] == "why"
    if told == "roll_back":
        order = orders["roll_back"]
        assert (order["context"], order["reason"]["type"]) == ({"a": 1}, "ParentSaidSo")
        assert order["reason"]["causes"][0]["message"] == "why"
        assert datetime.fromisoformat(order["rollbackBy"]) == datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC)


async def test_who_is_told_something_without_a_reason_has_one(ear: Ear) -> None:
    there, children = Peer(), [Child(uuid7()) for _ in range(2)]
    await ear.take_in(*(there.launched(one) for one in children))
    ear.execute("update run set state = 'committed' where id = %s", children[0].run)
    await ear.hear(there.orders("roll_back", children[0].said(1)), there.orders("cancel", children[1].said(1)))
    asked = "select f.message from failure f join {} on f.id = x.failure"
    assert ear.ask(asked.format("run x")) == [("no reason was given",)]
    assert ear.ask(asked.format("request x")) == [("no reason was given",)]


async def purge(shop: Shop) -> int:
    """Lose what waits for a home at the broker, as an operator does who empties its channel."""
    broker = service_of(shop.app).broker
    assert broker is not None
    async with service_of(shop.app).home.driver() as driver:
        identity = await driver.run(read_identity())
    consumer = await broker.consumer(control_subscription(identity))
    lost: list[Any] = []

    async def lose() -> bool:
        deliveries = await consumer.receive(100, 1.0)
        await consumer.acknowledge(deliveries)
        lost.extend(deliveries)
        return not deliveries and bool(lost)

    try:
        await until(lose, 2 * LONG)
    finally:
        await consumer.close()
    return len(lost)


async def ask_after(shop: Shop) -> None:
    """Ask after all children of a home elsewhere, however short the time."""
    home = service_of(shop.app).home
    async with home.driver() as driver:
        await driver.run(ask_silent(LONG_AGO, timedelta(0), None, home.failures))


async def _has_nothing_to_say(shop: Shop) -> bool:
    return not await shop.ask("select from scoop_outbox.outbox")


async def test_news_that_was_lost_comes_back(make_home: MakeHome, journal: Journal) -> None:
    orders, stock, gate = make_home("orders"), make_home("stock"), Gate()
    orders.saga("root", "R", launches("C"), None)
    stock.saga("child", "C", gate)
    async with stock.running():
        async with orders.running():
            await until(lambda: know_each_other(orders, stock), LONG)
            handle = await orders.app.launch("R", None)
            await until(lambda: gate.entered, LONG)
        gate.open = True
        await until(lambda: stock.ask("select from scoop_outbox.run where state = 'committed'"), LONG)
        await until(lambda: _has_nothing_to_say(stock), LONG)
        assert await purge(orders)
        async with orders.running():
            await ask_after(orders)
            await handle.wait(LONG)
    assert journal == ["root-0", "child-0", "root-1"]


async def test_an_order_to_roll_back_that_was_lost_is_given_again(make_home: MakeHome, journal: Journal) -> None:
    orders, stock, gate = make_home("orders"), make_home("stock"), Gate()
    orders.saga("root", "R", launches("C"), gate, raises())
    stock.saga("child", "C", None)
    async with orders.running():
        async with stock.running():
            await until(lambda: know_each_other(orders, stock), LONG)
            handle = await orders.app.launch("R", None)
            await until(lambda: gate.entered, LONG)
        gate.open = True
        await until(lambda: orders.ask("select from scoop_outbox.child where state = 'rolling_back'"), LONG)
        await until(lambda: _has_nothing_to_say(orders), LONG)
        assert await purge(stock)
        async with stock.running():
            await ask_after(orders)
            with pytest.raises(DistributedError, match="boom"):
                await handle.wait(LONG)
    assert journal == ["root-0", "child-0", "root-1", "root-2", "root-rb1", "child-rb0", "root-rb0"]


async def test_a_cancellation_that_was_lost_is_given_again(make_home: MakeHome, journal: Journal) -> None:
    orders, stock = make_home("orders"), make_home("stock")
    orders.saga("root", "R", launches("C"), None)
    stock.saga("child", "C", None)
    async with running(orders, stock):
        pass
    async with orders.running():
        handle = await orders.app.launch("R", None)
        await until(lambda: orders.ask("select from scoop_outbox.child"), LONG)
        await orders.app.cancel(handle.id, reason="too dear")
        await until(lambda: orders.ask("select from scoop_outbox.child where state = 'cancelling'"), LONG)
        await until(lambda: _has_nothing_to_say(orders), LONG)
        assert await purge(stock)
        async with stock.running():
            await ask_after(orders)
            with pytest.raises(GaveUp, match="too dear"):
                await handle.wait(LONG)
    assert journal.of("root") == ["root-0", "root-rb0"]
