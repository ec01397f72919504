"""(c) Steps per second with a past: finished runs that are kept."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import AsyncExitStack

from benchmarks.control import Control
from benchmarks.sagas import SERVICE, STEPS
from benchmarks.server import Bench
from benchmarks.table import Table, Target, ratios
from benchmarks.work import execute

SLOTS = 16
LEAST = 0.95

# Families of a root and three children, as old as their ids say, with payloads and contexts of ordinary width.
ID = "('01920000-0000-7000-{}000-' || lpad(to_hex({}), 12, '0'))::uuid"
RUN, MESSAGE, ROOT = ID.format(8, "n"), ID.format(9, "n"), ID.format(8, "(n - n %% 4)")
# Each at a time of its own, as a clock tells it: pruning goes by that, and searches among those of one time.
OLD = "now() - interval '1 day' + n * interval '10 microseconds'"
LAUNCHED_AT = (
    '[{"fileName":"shop/sagas/orders.py","className":"","lineNumber":120,"functionName":"reserve_stock"},'
    '{"fileName":"shop/sagas/__init__.py","className":"","lineNumber":14,"functionName":"place_order"}]'
)
MESSAGES = f"""
insert into message (id, topic, key, body, content_type, headers, created_at)
select {MESSAGE}, 'old.topic', 'customer-' || n %% 1000,
       convert_to('{{"order":' || n || ',"text":"' || repeat('x', 180) || '"}}', 'UTF8'),
       'application/json', ('{{"trace":"' || md5(n::text) || '"}}')::json, {OLD}
from generate_series(1, %(count)s) n
"""
RUNS = f"""
insert into run (id, message_id, service, saga, lineage, parent_run, state, step, seq, instance, context, launched_at,
                 created_at, ended_at)
select {RUN}, {MESSAGE}, %(service)s, 'steps-async',
       case n %% 4 when 0 then array[{RUN}] else array[{ROOT}, {RUN}] end, case n %% 4 when 0 then null else {ROOT} end,
       'committed', 'step 2', 3, 3, '{{"tenant":"north","user":"somebody@example.org"}}', %(launched_at)s::json,
       {OLD}, {OLD}
from generate_series(1, %(count)s) n
"""
STEP_ROWS = f"""
insert into step (run_id, seq, step, kind, iteration, attempt, state, started_at, ended_at, worker)
select {RUN}, seq, 'step ' || seq - 1, 'step', 0, 0, 'committed', {OLD}, {OLD},
       '01920000-0000-7000-8000-000000000000'
from generate_series(1, %(count)s) n, generate_series(1, 3) seq
"""
CHILDREN = f"""
insert into child (message_id, service, saga, run_id, seq, ordinal, open, state, child_run)
select {MESSAGE}, %(service)s, 'steps-async', {ROOT}, 1, n %% 4, false, 'committed', {RUN}
from generate_series(1, %(count)s) n where n %% 4 <> 0
"""
TABLES = ("message", "run", "step", "child", "mailbox", "outbox")


async def fill_with_finished(control: Control, count: int) -> None:
    """Write so many finished runs."""
    for statement in (MESSAGES, RUNS, STEP_ROWS, CHILDREN):
        await control.all(statement, {"count": count, "service": SERVICE, "launched_at": LAUNCHED_AT})


async def measure(bench: Bench) -> list[Table]:
    """Compare empty and full databases."""
    sizes = (0, bench.size(100_000, 10_000), bench.size(1_000_000, 100_000))
    async with AsyncExitStack() as stack:
        databases = []
        for size in sizes:
            control = await stack.enter_async_context(bench.database())
            await fill_with_finished(control, size)
            databases.append(control)
        rates = await compare(bench, databases)
    return [compared("(c) steps per second with finished runs kept", "finished runs", sizes, rates)]


async def compare(bench: Bench, databases: Sequence[Control]) -> list[list[float]]:
    """Measure each database in turn, again and again."""
    rates: list[list[float]] = [[] for _ in databases]
    for control in databases:
        await control.settle(*TABLES)
        await execute(control, "steps.async", bench.size(500, 200), SLOTS)  # caches and plans
    for turn in range(1 if bench.smoke else bench.runs * 2):
        # Forwards, then backwards: what only grows with time hits all alike.
        order = range(len(databases)) if turn % 2 == 0 else reversed(range(len(databases)))
        for index in order:
            done = await execute(databases[index], "steps.async", bench.size(2500, 400), SLOTS)
            rates[index].append(done.per_second * STEPS)
    return rates


def compared(title: str, column: str, sizes: Sequence[int], rates: Sequence[Sequence[float]]) -> Table:
    """Show rates as shares of the rate of the empty database."""
    table = Table(f"{title} (async def, {SLOTS} slots)", (column, "steps per second", "ratio to none"))
    for size, rate in zip(sizes, rates, strict=True):
        share = ratios(rate, rates[0])
        table.add(f"{size:,}", rate, share)
        if size:
            table.targets.append(Target(f"{size:,} {column}: at least {LEAST}", statistics.median(share), LEAST))
    return table
