"""Several homes of one service, where not all is as it should be: who knows what, who says what, and where."""

import asyncio
import json
import uuid
from typing import Any

from scoop_outbox import Answer
from scoop_outbox.app import service_of
from scoop_outbox.operations.dead_letters import DeadLetters, ReplayStatus
from scoop_outbox.operations.homes import Homes
from scoop_outbox.wire.headers import EXPECTS
from scoop_outbox.wire.sharing import choose
from tests.homes.conftest import MakeHome
from tests.homes.test_shared_services import KEYS, LETTERS, Stock, drain, identity, know, launching
from tests.homes.test_signatures import NEW, dead_letters
from tests.scenarios.shop import LONG, Shop
from tests.waiting import until


async def key_of(here: Shop, *homes: Shop) -> str:
    """A key that belongs to the first of some homes."""
    ids = [await identity(shop) for shop in (here, *homes)]
    return next(key for key in KEYS if choose(ids, key) == ids[0])


async def test_a_saga_that_the_launcher_does_not_know_handles_each_message_once(make_home: MakeHome) -> None:
    orders, stock, audited = make_home("orders"), Stock(make_home), list[tuple[str, str]]()
    first, second = stock.home("stock.1"), stock.home("stock.2")
    launching(orders, [])
    for shop, name in ((first, "stock.1"), (second, "stock.2")):
        audit = shop.app.saga("audit", on="reserve")
        audit.add_step("note", lambda scope, message, name=name: audited.append((message.key, name)))
    async with first.running(), second.running():
        async with orders.running():
            await know(2, orders)
            await know(1, first, second)
        # As if it had launched before it heard of it.
        await orders.execute("delete from scoop_outbox.peer_subscription where saga = 'audit'")
        handle = await orders.app.launch("order", KEYS)
        async with orders.running():
            await handle.wait(LONG)
            await until(lambda: len(audited) >= len(KEYS), LONG)
    by_home = {await identity(first): "stock.1", await identity(second): "stock.2"}
    assert dict(audited) == {key: by_home[choose(list(by_home), key)] for key in KEYS}
    assert len(audited) == len(KEYS)


async def test_a_home_without_a_name_takes_nothing_that_is_meant_for_another(make_home: MakeHome) -> None:
    orders, stock = make_home("orders"), Stock(make_home)
    first, nameless = stock.home("stock.1"), stock.home("nobody", home=None)
    launching(orders, [])
    async with orders.running():
        async with first.running():
            await know(1, orders)
        async with nameless.running():
            await orders.app.launch("order", KEYS[:1])
            await until(lambda: dead_letters(nameless), LONG)
    ((_, topic, _, reason),) = await dead_letters(nameless)
    assert topic == "reserve"
    assert reason.startswith(f"saga 'reserve' of stock is to handle it in home {await identity(first)}, which shares")
    assert stock.handled == []


async def test_what_says_where_it_belongs_and_is_not_signed_is_a_dead_letter(make_home: MakeHome) -> None:
    stock, stranger = Stock(make_home, control_keys=NEW), make_home("stranger", home=None)
    first = stock.home("stock.1")
    told = json.dumps([["stock", "reserve", str(uuid.uuid4()), "scoop.control.elsewhere"]])
    async with first.running(), stranger.running(worker=False):
        await stranger.app.launch("reserve", None, key="key")
        await until(lambda: stock.handled, LONG)
        await stranger.execute(
            "insert into scoop_outbox.outbox (shard, message_id, topic, body, content_type, headers) "
            "values (0, gen_random_uuid(), 'reserve', 'null', 'application/json', %s::json)",
            json.dumps({EXPECTS: told}),
        )
        await until(lambda: dead_letters(first), LONG)
    ((*_, reason),) = await dead_letters(first)
    assert reason == "another home is said to handle it, but it is not signed, and this home has control keys"
    assert await first.ask("select from scoop_outbox.outbox where topic = 'scoop.control.elsewhere'") == []


async def test_a_dead_letter_is_replayed_in_the_home_of_its_key(make_home: MakeHome) -> None:
    stock = Stock(make_home)
    first, second = stock.home("stock.1"), stock.home("stock.2")
    async with second.running():
        async with first.running():
            await know(1, first, second)
        key = await key_of(second, first)
        await first.execute(
            "insert into scoop_outbox.dead_letter "
            "(message_id, topic, key, body, content_type, headers, origin, reason, service) "
            "values (gen_random_uuid(), 'reserve', %s, 'null', 'application/json', '{}', 'intake', 'broken', 'stock')",
            key,
        )
        ((letter,),) = await first.ask(LETTERS)
        with DeadLetters(service_of(first.app).home.url) as letters:
            replayed = await asyncio.to_thread(letters.replay, letter)
        assert (replayed.status, replayed.reason) == (ReplayStatus.REPLAYED, "passed on to another home of stock")
        async with first.running():
            await until(lambda: stock.handled, LONG)
    assert stock.handled == [(key, "stock.2")]


async def test_homes_that_are_all_drained_are_not_drained(make_home: MakeHome) -> None:
    stock = Stock(make_home)
    first, second = stock.home("stock.1"), stock.home("stock.2")
    async with first.running(), second.running():
        await know(1, first, second)
        with Homes(service_of(first.app).home.url) as one, Homes(service_of(second.app).home.url) as other:
            assert (await drain(one)).draining
            assert (await drain(other, alone=True)).draining
            # To ask again is no error.
            await until(lambda: has_nothing_left_but(one, alone=[("stock", "reserve")], dead_letters=0), LONG, 0.2)


async def has_nothing_left_but(homes: Homes, *, alone: list[tuple[str, str]], dead_letters: int) -> bool:
    """Whether nothing else keeps a home from being drained; it is not, though."""
    left = await drain(homes)
    if left.unconfirmed or left.unpublished or left.unfinished or left.awaited != {"stock.2": 0}:
        return False
    if (left.alone, left.dead_letters) != (alone, dead_letters):
        return False  # it has not heard of the other one yet
    assert not left.is_drained
    return True


async def test_a_home_with_dead_letters_is_not_drained(make_home: MakeHome) -> None:
    stock = Stock(make_home)
    first, second = stock.home("stock.1"), stock.home("stock.2")
    async with first.running(), second.running():
        await know(1, first, second)
        await first.execute(
            "insert into scoop_outbox.dead_letter (topic, body, content_type, headers, origin, reason, service) "
            "values ('t', '1', 'application/json', '{}', 'intake', 'broken', 'stock')"
        )
        with Homes(service_of(first.app).home.url) as homes:
            await drain(homes)
            await until(lambda: has_nothing_left_but(homes, alone=[], dead_letters=1), LONG, 0.2)
            await first.execute("delete from scoop_outbox.dead_letter")
            await until(lambda: is_drained(homes), LONG, 0.2)


async def is_drained(homes: Homes) -> bool:
    return (await drain(homes)).is_drained


async def test_work_outside_is_completed_in_the_home_that_has_it(make_home: MakeHome) -> None:
    stock = Stock(make_home)
    first, second = stock.home("stock.1"), stock.home("stock.2")
    asked: list[Any] = []

    def ask(scope: Any, message: Any) -> None:
        asked.append(scope.launch("approvals", None, key=message.payload))

    for shop in (first, second):
        shop.app.external("approval", on="approvals")
        root = shop.app.saga("root", on="order")
        root.add_step("ask", ask)
    async with first.running():
        async with second.running():
            await know(1, first, second)
        there, here = await key_of(second, first), await key_of(first, second)
        handle = await first.app.launch("order", there, key=here)
        await until(lambda: first.ask("select from scoop_outbox.child where home is not null and open"), LONG)
        ((message,),) = await first.ask("select message_id from scoop_outbox.child where open and run_id <> message_id")
        assert await first.app.complete(message, "approval") is Answer.ASK_ELSEWHERE
        async with second.running():
            await until(lambda: second.ask("select from scoop_outbox.run where saga = 'approval'"), LONG)
            assert await second.app.complete(message, "approval") is Answer.ACCEPTED
            await handle.wait(LONG)
