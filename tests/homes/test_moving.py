"""A service moves out of a database that others share, as docs/homes.md says: with new topics, and nothing stopped."""

from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest

from scoop_outbox import DistributedError
from scoop_outbox.app import service_of
from scoop_outbox.operations.handlers import AsyncHandlers, ForgetStatus
from tests.docs.markdown import ROOT, blocks
from tests.homes.conftest import MakeHome
from tests.scenarios.shop import LONG, Gate, Journal, Shop, launches
from tests.waiting import until

OLD, NEW = "reservations", "reservations.2"
(LEFT,) = [query for _, query in blocks(ROOT / "docs" / "homes.md", "sql") if "to_take_in" in query]
"""What is left for the old workers, as the document asks it."""


async def states(shop: Shop) -> list[tuple[str, str]]:
    """The runs of a home: saga and state, in the order in which they began."""
    return await shop.ask("select saga, state from scoop_outbox.run order by created_at, id")


async def test_a_service_moves_to_a_database_of_its_own_and_what_began_before_ends_where_it_is(
    make_home: MakeHome, journal: Journal
) -> None:
    shop = make_home("orders")
    old, new = make_home("stock", beside=shop), make_home("stock")
    new.app.configure(group="stock.2")
    gate = Gate()

    def fails_late(*_: object) -> Iterator[object]:
        yield from gate()
        raise RuntimeError("card declined")

    shop.saga("before", "before", launches(OLD), fails_late)
    shop.saga("after", "after", launches(NEW), None)
    old.saga("reserve", OLD, None)
    new.saga("reserve", NEW, None)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(shop.running())
        async with old.running():
            early = await shop.app.launch("before", None)
            await until(lambda: gate.entered, LONG)
            await stack.enter_async_context(new.running())
            await until(lambda: shop.ask("select from scoop_outbox.peer_subscription where topic = %s", NEW), LONG)

            await (await shop.app.launch("after", None)).wait(LONG)
            assert await states(new) == [("reserve", "committed")]
            assert await shop.ask(LEFT) == [(0, 0, 1)]

            gate.open = True
            with pytest.raises(DistributedError, match="card declined"):
                await early.wait(LONG)
            assert await shop.ask(LEFT) == [(0, 0, 0)]
        assert await states(shop) == [("before", "rolled_back"), ("reserve", "rolled_back"), ("after", "committed")]

        async with AsyncHandlers(service_of(shop.app).home.url) as handlers:
            forgotten = await handlers.forget("stock", "reserve", topic=OLD)
        assert forgotten.status is ForgetStatus.FORGOTTEN
        await (await shop.app.launch("after", None)).wait(LONG)
        assert await states(new) == [("reserve", "committed")] * 2
    assert journal.count("reserve-rb0") == 1
