"""A saga of a service with several homes is renamed in one after the other: under both names it is the same saga."""

import uuid
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import psycopg
import pytest

from scoop_outbox import DistributedError, Participant, Scoop, Strategy
from scoop_outbox.app import service_of
from scoop_outbox.core.plans.sharing import read_sharing
from scoop_outbox.operations.homes import Homes
from scoop_outbox.wire.sharing import choose
from tests.homes.conftest import MakeHome
from tests.homes.test_shared_services import KEYS, Stock, _are_quiet, drain, identity, know, launching
from tests.scenarios.shop import LONG, Gate, Shop
from tests.waiting import until

NEW, BOTH = frozenset({"book"}), frozenset({"reserve", "book"})


class Renamed(Stock):
    """A service whose homes have its saga under different names."""

    def renamed(self, home: Shop, name: str, **options: Any) -> Shop:
        """Return a newer version of a home."""
        return self.home(name, "book", "reserve", beside=home, **options)

    async def take(self, *shops: Shop, keys: Sequence[str] = KEYS) -> dict[str, str]:
        """Wait until as much has been handled as was launched, and return where; forget it."""
        await until(lambda: len(self.handled) >= len(keys), LONG)
        await until(lambda: _are_quiet(*shops), LONG)
        assert sorted(key for key, _ in self.handled) == sorted(keys)
        found = dict(self.handled)
        self.handled.clear()
        return found


async def hear(names: Collection[str], *shops: Shop) -> None:
    """Wait until these homes know that the saga has these names in other homes of the service."""

    async def all_hear() -> bool:
        found = [await shop.ask("select distinct saga from scoop_outbox.peer_subscription") for shop in shops]
        return all({saga for (saga,) in one if saga != "root"} == set(names) for one in found)

    await until(all_hear, LONG)


async def expected(first: Shop, second: Shop) -> dict[str, str]:
    """Return in which home each key is handled."""
    homes = {await identity(first): "stock.1", await identity(second): "stock.2"}
    return {key: homes[choose(list(homes), key)] for key in KEYS}


async def began(stock: Renamed) -> tuple[Shop, Shop]:
    """Return two homes that have known each other under the old name; their processes are not running."""
    first, second = stock.home("stock.1"), stock.home("stock.2")
    async with first.running(), second.running():
        await know(1, first, second)
    return first, second


async def test_each_key_is_handled_once_while_one_home_is_renamed_and_when_both_are(make_home: MakeHome) -> None:
    orders, stock, outcome = make_home("orders"), Renamed(make_home), list[Any]()
    launching(orders, outcome)
    first, old = await began(stock)
    homes = await expected(first, old)
    second = stock.renamed(old, "stock.2")
    async with orders.running(), second.running():
        async with first.running():
            await hear(BOTH, orders)
            await hear(NEW, first)
            await (await orders.app.launch("order", KEYS)).wait(LONG)
            assert await stock.take(first, second) == homes
        renamed = stock.renamed(first, "stock.1")
        async with renamed.running():
            await hear(NEW, orders, second)
            await (await orders.app.launch("order", KEYS)).wait(LONG)
            assert await stock.take(renamed, second) == homes
    assert sorted(outcome) == sorted(2 * [*homes.values()])
    rows = await orders.ask("select saga, count(*) from scoop_outbox.child where home is not null group by saga")
    old_ones = [*homes.values()].count("stock.1")
    assert dict(rows) == {"reserve": old_ones, "book": 2 * len(KEYS) - old_ones}


class Waits(Strategy):
    """Waits for all that are subscribed, or for some of them.

    Args:
        names: of whom; none are all.
    """

    def __init__(self, *names: str) -> None:
        self.names = names

    def expect(self, topic: str, subscribed: Collection[Participant]) -> Collection[Participant]:
        return [one for one in subscribed if one.saga in (self.names or BOTH)]


@pytest.mark.parametrize("names", [(), ("reserve",), ("book",)])
async def test_a_strategy_waits_for_the_same_saga_by_either_name(make_home: MakeHome, names: tuple[str, ...]) -> None:
    orders, stock = make_home("orders"), Renamed(make_home)
    saga = orders.app.saga("root", on="order", strategy=Waits(*names))

    def launch(scope: Any, message: Any) -> None:
        for key in message.payload:
            scope.launch("reserve", None, key=key)

    saga.add_step("launch", launch)
    first, old = await began(stock)
    homes = await expected(first, old)
    second = stock.renamed(old, "stock.2")
    async with orders.running(), first.running(), second.running():
        await hear(BOTH, orders)
        await hear(NEW, first)
        await (await orders.app.launch("order", KEYS)).wait(LONG)
        assert await stock.take(first, second) == homes


async def test_what_plain_producers_send_is_handled_once_while_one_home_is_renamed(make_home: MakeHome) -> None:
    stock, stranger = Renamed(make_home), make_home("stranger", home=None)
    first, old = await began(stock)
    homes = await expected(first, old)
    second = stock.renamed(old, "stock.2")
    async with stranger.running(worker=False), second.running():
        async with first.running():
            await hear(NEW, first)
            for key in KEYS:
                await stranger.app.launch("reserve", None, key=key)
            assert await stock.take(first, second) == homes
        async with stock.renamed(first, "stock.1").running():
            await hear(NEW, second)
            for key in KEYS:
                await stranger.app.launch("reserve", None, key=key)
            assert await stock.take(first, second) == homes


async def test_what_comes_to_both_homes_is_handled_once_under_either_name(make_home: MakeHome) -> None:
    """Each home has a group of its own: all is delivered twice."""
    orders, stock, outcome = make_home("orders"), Renamed(make_home), list[Any]()
    launching(orders, outcome)
    first, old = stock.home("stock.1", group="one"), stock.home("stock.2", group="two")
    homes = await expected(first, old)
    second = stock.renamed(old, "stock.2", group="two")
    async with orders.running(), first.running(), second.running():
        await hear(BOTH, orders)
        await hear(NEW, first)
        await hear({"reserve"}, second)
        await (await orders.app.launch("order", KEYS)).wait(LONG)
        assert await stock.take(first, second) == homes


@pytest.mark.parametrize("launcher", ["stock.1", "stock.2"])
async def test_a_home_of_the_service_launches_for_both_names(make_home: MakeHome, launcher: str) -> None:
    stock, outcome = Renamed(make_home), list[Any]()
    first, old = await began(stock)
    homes = await expected(first, old)
    second = stock.renamed(old, "stock.2")
    here = {"stock.1": first, "stock.2": second}[launcher]
    launching(here, outcome)
    async with first.running(), second.running():
        await hear(NEW, first)
        await hear({"reserve"}, second)
        await (await here.app.launch("order", KEYS, key="any")).wait(LONG)
        assert await stock.take(first, second) == homes
        await (await here.app.launch("order", KEYS[:4], key="any")).wait(LONG)
        await stock.take(first, second, keys=KEYS[:4])
    assert len(outcome) == len(KEYS) + 4


async def test_what_is_awaited_in_another_home_keeps_its_name_when_its_launcher_is_renamed(make_home: MakeHome) -> None:
    stock, outcome = Renamed(make_home), list[Any]()
    first, second = await began(stock)
    launching(first, outcome)
    homes = await expected(first, second)
    theirs = [key for key in KEYS if homes[key] == "stock.2"]
    async with first.running():
        handle = await first.app.launch("order", theirs, key="any")
        await until(lambda: is_launched(first, len(theirs)), LONG)
    renamed = stock.renamed(first, "stock.1")
    launching(renamed, outcome)
    async with renamed.running(), stock.renamed(second, "stock.2").running():
        await renamed.app.handle(handle.id).wait(LONG)
        assert set((await stock.take(renamed, second, keys=theirs)).values()) == {"stock.2"}
    assert outcome == ["stock.2"] * len(theirs)


async def is_launched(shop: Shop, count: int) -> bool:
    rows = await shop.ask("select count(*) from scoop_outbox.child where open and home is not null")
    return bool(rows == [(count,)])


async def test_what_was_handled_under_the_old_name_is_undone_where_it_was(make_home: MakeHome) -> None:
    orders, stock, gate = make_home("orders"), Renamed(make_home), Gate()
    saga = orders.app.saga("root", on="order")

    def launch(scope: Any, message: Any) -> None:
        for key in message.payload:
            scope.launch("reserve", None, key=key)

    def fail(_: Any, __: Any) -> Iterator[Any]:
        yield from gate()
        raise RuntimeError("card declined")

    saga.add_step("launch", launch)
    saga.add_step("fail", orders.coloured(fail))
    first, second = stock.home("stock.1"), stock.home("stock.2")
    homes = await expected(first, second)
    async with orders.running():
        async with first.running(), second.running():
            await hear({"reserve"}, orders, first, second)
            handle = await orders.app.launch("order", KEYS)
            await until(lambda: gate.entered, LONG)
        assert dict(stock.handled) == homes
        async with stock.renamed(first, "stock.1").running(), stock.renamed(second, "stock.2").running():
            gate.open = True
            with pytest.raises(DistributedError, match="card declined"):
                await handle.wait(LONG)
    assert sorted(stock.undone) == sorted(homes.items())


ONE, TWO, THREE = (uuid.UUID(int=number) for number in (1, 2, 3))


@pytest.mark.parametrize(
    "listed, same",
    [
        ({ONE: {"a": []}, TWO: {"b": []}}, [{ONE: "a"}, {TWO: "b"}]),
        ({ONE: {"a": []}, TWO: {"b": ["a"]}}, [{ONE: "a", TWO: "b"}]),
        ({ONE: {"b": ["a"]}, TWO: {"a": ["b"]}}, [{ONE: "b", TWO: "a"}]),
        # Over a name that only a third home has.
        ({ONE: {"a": []}, TWO: {"b": ["a"]}, THREE: {"c": ["b"]}}, [{ONE: "a", TWO: "b", THREE: "c"}]),
        # Two have become one, and where they are two, both handle it.
        ({ONE: {"a": [], "b": []}, TWO: {"c": ["a", "b"]}}, [{ONE: "ab", TWO: "c"}]),
        # A new saga has the former name of another one, which is not the same: one home has both.
        ({ONE: {"a": [], "b": []}, TWO: {"b": ["a"]}}, [{ONE: "a"}, {ONE: "b", TWO: "b"}]),
    ],
)
async def test_whom_a_launch_tells_in_which_home(
    database_url: str, listed: dict[uuid.UUID, dict[str, list[str]]], same: list[dict[uuid.UUID, str]]
) -> None:
    with psycopg.connect(database_url, options="-c search_path=scoop_outbox", autocommit=True) as connection:
        for home, sagas in listed.items():
            connection.execute("insert into peer (id, name, reply_to) values (%s, %s, 't')", (home, str(home)))
            for saga, formerly in sagas.items():
                connection.execute(
                    "insert into peer_subscription (home, topic, service, saga, formerly) "
                    "values (%s, 't', 'stock', %s, %s)",
                    (home, saga, formerly),
                )
        connection.execute("update home set name = 'orders'")
        app = Scoop("orders", database=database_url)
        service_of(app).home.cooperation.learn("orders")
        handles = [await app.launch("t", None, key=key) for key in KEYS]
        async with service_of(app).home.driver() as driver:
            sharing = (await driver.run(read_sharing("stock", ["t"])))["t"]
        await app.close()
        found = connection.execute("select message_id, home, saga from child").fetchall()
    for handle, key in zip(handles, KEYS, strict=True):
        told = {(home, saga) for message, home, saga in found if message == handle.id}
        chosen = [(choose(homes, key), homes) for homes in same]
        assert told == {(home, saga) for home, homes in chosen for saga in homes[home]}
    # So do those who receive what nobody has addressed.
    called = [(homes, {saga for sagas in homes.values() for saga in sagas}) for homes in same]
    assert sharing.homes == {saga: frozenset(homes) for homes, sagas in called for saga in sagas}
    assert sharing.names == {saga: sagas - {saga} for _, sagas in called for saga in sagas}


@pytest.mark.parametrize("drained", [0, 1])
async def test_a_home_may_be_drained_if_another_one_has_its_saga_under_another_name(
    make_home: MakeHome, drained: int
) -> None:
    stock = Renamed(make_home)
    first, old = await began(stock)
    second = stock.renamed(old, "stock.2")
    async with first.running(), second.running():
        await hear(NEW, first)
        await hear({"reserve"}, second)
        with Homes(service_of((first, second)[drained].app).home.url) as homes:
            assert (await drain(homes)).draining
