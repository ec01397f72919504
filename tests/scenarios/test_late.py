"""Q67: whoever is subscribed when a message is taken in handles it; whom nobody waited for, late."""

import asyncio
import logging
from typing import Any

import psycopg
import pytest

from scoop_outbox import Message, RunState, Scoop, Scope, Status
from scoop_outbox.app import service_of
from scoop_outbox.core.plans.intake import take_in
from scoop_outbox.message import Envelope
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from tests.waiting import until


class Journal(list[str]):
    """What happened, in order."""


def ask(url: str, question: str, *values: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, options=f"-c search_path={DEFAULT_SCHEMA}") as connection:
        return connection.execute(question.encode(), values).fetchall()


def launching(url: str, journal: Journal, *, fails: bool = False) -> Scoop:
    """A service whose saga launches on `placed`, and then goes on, or fails."""
    shop = Scoop("shop", database=url)
    order = shop.saga("order", on="orders")

    @order.step
    async def place(scope: Scope, message: Message) -> None:
        scope.launch("placed", message.payload, key="k", context={"tenant": "acme"})

    @place.compensate
    async def unplace(scope: Scope, message: Message, error: Exception) -> None:
        journal.append("unplaced")

    @order.step
    async def confirm(scope: Scope, message: Message) -> None:
        journal.append("confirmed")
        if fails:
            raise ValueError("out of luck")

    return shop


def auditing(
    url: str, journal: Journal, colour: str = "async", *, below: str | None = None, fails: bool = False
) -> Scoop:
    """A service that was not there when `placed` was launched; it may launch something itself, and fail."""
    audit = Scoop("audit", database=url)
    saga = audit.saga("audit", on="placed")

    def note(scope: Scope, message: Message) -> None:
        journal.append(f"audited {scope.context.get('tenant')}")
        if below is not None:
            scope.launch(below, message.payload)

    async def note_async(scope: Scope, message: Message) -> None:
        note(scope, message)

    def undo(scope: Scope, message: Message, error: Exception) -> None:
        journal.append("unaudited")

    def end(scope: Scope, message: Message) -> None:
        journal.append("audit ends")
        if fails:
            raise ValueError("cannot be audited")

    saga.add_step("note", note_async if colour == "async" else note, compensate=undo)
    saga.add_step("end", end)
    if below is not None:
        audit.saga("below", on=below).add_step("only", lambda scope, message: journal.append("below"))
    return audit


async def placed_before_anybody_listens(url: str, shop: Scoop) -> Any:
    """Launch an order, and let it launch in turn, without anybody taking that in."""
    async with shop.running(worker=False):
        handle = await shop.launch("orders", 1)
        await until(lambda: ask(url, "select count(*) from run") == [(1,)])
    async with shop.running(relay=False):
        await until(lambda: ask(url, "select topic from outbox") == [("placed",)])
        await handle.wait(20) if not ask(url, "select 1 from child") else None
    return handle


async def ended(shop: Scoop, handle: Any) -> Status:
    status: Status

    async def look() -> bool:
        nonlocal status
        status = await shop.status(handle.id)
        return len(status.runs) > 1 and status.ended

    await until(look, 20)
    return status


@pytest.mark.parametrize("colour", ["async", "blocking"])
async def test_q67_what_was_launched_before_a_service_was_known_is_handled_by_it(
    database_url: str, colour: str
) -> None:
    journal = Journal()
    shop, audit = launching(database_url, journal), auditing(database_url, journal, colour, below="below")
    handle = await placed_before_anybody_listens(database_url, shop)
    assert journal == ["confirmed"], "nobody is waited for"
    async with audit.running():
        status = await ended(shop, handle)
    # It waits for what it launches itself, as any run does.
    assert journal == ["confirmed", "audited acme", "below", "audit ends"]
    root = next(run for run in status.runs if run.saga == "order")
    late = next(run for run in status.runs if run.saga == "audit")
    below = next(run for run in status.runs if run.saga == "below")
    assert [(run.late, run.parent, run.state) for run in (root, late, below)] == [
        (False, None, RunState.COMMITTED),
        (True, root.id, RunState.COMMITTED),
        (False, late.id, RunState.COMMITTED),
    ]
    assert late.launched_by is None
    await shop.close()


async def test_q67_a_late_run_that_fails_tells_nobody_but_the_log(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal()
    shop, audit = launching(database_url, journal), auditing(database_url, journal, fails=True)
    handle = await placed_before_anybody_listens(database_url, shop)
    with caplog.at_level(logging.ERROR):
        async with audit.running():
            status = await ended(shop, handle)
    assert {run.saga: run.state for run in status.runs} == {"order": RunState.COMMITTED, "audit": RunState.ROLLED_BACK}
    assert journal == ["confirmed", "audited acme", "audit ends", "unaudited"]
    await handle.wait(5)  # it has committed
    late = next(run.id for run in status.runs if run.late)
    assert f"saga audit, run {late}: rolled_back, and no parent waits for it" in caplog.text
    assert "cannot be audited" not in caplog.text
    await shop.close()


async def test_q67_no_rollback_reaches_a_late_run(database_url: str) -> None:
    journal = Journal()
    shop, audit = launching(database_url, journal, fails=True), auditing(database_url, journal)
    expected = Scoop("stock", database=database_url)
    expected.saga("stock", on="placed").add_step("only", lambda scope, message: journal.append("stock"))
    async with shop.running(worker=False):
        handle = await shop.launch("orders", 1)
        await until(lambda: ask(database_url, "select count(*) from run") == [(1,)])
    await expected.announce()
    async with shop.running(relay=False):
        await until(lambda: ask(database_url, "select topic from outbox") == [("placed",)])
    async with audit.running():
        await until(lambda: "audit ends" in journal, 20)
    async with shop.running(), expected.running(relay=False):
        status = await ended(shop, handle)
    assert {run.saga: (run.state, run.late) for run in status.runs} == {
        "order": (RunState.ROLLED_BACK, False),
        "stock": (RunState.ROLLED_BACK, False),
        "audit": (RunState.COMMITTED, True),
    }
    assert "unaudited" not in journal
    await shop.close()


async def test_q67_a_late_run_begins_once_however_often_the_message_comes(database_url: str) -> None:
    journal = Journal()
    shop, audit = launching(database_url, journal), auditing(database_url, journal)
    handle = await placed_before_anybody_listens(database_url, shop)
    (row,) = ask(database_url, "select message_id::text, body, headers from outbox")
    again = Envelope(row[0], "placed", "k", bytes(row[1]), "application/json", row[2])
    async with audit.running():
        await ended(shop, handle)
        async with service_of(audit).home.driver() as driver:
            for service in (None, "audit", None, "audit"):
                assert await driver.run(take_in([again], service_of(audit).hints, service=service)) == []
    # Nor does who comes even later.
    third = Scoop("third", database=database_url)
    third.saga("third", on="placed").add_step("only", lambda scope, message: None)
    await third.announce()
    async with service_of(third).home.driver() as driver:
        await driver.run(take_in([again], service_of(third).hints))
    await third.close()
    assert ask(database_url, "select saga from run order by saga") == [("audit",), ("order",)]
    await shop.close()


async def test_q67_services_that_take_in_for_themselves_do_so_each_when_it_gets_the_message(database_url: str) -> None:
    journal = Journal()
    shop, audit = launching(database_url, journal), auditing(database_url, journal)
    expected = Scoop("stock", database=database_url)
    expected.saga("stock", on="placed").add_step("only", lambda scope, message: None)
    async with shop.running(worker=False):
        await shop.launch("orders", 1)
        await until(lambda: ask(database_url, "select count(*) from run") == [(1,)])
    await expected.announce()
    async with shop.running(relay=False):
        await until(lambda: ask(database_url, "select topic from outbox") == [("placed",)])
    (row,) = ask(database_url, "select message_id::text, body, headers from outbox")
    message = Envelope(row[0], "placed", "k", bytes(row[1]), "application/json", row[2])
    async with service_of(shop).home.driver() as driver:
        assert await driver.run(take_in([message], service_of(shop).hints, service="stock")) == []
        # Nobody of this service is there: whoever takes it in has to say so.
        assert await driver.run(take_in([message], service_of(shop).hints, service="audit")) == [row[0]]
        await audit.announce()
        for _ in range(2):
            assert await driver.run(take_in([message], service_of(shop).hints, service="audit")) == []
    assert ask(database_url, "select saga, late, parent_run is null from run where saga <> 'order' order by saga") == [
        ("audit", True, True),
        ("stock", False, False),
    ]
    for app in (shop, audit, expected):
        await app.close()


async def test_q67_a_late_run_of_an_ordered_saga_has_its_turn(database_url: str) -> None:
    journal = Journal()
    shop = launching(database_url, journal)
    handles = [await placed_before_anybody_listens(database_url, shop)]
    gate, at_work = asyncio.Event(), list[int]()
    audit = Scoop("audit", database=database_url)

    async def work(scope: Scope, message: Message) -> None:
        at_work.append(1)
        await gate.wait()

    audit.saga("audit", on="placed", ordered="key").add_step("work", work)
    async with audit.running():
        await until(lambda: at_work)
        following = await audit.launch("placed", 2, key="k")
        await until(lambda: ask(database_url, "select count(*) from lane_entry") == [(2,)])
        await until(lambda: ask(database_url, "select count(*) from lane_entry where held") == [(1,)])
        gate.set()
        await following.wait(20)
    assert len(at_work) == 2
    assert len(handles) == 1
    await shop.close()
