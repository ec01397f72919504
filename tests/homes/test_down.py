"""A home that is down: whoever has to know what it has done waits for its word."""

import pytest

from scoop_outbox import Answer, GaveUp, RunState
from tests.homes.conftest import MakeHome
from tests.homes.homes import running
from tests.scenarios.shop import LONG, Journal, launches
from tests.waiting import until


async def test_a_child_whose_home_is_down_is_cancelled_when_that_is_back_and_never_starts(
    make_home: MakeHome, journal: Journal
) -> None:
    orders, stock = make_home("orders"), make_home("stock")
    orders.saga("root", "R", launches("C"))
    stock.saga("child", "C", None)
    async with running(orders, stock):
        pass
    async with orders.running():
        handle = await orders.app.launch("R", None)
        await until(lambda: orders.ask("select from scoop_outbox.child where state = 'waiting'"), LONG)
        # Told before its home has seen the message: nobody but that home knows that it has not begun.
        await orders.app.cancel(handle.id)
        await until(lambda: orders.ask("select from scoop_outbox.child where state = 'cancelling' and open"), LONG)
        assert await orders.states(handle) == {"root": RunState.RUNNING}
        async with stock.running():
            with pytest.raises(GaveUp):
                await handle.wait(LONG)
    # Order and message come by different ways: whichever is first, nothing is left of the child.
    assert journal.entries in (["root-0", "root-rb0"], ["root-0", "child-0", "child-rb0", "root-rb0"])
    assert await orders.app.cancel(handle.id) is Answer.ALREADY_ROLLED_BACK
