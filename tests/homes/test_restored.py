"""A home is restored from an older backup: nothing is guessed, nothing hangs, and somebody is told."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import uuid
from pathlib import Path
from typing import Any

import pytest

from scoop_outbox import DistributedError
from scoop_outbox.app import service_of
from scoop_outbox.daemon.monitoring import health as health_module
from scoop_outbox.errors import DefinitionError
from scoop_outbox.operations.doctor import Doctor, Fault
from scoop_outbox.wire.control import Kind
from tests.backups import back_up, restore
from tests.docs.markdown import ROOT, blocks
from tests.homes.conftest import MakeHome
from tests.homes.ear import Child, Ear, Peer
from tests.homes.homes import know_each_other, running
from tests.integration.seeing import printed, refused
from tests.scenarios.shop import LONG, Gate, Journal, Shop, launches, raises
from tests.waiting import until

(FORGOTTEN,) = [query for _, query in blocks(ROOT / "docs" / "homes.md", "sql") if "begun_since" in query]
(BELIEVED,) = [query for _, query in blocks(ROOT / "docs" / "homes.md", "sql") if "heard_since" in query]
"""What operators ask after a restore, as the document does."""


def url_of(shop: Shop) -> str:
    return service_of(shop.app).home.url


def faults(shop: Shop) -> list[Fault]:
    with Doctor(url_of(shop)) as doctor:
        return [one.fault for one in doctor.examine().problems]


async def go_back(make_home: MakeHome, shop: Shop, backup: Path) -> Shop:
    """Restore a home that is stopped, as docs/homes.md says, and return the service anew, without its sagas."""
    await shop.app.close()
    restore(url_of(shop), backup)
    again = make_home(shop.app.service, beside=shop)
    again.saga("unused", "unused", None)
    with pytest.raises(DefinitionError, match="or this was restored from a backup, say so: scoop-outbox home moved"):
        async with again.running():
            pass
    await again.app.close()
    assert Fault.MOVED in faults(shop)
    assert printed(url_of(shop), "home", "moved").startswith("moved: other homes are told, and are asked after ")
    assert Fault.MOVED not in faults(shop)
    return make_home(shop.app.service, beside=shop)


async def child_is(shop: Shop, state: str, times: int = 1) -> bool:
    return await shop.ask("select count(*) from scoop_outbox.child where state = %s", state) == [(times,)]


async def test_what_a_home_has_forgotten_fails_its_parent(
    make_home: MakeHome,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health_module, "_FRESH", 0.0)
    orders, stock = make_home("orders"), make_home("stock")
    early, late = Gate(), Gate()
    orders.saga("waits", "W", launches("C"), None)
    orders.saga("undoes", "U", launches("D"), early, raises())
    stock.saga("child", "C", late)
    stock.saga("done", "D", None)
    async with running(orders, stock):
        pass
    back_up(url_of(stock), tmp_path / "stock")
    async with orders.app.running() as found:
        async with stock.running(grace=0):
            await until(lambda: know_each_other(orders, stock), LONG)
            waits, undoes = await orders.app.launch("W", None), await orders.app.launch("U", None)
            await until(lambda: late.entered and early.entered, LONG)
            await until(lambda: child_is(orders, "started"), LONG)
        again = await go_back(make_home, stock, tmp_path / "stock")
        again.saga("child", "C", None)
        again.saga("done", "D", None)
        with caplog.at_level(logging.WARNING):
            async with again.running():
                with pytest.raises(DistributedError, match="home stock does not know this run"):
                    await waits.wait(LONG)
                early.open = True
                with pytest.raises(DistributedError, match="home stock does not know this run"):
                    await undoes.wait(LONG)
                await (await orders.app.launch("W", None)).wait(LONG)
        assert "home: restored (home stock" in caplog.text
        assert "home: children are not known there (home stock does not know 1 runs" in caplog.text
        assert 'scoop_outbox_home_children_lost{home="stock"} 2.0' in await found.metrics()
        assert await found.problems() == {}
        answer = await asyncio.to_thread(found._health.answer, "/readyz", "")
        assert answer is not None
        assert (answer.status, json.loads(answer.body)["notes"]) == (
            200,
            {"homes": "home stock did not know 2 children: their parents are stuck, see scoop-outbox doctor"},
        )
    assert Fault.LOST in faults(orders)
    stuck = printed(url_of(orders), "runs", "--stuck")
    assert re.findall(r"\t(waits|undoes)\t", stuck) in [["waits", "undoes"], ["undoes", "waits"]]


async def test_what_a_home_does_once_more_is_compared(make_home: MakeHome, journal: Journal, tmp_path: Path) -> None:
    """It had committed, and its parent has gone on; from the backup on it fails, and the parent's home knows."""
    orders, stock, first, later = make_home("orders"), make_home("stock"), Gate(), Gate()
    orders.saga("root", "R", launches("C"), later, raises("the card has expired"))
    orders.saga("same", "S", launches("D"), None)
    stock.saga("child", "C", first)
    stock.saga("other", "D", first)
    async with orders.running():
        async with stock.running(grace=0):
            await until(lambda: know_each_other(orders, stock), LONG)
            root, same = await orders.app.launch("R", None), await orders.app.launch("S", None)
            await until(lambda: child_is(orders, "started", 2), LONG)
            back_up(url_of(stock), tmp_path / "stock")
            first.open = True
            await same.wait(LONG)
            await until(lambda: later.entered, LONG)
        again = await go_back(make_home, stock, tmp_path / "stock")
        hold = Gate()
        again.saga("child", "C", hold, raises("no pallet left"))
        again.saga("other", "D", None)
        async with again.running():
            # What was asked has come before it ends: else nobody would ask for what it does once more.
            await until(lambda: again.ask("select from scoop_outbox.foreign_child where generation = 2"), LONG)
            hold.open = True
            await until(lambda: child_is(orders, "rolled_back"), LONG)
            later.open = True
            # It had gone on, and does not fail with it. Nor does it wait for what has been undone already.
            with pytest.raises(DistributedError, match="the card has expired"):
                await root.wait(LONG)
            await until(lambda: again.ask("select from scoop_outbox.run where saga = 'other' and state = 'committed'"))
    assert journal.count("child-rb0") == 1
    assert journal.count("root-rb0") == 1
    assert (await orders.app.status(same.id)).ended


async def test_a_home_that_was_restored_goes_on_with_what_others_have_done(
    make_home: MakeHome, journal: Journal, tmp_path: Path
) -> None:
    orders, stock, gate = make_home("orders"), make_home("stock"), Gate()
    orders.saga("root", "R", launches("C"), None)
    stock.saga("child", "C", gate)
    async with stock.running():
        async with orders.running():
            await until(lambda: know_each_other(orders, stock), LONG)
            early = await orders.app.launch("R", None)
            await until(lambda: child_is(orders, "started"), LONG)
            back_up(url_of(orders), tmp_path / "orders")
            gate.open = True
            await early.wait(LONG)
            late = await orders.app.launch("R", None)
            await late.wait(LONG)
        again = await go_back(make_home, orders, tmp_path / "orders")
        again.saga("root", "R", launches("C"), None)
        async with again.running():
            await again.app.handle(early.id).wait(LONG)
            await (await again.app.launch("R", None)).wait(LONG)
            # What it has forgotten has happened elsewhere. Operators find it, and undo it there.
            ((parent, run, state),) = [
                row for row in await asked(stock, FORGOTTEN) if not await again.ask(*_knows(row[0]))
            ]
            assert state == "committed"
            assert refused(url_of(again), "show", str(parent))
            # Its home is asked whether anything above goes on: it knows of nothing.
            assert await asyncio.to_thread(printed, url_of(stock), "rollback", str(run))
            undone = "select from scoop_outbox.run where id = %s and state = 'rolled_back'"
            await until(lambda: stock.ask(undone, run), LONG)
    assert journal.count("child-rb0") == 1


def _knows(run: uuid.UUID) -> tuple[str, uuid.UUID]:
    return "select from scoop_outbox.run where id = %s", run


async def asked(shop: Shop, question: str) -> list[tuple[Any, ...]]:
    """What one of the document's questions finds of the last hour."""
    text = re.sub("timestamptz '[^']*'", "clock_timestamp() - interval '1 hour'", question)
    return await shop.ask(re.sub("name = '[^']*'", "name like '%%'", text))


async def test_a_parent_that_goes_on_from_before_its_rollback_knows_that_its_child_is_undone(
    make_home: MakeHome, tmp_path: Path
) -> None:
    orders, stock, gate = make_home("orders"), make_home("stock"), Gate()
    orders.saga("root", "R", launches("C"), gate, raises("the card has expired"))
    stock.saga("child", "C", None)
    async with stock.running():
        async with orders.running():
            await until(lambda: know_each_other(orders, stock), LONG)
            handle = await orders.app.launch("R", None)
            await until(lambda: gate.entered, LONG)
            back_up(url_of(orders), tmp_path / "orders")
            gate.open = True
            with pytest.raises(DistributedError, match="the card has expired"):
                await handle.wait(LONG)
        again, hold = await go_back(make_home, orders, tmp_path / "orders"), Gate()
        again.saga("root", "R", launches("C"), hold, None)
        async with again.running():
            await until(lambda: child_is(again, "rolled_back"), LONG)
            hold.open = True
            await again.app.handle(handle.id).wait(LONG)
            assert [row[4] for row in await asked(again, BELIEVED)] == ["rolled_back"]


async def test_a_home_that_was_restored_in_its_place_is_told_so_by_others(
    make_home: MakeHome, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Recovery to a point in time leaves database and cluster what they were: nobody is asked to say anything."""
    orders, stock, gate = make_home("orders"), make_home("stock"), Gate()
    orders.saga("root", "R", launches("C"), None)
    stock.saga("child", "C", gate)
    async with running(orders, stock):
        pass
    back_up(url_of(stock), tmp_path / "stock")
    more = make_home("stock", beside=stock)
    more.saga("child", "C", gate)
    more.saga("another", "D", None)
    async with orders.running():
        async with more.running(grace=0):
            await until(lambda: know_each_other(orders, more), LONG)
            handle = await orders.app.launch("R", None)
            await until(lambda: child_is(orders, "started"), LONG)
        restore(url_of(stock), tmp_path / "stock")
        await stock.execute("update scoop_outbox.home set place = null")
        again = make_home("stock", beside=stock)
        again.saga("child", "C", None)
        with caplog.at_level(logging.WARNING):
            async with again.running():
                with pytest.raises(DistributedError, match="home stock does not know this run"):
                    await handle.wait(LONG)
    assert "home: this one was restored from an older backup (home orders has heard more of it" in caplog.text


async def test_what_was_rolled_back_otherwise_is_reported_when_somebody_asks(ear: Ear) -> None:
    """Its parent has been told under that number that it had committed, before this home was restored."""
    there, children = Peer(), [Child(uuid.uuid4()) for _ in range(3)]
    await ear.take_in(*(there.launched(one) for one in children))
    for one, state in zip(children, ("rolled_back", "rollback_failed", "committed"), strict=True):
        ear.execute("update run set state = %s where id = %s", state, one.run)
    ear.execute("update foreign_child set generation = 2")
    ear.execute("delete from outbox")
    asking = there.orders("roll_back", *(one.said(2) for one in children[:2]))
    await ear.hear(asking)
    await ear.hear(asking)  # what comes twice is reported once
    (told,) = ear.said(Kind.NEWS)
    assert {(one["run"], one["generation"], one["state"]) for one in told["children"]} == {
        (str(children[0].run), 3, "rolled_back"),
        (str(children[1].run), 3, "rollback_failed"),
    }
    ear.execute("delete from outbox")
    await ear.hear(there.orders("where", children[0].said(7), children[2].said(7)))
    (told,) = ear.said(Kind.NEWS)
    assert {(one["generation"], one["state"]) for one in told["children"]} == {(8, "rolled_back"), (7, "committed")}


async def test_who_is_cancelled_and_had_begun_is_not_known_any_more(ear: Ear) -> None:
    there, begun, waiting = Peer(), Child(uuid.uuid4()), Child(uuid.uuid4())
    await ear.hear(there.orders("cancel", begun.said(1), waiting.said(0)))
    told = {one["run"]: one["state"] for said in ear.said(Kind.NEWS) for one in said["children"]}
    assert told == {str(begun.run): "unknown", str(waiting.run): "cancelled"}
    await ear.take_in(there.launched(begun), there.launched(waiting))
    assert ear.count("run") == 0
