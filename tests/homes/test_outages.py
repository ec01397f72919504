"""What is unreachable is waited for, and what nobody understands holds up nobody."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import make_url

from scoop_outbox import DistributedError, Scoop
from tests.carriers import Carrier
from tests.homes.conftest import MakeHome
from tests.homes.homes import forge, know_each_other, running
from tests.homes.proxy import DOWN, UP, Network, network
from tests.scenarios.conftest import MATRIX
from tests.scenarios.shop import LONG, Gate, Journal, Shop, launches, raises
from tests.waiting import until

WAYS = {"is cut off": (UP, DOWN), **({"is not heard": (UP,), "hears nothing": (DOWN,)} if MATRIX else {})}
OPEN = "select from scoop_outbox.child where open"


async def acquainted(*shops: Shop) -> None:
    """Let homes know each other, and stop them."""
    async with running(*shops):
        pass


async def test_a_home_that_is_away_is_waited_for(make_home: MakeHome, journal: Journal) -> None:
    orders, stock = make_home("orders"), make_home("stock")
    orders.saga("root", "R", launches("C"), None)
    stock.saga("child", "C", None)
    await acquainted(orders, stock)
    async with orders.running():
        handle = await orders.app.launch("R", None)
        await until(lambda: orders.ask(OPEN), LONG)
        await until(lambda: _has_nothing_to_say(orders), LONG)
    assert journal == ["root-0"]
    # It has not been there for long, and neither has whoever waits for it.
    async with stock.running():
        await until(lambda: stock.ask("select from scoop_outbox.run where state = 'committed'"), LONG)
        await until(lambda: _has_nothing_to_say(stock), LONG)
    assert await orders.ask("select state from scoop_outbox.child where open") in [[("waiting",)], [("started",)]]
    async with orders.running():
        await handle.wait(LONG)
    assert journal == ["root-0", "child-0", "root-1"]


async def test_a_home_that_is_away_is_ordered_back_when_it_is_there_again(
    make_home: MakeHome, journal: Journal
) -> None:
    orders, stock, gate = make_home("orders"), make_home("stock"), Gate()
    orders.saga("root", "R", launches("C"), gate, raises())
    stock.saga("child", "C", None)
    async with orders.running():
        async with running(stock):
            await until(lambda: know_each_other(orders, stock), LONG)
            handle = await orders.app.launch("R", None)
            await until(lambda: gate.entered, LONG)
        gate.open = True
        await until(lambda: orders.ask("select from scoop_outbox.child where state = 'rolling_back'"), LONG)
        await until(lambda: _has_nothing_to_say(orders), LONG)
        # The order of unwinding is worth more than speed.
        assert journal == ["root-0", "child-0", "root-1", "root-2", "root-rb1"]
        async with stock.running():
            with pytest.raises(DistributedError, match="boom"):
                await handle.wait(LONG)
    assert journal == ["root-0", "child-0", "root-1", "root-2", "root-rb1", "child-rb0", "root-rb0"]


async def _has_nothing_to_say(shop: Shop) -> bool:
    return not await shop.ask("select from scoop_outbox.outbox")


async def test_what_nobody_understands_holds_up_nobody(make_home: MakeHome) -> None:
    orders, stock = make_home("orders"), make_home("stock")
    orders.saga("root", "R", launches("C"), lambda scope, _: scope.set_result(len(scope.results)))
    stock.saga("child", "C", lambda scope, _: scope.set_result(1))
    async with running(orders, stock):
        for said in ({"version": 2, "kind": "news"}, ["gossip"], "news", {"version": 1, "kind": "orders", "from": 1}):
            await forge(stock.app, "scoop.control.orders", said)
            await forge(orders.app, "scoop.homes", said)
        assert await (await orders.app.launch("R", None)).wait(LONG) == 1
        await until(lambda: _has_dead_letters(orders, 8), LONG)
        await until(lambda: _has_dead_letters(stock, 4), LONG)  # what was said to all
        assert await (await orders.app.launch("R", None)).wait(LONG) == 1
    bodies = await stock.ask("select convert_from(body, 'UTF8')::json, service from scoop_outbox.dead_letter")
    assert (["gossip"], "scoop.control.stock") in bodies


async def _has_dead_letters(shop: Shop, count: int) -> bool:
    return await shop.ask("select count(*) from scoop_outbox.dead_letter") == [(count,)]


async def test_two_homes_of_one_name_are_told_of(
    carrier: Carrier, make_home: MakeHome, caplog: pytest.LogCaptureFixture
) -> None:
    """They share a control channel, so that neither can be told anything for sure: it is seen, and said."""
    first, second = make_home("orders"), make_home("orders")
    first.saga("root", "R", None)
    second.saga("root", "R", None)
    with caplog.at_level(logging.ERROR):
        async with first.running(), second.running():
            await until(lambda: "two homes have one name" in caplog.text, LONG)


@pytest.fixture
def wires() -> Iterator[Network]:
    """Links to a broker."""
    with network() as wires:
        yield wires


@pytest_asyncio.fixture
async def shops(
    make_database: Any, rabbitmq_url: str, wires: Network, journal: Journal
) -> AsyncIterator[tuple[Shop, Shop]]:
    """Two homes, each with a link of its own to one broker."""
    url = make_url(rabbitmq_url)
    assert url.host is not None
    carrier = Carrier(rabbitmq_url)
    async with AsyncExitStack() as stack:
        made = []
        for name in ("orders", "stock"):
            link = wires.link(url.host, url.port or 5672)
            carrier.url = url.set(port=link.port).render_as_string(hide_password=False)
            shop = Shop(carrier.carry(Scoop(name, database=make_database(), home=name)), journal, "mixed")
            stack.push_async_callback(shop.app.close)
            made.append(shop)
        yield made[0], made[1]


@pytest.mark.parametrize("who", [0, 1], ids=["the parent's home", "the child's home"])
@pytest.mark.parametrize("ways", WAYS.values(), ids=WAYS)
async def test_the_broker_is_unreachable(
    shops: tuple[Shop, Shop], wires: Network, journal: Journal, who: int, ways: tuple[str, ...]
) -> None:
    orders, stock = shops
    gate, later = Gate(), Gate()
    orders.saga("root", "R", launches("C"), later, raises())
    stock.saga("child", "C", gate)
    async with running(orders, stock):
        handle = await orders.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        wires.links[who].cut(*ways)
        gate.open = True
        # What has happened is committed, and told as soon as somebody can be told.
        await until(lambda: stock.ask("select from scoop_outbox.run where state = 'committed'"), LONG)
        assert "root-1" not in journal.entries or who == 0 or UP not in ways
        wires.heal()
        await until(lambda: later.entered, LONG)
        wires.links[who].cut(*ways)
        later.open = True
        await until(lambda: orders.ask("select from scoop_outbox.child where state = 'rolling_back'"), LONG)
        wires.links[who].reset()
        wires.heal()
        with pytest.raises(DistributedError, match="boom"):
            await handle.wait(LONG)
    assert journal == ["root-0", "child-0", "root-1", "root-2", "root-rb1", "child-rb0", "root-rb0"]
