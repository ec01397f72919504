"""Homes that share keys believe each other, and nobody else; what is not believed stops nothing."""

import json
import logging
from typing import Any

import pytest

from tests.homes.conftest import MakeHome
from tests.homes.homes import forge, running
from tests.scenarios.shop import LONG, Journal, Shop, launches
from tests.waiting import until

NEW, OLD = "2027:" + "5ec2e7" * 8, "2026:" + "0dd5ec" * 8


def family(orders: Shop, stock: Shop) -> None:
    """A root in one home that waits for a child in another one."""
    orders.saga("root", "R", launches("C"), None)
    stock.saga("child", "C", lambda scope, _: scope.set_result(7))


async def dead_letters(shop: Shop) -> list[tuple[Any, ...]]:
    """Who could not take which messages in, and why."""
    return await shop.ask("select service, topic, body, reason from scoop_outbox.dead_letter order by id")


async def test_homes_that_share_keys_cooperate_while_they_change_them(
    make_home: MakeHome, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCOOP_OUTBOX_CONTROL_KEYS", f"{OLD}\n{NEW}")
    orders, stock = make_home("orders"), make_home("stock", control_keys=f"{NEW}, {OLD}")
    family(orders, stock)
    async with running(orders, stock):
        handle = await orders.app.launch("R", None)
        await handle.wait(LONG)
    assert journal == ["root-0", "child-0", "root-1"]
    assert await dead_letters(orders) == await dead_letters(stock) == []


async def test_what_nobody_has_signed_steers_nothing(
    make_home: MakeHome, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    orders, stock = make_home("orders", control_keys=NEW), make_home("stock", control_keys=[NEW])
    stranger = make_home("stranger", control_keys=OLD)
    family(orders, stock)
    stranger.saga("thief", "R", launches("C"))
    plain = make_home("plain")
    async with running(orders, stock):
        handle = await orders.app.launch("R", None)
        await handle.wait(LONG)
        said = {
            "version": 1,
            "kind": "subscriptions",
            "from": {"id": str(handle.id), "name": "x", "replyTo": "control.x"},
        }
        body = {**said, "revision": 1, "subscriptions": [], "known": {}}
        async with plain.running(worker=False), stranger.running(worker=False):
            await forge(plain.app, "scoop.control.stock", body)  # without a signature
            await forge(stranger.app, "scoop.control.stock", body)  # with one of another key
            await forge(stranger.app, "scoop.homes", body)
            # Messages that say nothing of ours are taken in as ever.
            await plain.app.launch("C", None)
            await until(lambda: all_are_there(stock, journal), LONG)
        await handle.wait(LONG)
        again = await orders.app.launch("R", None)
        await again.wait(LONG)

    found = await dead_letters(stock)
    assert {service for service, *_ in found} == {"scoop.control.stock"}
    assert json.loads(found[0][2]) == body
    assert {reason for *_, reason in found} == {
        "not believed: it is not signed, and this home has control keys",
        "not believed: it is signed with the key '2026', which is not among the control keys of this home",
    }
    assert {name for (name,) in await stock.ask("select name from scoop_outbox.peer")} == {"orders"}
    assert journal == ["root-0", "child-0", "root-1", "child-0", "root-0", "child-0", "root-1"]
    assert "not believed" in caplog.text
    assert "5ec2e7" not in caplog.text + repr(orders.app) + repr(vars(orders.app))
    for record in caplog.records:
        assert "5ec2e7" not in repr(record.__dict__)
    assert logging.getLogger("scoop_outbox").level <= logging.WARNING


async def all_are_there(stock: Shop, journal: Journal) -> bool:
    return len(await dead_letters(stock)) >= 3 and journal.entries.count("child-0") == 2


async def test_a_message_that_pretends_to_be_waited_for_is_a_dead_letter(make_home: MakeHome, journal: Journal) -> None:
    orders, stock = make_home("orders"), make_home("stock", control_keys=NEW)
    family(orders, stock)
    async with orders.running(), stock.running():
        # Whoever has no keys believes who has some, not the other way round.
        known = "select from scoop_outbox.peer_subscription where service = 'stock'"
        await until(lambda: orders.ask(known), LONG)
        handle = await orders.app.launch("R", None)
        await until(lambda: pretended(stock), LONG)
        await stock.app.launch("C", None)
        await until(lambda: "child-0" in journal.entries, LONG)
    assert journal == ["root-0", "child-0"]
    (letter,) = await pretended(stock)
    assert letter == (
        "stock",
        "C",
        b"null",
        "another home is said to wait for it, but it is not signed, and this home has control keys",
    )
    assert {run.state.value for run in await orders.runs(handle, "root")} == {"running"}


async def pretended(stock: Shop) -> list[tuple[Any, ...]]:
    return [one for one in await dead_letters(stock) if one[0] == "stock"]


async def test_what_is_not_signed_yet_is_believed_while_keys_are_rolled_out(
    make_home: MakeHome, journal: Journal
) -> None:
    orders, stock = make_home("orders"), make_home("stock", control_keys=[NEW, "unsigned"])
    family(orders, stock)
    async with running(orders, stock):
        await (await orders.app.launch("R", None)).wait(LONG)
    assert journal == ["root-0", "child-0", "root-1"]
