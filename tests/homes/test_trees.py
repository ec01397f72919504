"""Hierarchies whose runs live in several homes."""

from typing import Any

import pytest

from scoop_outbox import DistributedError, RunState
from tests.homes.conftest import MakeHome
from tests.homes.homes import running
from tests.scenarios.shop import LONG, Journal, launches, raises


async def test_a_parent_waits_for_a_child_in_another_home(make_home: MakeHome, journal: Journal) -> None:
    orders, stock = make_home("orders"), make_home("stock")
    seen: list[Any] = []

    def look(scope: Any, _: Any) -> None:
        seen.extend(scope.results)

    orders.saga("root", "R", launches("C"), look)
    stock.saga("child", "C", lambda scope, _: scope.set_result(7), None)
    async with running(orders, stock):
        handle = await orders.app.launch("R", None)
        await handle.wait(LONG)
    assert journal == ["root-0", "child-0", "child-1", "root-1"]
    assert [(one.saga, one.value) for one in seen] == [("child", 7)]
    assert await orders.states(handle) == {"root": RunState.COMMITTED}


async def test_a_failure_comes_from_another_home(make_home: MakeHome, journal: Journal) -> None:
    orders, stock = make_home("orders"), make_home("stock")
    orders.saga("root", "R", None, launches("C"), None)
    stock.saga("child", "C", None, raises("out of stock"))
    async with running(orders, stock):
        handle = await orders.app.launch("R", None)
        with pytest.raises(DistributedError, match="out of stock") as caught:
            await handle.wait(LONG)
    assert journal == ["root-0", "root-1", "child-0", "child-1", "child-rb0", "root-rb1", "root-rb0"]
    (cause,) = caught.value.failure.causes
    assert cause.message == "out of stock"
    assert any(frame.file_name is not None for frame in cause.stack_trace)


async def test_a_later_failure_undoes_what_other_homes_have_done(make_home: MakeHome, journal: Journal) -> None:
    orders, stock, audit = make_home("orders"), make_home("stock"), make_home("audit")
    orders.saga("root", "R", launches("C"), raises())
    stock.saga("child", "C", None, launches("G"))
    audit.saga("grandchild", "G", None)
    async with running(orders, stock, audit):
        handle = await orders.app.launch("R", None)
        with pytest.raises(DistributedError, match="boom"):
            await handle.wait(LONG)
    assert journal == [
        *("root-0", "child-0", "child-1", "grandchild-0", "root-1"),
        *("grandchild-rb0", "child-rb1", "child-rb0", "root-rb0"),
    ]


async def test_a_message_from_outside_is_handled_in_another_home(make_home: MakeHome) -> None:
    orders, stock = make_home("orders"), make_home("stock")
    orders.saga("root", "R", None)
    stock.saga("handler", "H", lambda scope, _: scope.set_result("done"))
    async with running(orders, stock):
        assert await (await orders.app.launch("H", None)).wait(LONG) == "done"


async def test_a_message_that_has_to_be_handled_may_be_handled_in_another_home(
    make_home: MakeHome, journal: Journal
) -> None:
    orders, stock = make_home("orders"), make_home("stock")
    orders.saga("root", "R", launches("C", require_handlers=True), launches("C", handled_by=["child"]), None)
    stock.saga("child", "C", None)
    async with orders.running():
        with pytest.raises(DistributedError, match="no saga is subscribed"):
            await (await orders.app.launch("R", None)).wait(LONG)
    async with running(orders, stock):
        await (await orders.app.launch("R", None, require_handlers=True)).wait(LONG)
    assert journal == ["root-0", "root-0", "child-0", "root-1", "child-0", "root-2"]
