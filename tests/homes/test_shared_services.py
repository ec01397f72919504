"""Several homes of one service: they share its group or queue, and each message is handled in the one it belongs to."""

import asyncio
import json
import uuid
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest

from scoop_outbox import DistributedError, Draft
from scoop_outbox.app import service_of
from scoop_outbox.core.plans.draining import Draining
from scoop_outbox.core.plans.homes import name_home
from scoop_outbox.errors import DefinitionError
from scoop_outbox.message import Envelope
from scoop_outbox.operations.dead_letters import DeadLetters
from scoop_outbox.operations.homes import Homes
from scoop_outbox.wire.control import Kind, Sender, body_of
from scoop_outbox.wire.forwarded import Forwarded
from scoop_outbox.wire.headers import EXPECTS, HOME, REPLY_TO
from scoop_outbox.wire.sharing import choose
from tests.homes.conftest import MakeHome
from tests.homes.homes import forge
from tests.homes.test_signatures import NEW, dead_letters
from tests.scenarios.shop import LONG, Gate, Journal, Shop
from tests.waiting import until

_SELDOM = 0.2
"""Seconds between two questions to all homes: each time they are told something, and answer."""
KEYS = [f"key {number}" for number in range(24)]


class Stock:
    """A service with several homes, each of which says which one it is.

    Args:
        make_home: makes them.
        options: of each `Scoop`.
    """

    def __init__(self, make_home: MakeHome, **options: Any) -> None:
        self._make = make_home
        self._options = options
        self.handled: list[tuple[str, str]] = []
        self.undone: list[tuple[str, str]] = []
        self.gate = Gate()
        self.gate.open = True

    def home(self, name: str, saga: str = "reserve", *formerly: str, **options: Any) -> Shop:
        """Make one more home, with its saga under this name; it is that of another process if it is `beside` that."""
        shop = self._make("stock", **{"home": name} | self._options | options)

        def reserve(scope: Any, message: Any) -> Iterator[Any]:
            yield from self.gate()
            self.handled.append((message.key, name))
            scope.set_result(name)

        def release(_: Any, message: Any, __: BaseException) -> None:
            self.undone.append((message.key, name))

        made = shop.app.saga(saga, on="reserve", formerly=formerly)
        made.add_step("reserve", shop.coloured(reserve), compensate=release)
        return shop


def launching(orders: Shop, outcome: list[Any], *, fails: bool = False) -> None:
    """A root that launches a message of each key, and looks at what became of them."""

    def look(scope: Any, _: Any) -> None:
        outcome.extend(result.value for result in scope.results)
        if fails:
            raise RuntimeError("card declined")

    def launch(scope: Any, message: Any) -> None:
        for key in message.payload:
            scope.launch("reserve", None, key=key)

    saga = orders.app.saga("root", on="order")
    saga.add_step("launch", launch)
    saga.add_step("look", look)


async def identity(shop: Shop) -> Any:
    return (await shop.ask("select id from scoop_outbox.home"))[0][0]


async def know(count: int, *shops: Shop) -> None:
    """Wait until each of these homes knows of so many others of the service."""

    async def all_know() -> bool:
        found = [await shop.ask("select distinct home from scoop_outbox.peer_subscription") for shop in shops]
        return all(len(one) >= count for one in found)

    await until(all_know, LONG)


async def drain(homes: Homes, **options: Any) -> Draining:
    return await asyncio.to_thread(homes.drain, **options)


async def is_drained(homes: Homes) -> bool:
    return (await drain(homes)).is_drained


async def is_awaited(homes: Homes, by: str) -> bool:
    return ((await drain(homes)).awaited[by] or 0) > 0


async def handled_in(shop: Shop) -> int:
    return int((await shop.ask("select count(*) from scoop_outbox.run where saga = 'reserve'"))[0][0])


async def test_each_key_is_handled_in_its_home_whoever_receives_it(make_home: MakeHome) -> None:
    orders, stock, outcome = make_home("orders"), Stock(make_home), list[Any]()
    first, second = stock.home("stock.1"), stock.home("stock.2")
    launching(orders, outcome)
    async with orders.running(), first.running(), second.running():
        await know(2, orders)
        await know(1, first, second)
        await (await orders.app.launch("order", KEYS)).wait(LONG)
        by_home = {await identity(first): "stock.1", await identity(second): "stock.2"}
        expected = {key: by_home[choose(list(by_home), key)] for key in KEYS}
        assert dict(stock.handled) == expected
        assert len(stock.handled) == len(KEYS)
        assert sorted(outcome) == sorted(expected.values())
        assert await handled_in(first) + await handled_in(second) == len(KEYS)
        rows = await orders.ask("select home, count(*) from scoop_outbox.child where home is not null group by home")
        assert {by_home[home]: count for home, count in rows} == {
            name: list(expected.values()).count(name) for name in ("stock.1", "stock.2")
        }


async def test_what_nobody_waits_for_lies_in_the_home_of_its_key_too(make_home: MakeHome) -> None:
    orders, stock = make_home("orders"), Stock(make_home)
    first, second = stock.home("stock.1"), stock.home("stock.2")
    stranger = make_home("stranger", home=None)
    async with first.running(), second.running(), stranger.running(worker=False):
        await know(1, first, second)
        for key in KEYS:
            await stranger.app.launch("reserve", None, key=key)
        await until(lambda: len(stock.handled) >= len(KEYS), LONG)
        strange = dict(stock.handled)
        assert len(stock.handled) == len(KEYS)
        stock.handled.clear()
        launching(orders, [])
        async with orders.running():
            await know(2, orders)
            await (await orders.app.launch("order", KEYS)).wait(LONG)
        assert dict(stock.handled) == strange
        assert len(set(strange.values())) == 2


async def test_what_comes_to_both_homes_is_handled_once(make_home: MakeHome) -> None:
    """As after a crash behind the commit: the broker gives the message to the other one."""
    orders, stock, outcome = make_home("orders"), Stock(make_home), list[Any]()
    first, second = stock.home("stock.1", group="one"), stock.home("stock.2", group="two")
    launching(orders, outcome)
    async with orders.running(), first.running(), second.running():
        await know(2, orders)
        await know(1, first, second)
        await (await orders.app.launch("order", KEYS)).wait(LONG)
        assert len(outcome) == len(KEYS)
        # What each had to pass on has come a second time to the other one.
        await until(lambda: _are_quiet(first, second), LONG)
        assert await handled_in(first) + await handled_in(second) == len(KEYS)
        assert sorted(key for key, _ in stock.handled) == sorted(KEYS)


async def _are_quiet(*shops: Shop) -> bool:
    left = [
        await shop.ask("select from scoop_outbox.outbox union all select from scoop_outbox.mailbox") for shop in shops
    ]
    return not any(left)


async def test_compensations_go_to_the_home_that_has_handled_it(make_home: MakeHome) -> None:
    orders, stock, outcome = make_home("orders"), Stock(make_home), list[Any]()
    first, second = stock.home("stock.1"), stock.home("stock.2")
    launching(orders, outcome, fails=True)
    async with orders.running(), first.running(), second.running():
        await know(2, orders)
        await know(1, first, second)
        with pytest.raises(DistributedError, match="card declined"):
            await (await orders.app.launch("order", KEYS)).wait(LONG)
        assert sorted(stock.undone) == sorted(stock.handled)
        assert len(stock.undone) == len(KEYS)


async def test_a_service_that_launches_for_itself_shares_that_as_well(make_home: MakeHome) -> None:
    stock, outcome = Stock(make_home), list[Any]()
    first, second = stock.home("stock.1"), stock.home("stock.2")
    for shop in (first, second):
        launching(shop, outcome)
    async with first.running(), second.running():
        await know(1, first, second)
        await (await first.app.launch("order", KEYS, key="any")).wait(LONG)
        assert sorted(key for key, _ in stock.handled) == sorted(KEYS)
        assert len({home for _, home in stock.handled}) == 2
        assert len(outcome) == len(KEYS)


async def test_homes_are_added_and_drained_under_load_and_nothing_is_lost(make_home: MakeHome) -> None:
    orders, stock, outcome = make_home("orders"), Stock(make_home), list[Any]()
    first, second = stock.home("stock.1"), stock.home("stock.2")
    launching(orders, outcome)
    launched, stop = 0, asyncio.Event()

    async def load() -> None:
        nonlocal launched
        while not stop.is_set():
            keys = [f"{launched + number}" for number in range(4)]
            await (await orders.app.launch("order", keys)).wait(LONG)
            launched += len(keys)

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(orders.running())
        await stack.enter_async_context(first.running())
        await know(1, orders)
        loading = asyncio.create_task(load())
        await until(lambda: launched >= 8, LONG)
        await stack.enter_async_context(second.running())
        await until(lambda: any(home == "stock.2" for _, home in stock.handled), LONG)
        with Homes(service_of(first.app).home.url) as homes:
            assert (await drain(homes)).draining
            await until(lambda: is_drained(homes), LONG, _SELDOM)
            so_far = [home for _, home in stock.handled].count("stock.1")
            more = launched + 16
            await until(lambda: launched >= more, LONG)
            assert [home for _, home in stock.handled].count("stock.1") == so_far
            assert not (await drain(homes, resume=True)).draining
        await until(lambda: [home for _, home in stock.handled].count("stock.1") > so_far, LONG)
        stop.set()
        await loading
    assert sorted(map(int, (key for key, _ in stock.handled))) == list(range(launched))
    assert len(outcome) == launched


async def test_a_home_is_not_drained_while_somebody_waits_for_it(make_home: MakeHome) -> None:
    orders, stock, outcome = make_home("orders"), Stock(make_home), list[Any]()
    first, second = stock.home("stock.1"), stock.home("stock.2")
    launching(orders, outcome)
    stock.gate.open = False
    async with orders.running(), first.running(), second.running():
        await know(2, orders)
        await know(1, first, second)
        handle = await orders.app.launch("order", KEYS)
        await until(lambda: stock.gate.entered, LONG)
        with Homes(service_of(first.app).home.url) as homes:
            await drain(homes)
            await until(lambda: is_awaited(homes, "orders"), LONG, _SELDOM)
            assert not await is_drained(homes)
            stock.gate.open = True
            await handle.wait(LONG)
            await until(lambda: is_drained(homes), LONG, _SELDOM)
            assert (await drain(homes)).undoable > 0
    assert len(outcome) == len(KEYS)


async def test_the_last_home_of_a_saga_is_not_drained_unless_that_is_meant(
    make_home: MakeHome, journal: Journal
) -> None:
    orders, stock, outcome = make_home("orders"), Stock(make_home), list[Any]()
    first = stock.home("stock.1")
    launching(orders, outcome)
    async with orders.running(), first.running():
        await know(1, orders)
        with Homes(service_of(first.app).home.url) as homes:
            with pytest.raises(DefinitionError, match="no other home has these sagas: reserve of stock"):
                await drain(homes)
            assert (await drain(homes, alone=True)).alone == [("stock", "reserve")]
        # Nobody else is there: it is handled all the same.
        await (await orders.app.launch("order", KEYS)).wait(LONG)
    assert len(outcome) == len(KEYS)
    assert journal.entries == []


def test_a_home_that_cooperates_with_nobody_is_not_drained(database_url: str) -> None:
    with Homes(database_url) as homes, pytest.raises(DefinitionError, match="this home has no name"):
        homes.drain()


async def test_what_is_passed_on_keeps_its_signature(make_home: MakeHome) -> None:
    orders, stock, outcome = make_home("orders", control_keys=NEW), Stock(make_home, control_keys=NEW), list[Any]()
    first, second = stock.home("stock.1"), stock.home("stock.2")
    launching(orders, outcome)
    async with orders.running(), first.running(), second.running():
        await know(2, orders)
        await know(1, first, second)
        await (await orders.app.launch("order", KEYS)).wait(LONG)
        assert len({home for _, home in stock.handled}) == 2
    assert len(outcome) == len(KEYS)
    assert await dead_letters(first) == await dead_letters(second) == []


async def test_what_is_passed_on_and_cannot_be_taken_in_is_a_dead_letter(make_home: MakeHome) -> None:
    """Of a service that knows no such topic, that nobody has signed, or with a header that cannot be meant."""
    stock = Stock(make_home, control_keys=NEW)
    first, second = stock.home("stock.1"), stock.home("stock.2")
    here = await identity_of(first)
    expects = {EXPECTS: '[["stock", "reserve"]]', HOME: str(uuid.uuid4()), REPLY_TO: "scoop.control.orders"}
    for topic, headers in (("nowhere", {}), ("reserve", expects), ("reserve", {EXPECTS: "?"}), ("reserve", {})):
        envelope = Envelope(str(uuid.uuid4()), topic, "key", b"{}", "application/json", headers)
        said = json.loads(body_of(here, Kind.FORWARDED, Forwarded("stock", envelope).to_json()))
        await forge(first.app, "scoop.control.stock.2", said)
    async with second.running(), first.running(worker=False):
        await until(lambda: len(stock.handled) == 1, LONG)
    reasons = {topic + ": " + reason for _, topic, _, reason in await dead_letters(second)}
    assert len(reasons) == 3
    assert any(one.startswith("nowhere: no saga of stock listens on 'nowhere'") for one in reasons)
    assert any(one.startswith("reserve: another home is said to wait for it, but") for one in reasons)
    assert "reserve: its header scoop-expects is no list of services and sagas" in reasons


async def identity_of(shop: Shop) -> Sender:
    """How a home signs what it says."""
    async with service_of(shop.app).home.driver() as driver:
        return (await driver.run(name_home("stock.1"))).sender


async def test_a_home_that_knows_nobody_yet_takes_nothing_of_others(make_home: MakeHome) -> None:
    """It joins while another one, which does not know it, launches for itself: that waits for its own sagas."""
    stock, outcome = Stock(make_home), list[Any]()
    first = stock.home("stock.1", group="one")
    launching(first, outcome)
    async with first.running():
        await (await first.app.launch("order", KEYS)).wait(LONG)
    second = stock.home("stock.2", group="two")  # it is given all that there was, from the beginning
    late = second.app.saga("late", on="late")
    late.add_step("only", lambda scope, message: stock.handled.append(("late", "stock.2")))
    handle = await first.app.launch("order", ["one more"])
    async with second.running():
        async with first.running(worker=False):
            await second.app.launch("late", None)
            await until(lambda: ("late", "stock.2") in stock.handled, LONG)
        async with first.running():
            await handle.wait(LONG)
            await until(lambda: _are_quiet(first, second), LONG)
    # The last one was launched once both knew of each other.
    assert {home for key, home in stock.handled if key in KEYS} == {"stock.1"}
    assert len(outcome) == len(KEYS) + 1
    assert sorted(key for key, _ in stock.handled) == sorted([*KEYS, "late", "one more"])


async def test_homes_of_a_service_may_have_different_sagas(make_home: MakeHome) -> None:
    """As while one of them is deployed: each saga handles what nobody waits for in a home that has it, once."""
    stock, stranger = Stock(make_home), make_home("stranger", home=None)
    shops = first, second = stock.home("stock.1"), stock.home("stock.2")
    for shop, name in zip(shops, ("old", "new"), strict=True):
        saga = shop.app.saga(name, on="reserve")
        saga.add_step("note", lambda scope, message, name=name: stock.undone.append((message.key, name)))
    async with first.running(), second.running(), stranger.running(worker=False):
        await know(1, first, second)
        for key in KEYS:
            await stranger.app.launch("reserve", None, key=key)
        await until(lambda: len(stock.handled) >= len(KEYS) and len(stock.undone) >= 2 * len(KEYS), LONG)
        await until(lambda: _are_quiet(first, second), LONG)
    assert sorted(stock.undone) == sorted((key, name) for key in KEYS for name in ("old", "new"))
    assert sorted(key for key, _ in stock.handled) == sorted(KEYS)
    assert len({home for _, home in stock.handled}) == 2


async def test_what_could_not_be_published_is_replayed_for_the_same_homes(make_home: MakeHome) -> None:
    stock = Stock(make_home)
    first, second = stock.home("stock.1"), stock.home("stock.2")
    launching(first, [])
    saga = first.app.saga("here", on="reserve")
    saga.add_step("only", lambda *_: None)
    async with first.running(), second.running():
        await know(1, first, second)
    await first.app.launch_many([Draft("reserve", None, key=key) for key in KEYS])
    launched = "select message_id, expects from scoop_outbox.outbox where topic = 'reserve' order by message_id"
    before = await first.ask(launched)
    await first.execute(
        "with gone as (delete from scoop_outbox.outbox where topic = 'reserve' returning *) "
        "insert into scoop_outbox.dead_letter (message_id, topic, key, body, content_type, headers, origin, reason) "
        "select message_id, topic, key, body, content_type, headers, 'relay', 'too large' from gone"
    )
    with DeadLetters(service_of(first.app).home.url) as letters:
        for (letter,) in await first.ask(LETTERS):
            await asyncio.to_thread(letters.replay, letter)
    assert await first.ask(launched) == before
    assert {len(json.loads(expects)) for _, expects in before} == {2}


LETTERS = "select id from scoop_outbox.dead_letter"


async def test_a_transaction_that_may_launch_for_a_home_is_waited_for_before_it_is_drained(make_home: MakeHome) -> None:
    orders, stock, outcome = make_home("orders"), Stock(make_home), list[Any]()
    first, second = stock.home("stock.1"), stock.home("stock.2")
    launching(orders, outcome)
    async with orders.running(), first.running(), second.running():
        await know(2, orders)
        await know(1, first, second)
        async with await psycopg.AsyncConnection.connect(service_of(orders.app).home.url) as connection:
            await connection.execute("delete from scoop_outbox.outbox where false")  # as a launch, it may write there
            with Homes(service_of(first.app).home.url) as homes:
                await drain(homes)
                await until(lambda: is_confirmed(homes), LONG, _SELDOM)
                left = await drain(homes)
                assert left.awaited["orders"] is None
                assert not left.is_drained
                await connection.commit()
                await until(lambda: is_drained(homes), LONG, _SELDOM)


async def is_confirmed(homes: Homes) -> bool:
    left = await drain(homes)
    return not left.unconfirmed and left.awaited.get("stock.2") == 0
