"""Postgres keeps the plans of the engine's statements: to make one takes longer than to execute it."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import psycopg

from scoop_outbox import AsyncScope, DistributedError, Message, Scoop

PLANNED_ANEW = 5
"""How often Postgres plans a prepared statement for its values before it compares."""
RUNS = 12
FULL = """
insert into scoop_outbox.mailbox (service, saga, run_id, due)
select 'other', 'other', gen_random_uuid(), now() + interval '1 day' from generate_series(1, 10000);
analyze
"""
LOOK = "select name, generic_plans, custom_plans from pg_prepared_statements where starts_with(name, 'scoop_')"


async def test_a_statement_of_a_step_is_not_planned_each_time(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(FULL)
    app = Scoop("shop", database=database_url)
    found: Sequence[Any] = []
    order = app.saga("order", on="orders")
    payment = app.saga("payment", on="payments")

    @order.step
    async def pay(scope: AsyncScope, message: Message) -> None:
        scope.launch("payments", message.payload)

    @pay.compensate
    async def refund(scope: AsyncScope, message: Message, error: Exception) -> None: ...

    @order.step
    async def ship(scope: AsyncScope, message: Message) -> None:
        nonlocal found
        if message.payload % 2:
            raise ValueError
        cursor = await scope.connection.execute(LOOK)
        found = await cursor.fetchall()

    @payment.step
    async def book(scope: AsyncScope, message: Message) -> None: ...

    async with app.running(slots=1):
        for number in reversed(range(2 * RUNS)):
            with contextlib.suppress(DistributedError):
                await (await app.launch("orders", number)).wait(20)
    await app.close()

    often = {name: (kept, anew) for name, kept, anew in found if kept + anew >= RUNS}
    assert "scoop_advance_run_0" in often
    assert {name for name, plans in often.items() if plans[1] > PLANNED_ANEW} == set()


async def test_a_statement_of_the_machinery_is_planned_once(database_url: str) -> None:
    app = Scoop("shop", database=database_url)
    app.saga("order", on="orders").add_step("only", lambda scope, message: None)
    async with app.running():
        for number in range(RUNS):
            await (await app.launch("orders", number)).wait(20)
            await asyncio.to_thread((await asyncio.to_thread(app.launch_sync, "orders", number)).wait_sync, 20)
        async with app.home.driver() as driver:
            found = await (await driver.raw.execute(LOOK)).fetchall()
        with app.home.blocking_driver() as blocking:
            found_blocking = blocking.raw.execute(LOOK).fetchall()
    for plans in (found, found_blocking):
        assert "scoop_launch_0" in {name for name, *_ in plans}
        assert sum(kept for _, kept, _ in plans) >= RUNS
        assert {name for name, _, anew in plans if anew > 1} == set()  # what sets the plans up is planned once itself
