"""Cancelling, deadlines and undoing of hierarchies whose runs live in several homes."""

import pytest

from scoop_outbox import Answer, DistributedError, GaveUp, RunState
from tests.homes.conftest import MakeHome
from tests.homes.homes import running
from tests.scenarios.shop import LONG, Gate, Journal, launches
from tests.waiting import until


async def test_ca_02_a_child_that_runs_in_another_home_gives_up(make_home: MakeHome, journal: Journal) -> None:
    orders, stock, gate = make_home("orders"), make_home("stock"), Gate()
    orders.saga("root", "R", None, launches("C"))
    stock.saga("child", "C", None, gate, None)
    async with running(orders, stock):
        handle = await orders.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        assert await orders.app.cancel(handle.id, reason="changed my mind") is Answer.ACCEPTED
        asked = "select from scoop_outbox.request where kind = 'cancel'"
        await until(lambda: stock.ask(asked), LONG)
        gate.open = True
        with pytest.raises(GaveUp, match="changed my mind"):
            await handle.wait(LONG)
    assert journal == ["root-0", "root-1", "child-0", "child-1", "child-rb0", "root-rb1", "root-rb0"]


async def test_ca_08_a_child_that_has_not_started_in_another_home_never_does(
    make_home: MakeHome, journal: Journal
) -> None:
    orders, stock = make_home("orders"), make_home("stock")
    audit = make_home("audit", beside=stock)
    orders.saga("root", "R", launches("C"))
    stock.saga("child", "C", None)
    async with running(orders, stock):
        pass  # they know each other
    async with orders.running():
        handle = await orders.app.launch("R", None)
        await until(lambda: orders.ask("select from scoop_outbox.child"), LONG)
        await orders.app.cancel(handle.id)
        await until(lambda: orders.ask("select from scoop_outbox.child where state = 'cancelling'"), LONG)
        # Nobody here knows whether it has started.
        assert (await orders.states(handle))["root"] is RunState.RUNNING
        async with audit.running():  # the home hears it before the service is there
            with pytest.raises(GaveUp):
                await handle.wait(LONG)
        assert await orders.ask("select state, open from scoop_outbox.child") == [("cancelled", False)]
        async with stock.running():
            await until(lambda: stock.ask("select from scoop_outbox.message"), LONG)
        assert await stock.ask("select from scoop_outbox.run") == []
    assert journal == ["root-0", "root-rb0"]


async def test_ur_01_what_has_committed_in_another_home_is_undone_on_request(
    make_home: MakeHome, journal: Journal
) -> None:
    orders, stock = make_home("orders"), make_home("stock")
    orders.saga("root", "R", launches("C"), None)
    stock.saga("child", "C", None)
    async with running(orders, stock):
        handle = await orders.app.launch("R", None)
        await handle.wait(LONG)
        answered = await orders.app.rollback(handle.id, reason="returned")
        assert answered.answer is Answer.ACCEPTED
        with pytest.raises(DistributedError, match="returned"):
            await handle.wait(LONG)
        await until(lambda: orders.ask("select from scoop_outbox.run where state = 'rolled_back'"), LONG)
    assert journal == ["root-0", "child-0", "root-1", "root-rb1", "child-rb0", "root-rb0"]


async def test_ur_01_a_message_that_only_another_home_handles_is_undone_on_request(
    make_home: MakeHome, journal: Journal
) -> None:
    orders, stock = make_home("orders"), make_home("stock")
    orders.saga("root", "R", None)
    stock.saga("handler", "H", None)
    async with running(orders, stock):
        handle = await orders.app.launch("H", None)
        await handle.wait(LONG)
        assert (await orders.app.rollback(handle.id)).answer is Answer.ACCEPTED
        with pytest.raises(DistributedError):
            await handle.wait(LONG)
        assert (await orders.app.rollback(handle.id)).answer is Answer.ALREADY_ROLLED_BACK
    assert journal == ["handler-0", "handler-rb0"]


async def test_ca_01_a_message_that_only_another_home_handles_is_cancelled(
    make_home: MakeHome, journal: Journal
) -> None:
    orders, stock, gate = make_home("orders"), make_home("stock"), Gate()
    orders.saga("root", "R", None)
    stock.saga("handler", "H", gate, None)
    async with running(orders, stock):
        handle = await orders.app.launch("H", None)
        await until(lambda: gate.entered, LONG)
        assert await orders.app.cancel(handle.id, reason="too dear") is Answer.ACCEPTED
        await until(lambda: stock.ask("select from scoop_outbox.request where kind = 'cancel'"), LONG)
        gate.open = True
        with pytest.raises(GaveUp, match="too dear"):
            await handle.wait(LONG)
    assert journal.count("handler-1") == 0


async def test_dl_01_a_deadline_passes_in_another_home(make_home: MakeHome, journal: Journal) -> None:
    orders, stock = make_home("orders"), make_home("stock")
    orders.saga("root", "R", launches("C", timeout=0.5))
    stock.saga("child", "C", None)
    async with running(orders, stock):
        pass
    async with orders.running():
        handle = await orders.app.launch("R", None)
        await until(lambda: orders.ask("select from scoop_outbox.child where state = 'cancelling'"), LONG)
        async with stock.running():
            with pytest.raises(DistributedError, match=r"deadline|late|time"):
                await handle.wait(LONG)
    assert journal == ["root-0", "root-rb0"]


async def test_rf_01_healing_reaches_a_parent_in_another_home(make_home: MakeHome, journal: Journal) -> None:
    orders, stock = make_home("orders"), make_home("stock")
    broken = True

    def fails(*_: object) -> None:
        if broken:
            raise RuntimeError("cannot be undone")

    def always(*_: object) -> None:
        raise RuntimeError("boom")

    orders.saga("root", "R", launches("C"), always)
    child = stock.app.saga("child", on="C")
    stock.step(child, "0", None, compensate=fails)
    async with running(orders, stock):
        handle = await orders.app.launch("R", None)
        with pytest.raises(DistributedError):
            await handle.wait(LONG)
        assert await orders.states(handle) == {"root": RunState.ROLLBACK_FAILED}
        broken = False
        ((stuck,),) = await stock.ask("select id from scoop_outbox.run")
        assert await stock.app.retry(stuck) is Answer.ACCEPTED
        try:
            await until(lambda: orders.ask("select from scoop_outbox.run where state = 'rolled_back'"), 5)
        finally:
            assert journal == ["root-0", "child-0", "root-1", "child-rb0", "child-rb0", "root-rb0"]
