"""Postgres keeps the plans of the engine's statements: to make one takes longer than to execute it."""

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from scoop_outbox import AsyncScope, BlockingScope, DistributedError, Message, Scoop
from scoop_outbox.app import service_of
from scoop_outbox.devservers.postgres import PostgresServer
from scoop_outbox.store.migrate import migrate

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
        async with service_of(app).home.driver() as driver:
            found = await (await driver.raw.execute(LOOK)).fetchall()
        with service_of(app).home.blocking_driver() as blocking:
            found_blocking = blocking.raw.execute(LOOK).fetchall()
    for plans in (found, found_blocking):
        assert "scoop_launch_0" in {name for name, *_ in plans}
        assert sum(kept for _, kept, _ in plans) >= RUNS
        assert {name for name, _, anew in plans if anew > 1} == set()  # what sets the plans up is planned once itself


PLANNINGS = {"log_planner_stats": "on", "log_line_prefix": "§%p ", "fsync": "off", "jit": "off"}
"""Has Postgres write into its log whatever it plans. Its extension pg_stat_statements is not in every build of it."""
OFTEN = PLANNED_ANEW + 3
"""For its values, in general, and anew once or twice when statistics come or an index is made."""
DONE = "insert into done values (%s)"
OF_THE_STEP = "insert into done values"
"""Begins what the step itself asks, with whichever parameter."""


async def test_no_statement_but_the_steps_own_is_planned_often_on_a_connection(tmp_path: Path) -> None:
    with PostgresServer(tmp_path, settings=PLANNINGS) as server:
        await asyncio.to_thread(migrate, server.url)
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("create table done (what text)")
        begin = (tmp_path / "server.log").stat().st_size
        app = Scoop("shop", database=server.url)
        order = app.saga("order", on="orders")
        payment = app.saga("payment", on="payments")

        @order.step
        async def pay(scope: AsyncScope, message: Message) -> None:
            await scope.connection.execute(DONE, ["pay"])
            scope.launch("payments", message.payload)

        @pay.compensate
        async def refund(scope: AsyncScope, message: Message, error: Exception) -> None: ...

        @order.step
        async def ship(scope: AsyncScope, message: Message) -> None:
            await (await scope.session.connection()).exec_driver_sql(DONE, ("ship",))
            if message.payload % 3 == 0:
                raise ValueError

        @payment.step
        def book(scope: BlockingScope, message: Message) -> None:
            scope.connection.execute(DONE, ["book"])

        async with app.running(slots=1):
            for number in range(2 * RUNS):
                with contextlib.suppress(DistributedError):
                    await (await app.launch("orders", number)).wait(20)
        await app.close()
    plannings = planned((tmp_path / "server.log").read_bytes()[begin:].decode())
    assert max(count for (_, text), count in plannings.items() if text.startswith(OF_THE_STEP)) >= RUNS
    ours = {one: count for one, count in plannings.items() if not one[1].startswith(OF_THE_STEP)}
    assert len(ours) > 20
    assert {one: count for one, count in ours.items() if count > OFTEN} == {}


def planned(log: str) -> Counter[tuple[str, str]]:
    """Return how often each statement was planned on each connection."""
    entries = re.findall(r"^§(\d+) (\w+):  (.*?)(?=^§|\Z)", log, re.MULTILINE | re.DOTALL)
    plannings: Counter[tuple[str, str]] = Counter()
    waiting = set()
    for pid, kind, text in entries:
        if kind == "LOG" and text.startswith("PLANNER STATISTICS"):
            waiting.add(pid)
        elif kind == "STATEMENT" and pid in waiting:
            waiting.discard(pid)
            plannings[pid, " ".join(text.split())] += 1
    return plannings


PREPARED = "select name, custom_plans from pg_prepared_statements where generic_plans + custom_plans > 6"


async def test_the_statements_of_a_step_are_planned_a_few_times_and_then_no_more(database_url: str) -> None:
    # Their connections have the user's settings, so that Postgres decides: it takes the first five plans as a sample.
    app = Scoop("shop", database=database_url)
    planned_anew: dict[str, int] = {}

    def launch(scope: BlockingScope, _: Message) -> None:
        scope.launch("prices", 1)
        planned_anew.update(scope.connection.execute(PREPARED))

    app.saga("order", on="orders").add_step("launch", launch)
    app.saga("price", on="prices").add_step("nothing", lambda scope, message: None)
    async with app.running(slots=1):
        handles = [await app.launch("orders", number) for number in range(20)]
        for handle in handles:
            await handle.wait(20)
    assert {"scoop_claim_run_0", "scoop_advance_run_0", "scoop_launch_0"} <= planned_anew.keys()
    assert {name: custom for name, custom in planned_anew.items() if custom > 5} == {}


@pytest.mark.parametrize("broker", [None, "kafka://localhost"])
def test_a_launch_in_a_transaction_of_the_users_is_planned_a_few_times_and_then_no_more(
    database_url: str, broker: str | None
) -> None:
    app = Scoop("shop", database=database_url, broker=broker, group=broker and "shop", start=broker and "earliest")
    with psycopg.connect(database_url, autocommit=True) as connection:
        for number in range(20):
            with connection.transaction():
                app.launch_sync("orders", number, session=connection)
        assert [custom for _, custom in connection.execute(PREPARED)] == [5]
