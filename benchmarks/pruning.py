"""(s) Pruning: what it costs beside what executing did, and how work goes on meanwhile."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

from benchmarks.control import Control
from benchmarks.costs import Meter, Server
from benchmarks.history import TABLES, fill_with_finished
from benchmarks.sagas import STEPS, build
from benchmarks.server import Bench
from benchmarks.table import Table, Target, ratios
from benchmarks.work import execute, launch_in_bulk, until_done
from scoop_outbox import Pruning, PruningOptions

SLOTS = 16
MOST_SHARE, LEAST_RATE = 0.25, 0.9
FAMILY = 4
_PARTS = ("message", "run", "step", "child", "failure", "request")
_OLDER = """
with runs as (update run set created_at = created_at - interval '1 day', ended_at = ended_at - interval '1 day')
update message set created_at = created_at - interval '1 day'
"""
_DEAD = "select coalesce(sum(n_dead_tup), 0)::bigint from pg_stat_user_tables where relname = any(%(tables)s)"
_AT_ONCE = PruningOptions(timedelta(hours=1), pause=0.0)
_REST = 100_000
_NAPS = 180.0
"""Seconds that autovacuum gets behind the last hierarchy; it looks once a minute."""


async def measure(bench: Bench) -> list[Table]:
    """Measure the cost, then the rate of work."""
    return [await _costs(bench), await _rates(bench)]


async def _costs(bench: Bench) -> Table:
    columns: dict[tuple[str, str], list[float]] = defaultdict(list)
    topics = {"steps.async": "one run of three steps", "tree.parent": "three runs, seven steps"}
    for _ in range(bench.runs):
        for topic in topics:
            async with bench.database() as control:
                await _cost(control, topic, bench.size(5000, 500), columns)
    table = Table(
        "(s) pruning: ms of the server's processors for each hierarchy",
        ("hierarchy", "executing", "pruning", "ratio"),
    )
    for topic, shown in topics.items():
        executing, pruning = columns[topic, "executing"], columns[topic, "pruning"]
        if not executing:
            table.notes.append("The server's processors are not on this machine.")
            continue
        share = ratios(pruning, executing)
        table.add(shown, executing, pruning, share)
        table.targets.append(Target(f"{shown}: at most {MOST_SHARE}", statistics.median(share), most=MOST_SHARE))
    table.notes.append(
        "Executing is from the launch to the end, relay and intake included. Vacuum is part of pruning only."
    )
    return table


async def _cost(control: Control, topic: str, count: int, columns: dict[tuple[str, str], list[float]]) -> None:
    server = await Server.of(control)
    app = build(control.url)
    async with app.running(slots=SLOTS):  # plans and caches
        await launch_in_bulk(app, topic, 50)
        await until_done(control)
        meter = Meter(server, ())
        await launch_in_bulk(app, topic, count)
        await until_done(control)
        executing = meter.spent().postgres
    await control.all(_OLDER)
    await control.settle(*_PARTS)
    meter = Meter(server, ())
    with Pruning(control.url) as pruning:
        counts = await asyncio.to_thread(pruning.prune, _AT_ONCE)
    await control.settle(*_PARTS)
    assert counts.hierarchies == count + 50, counts
    spent = meter.spent().postgres
    if executing is not None and spent is not None:
        columns[topic, "executing"].append(executing * 1000 / count)
        columns[topic, "pruning"].append(spent * 1000 / counts.hierarchies)


async def _rates(bench: Bench) -> Table:
    count = bench.size(1_000_000, 20_000)
    alone: list[float] = []
    beside: list[float] = []
    async with bench.database() as control:
        await fill_with_finished(control, count * FAMILY)
        await control.settle(*TABLES)
        size = bench.size(2500, 400)
        await execute(control, "steps.async", size, SLOTS)
        for _ in range(1 if bench.smoke else bench.runs * 2):
            alone.append((await execute(control, "steps.async", size, SLOTS)).per_second * STEPS)
            async with _pruning(control):
                beside.append((await execute(control, "steps.async", size, SLOTS)).per_second * STEPS)
        share = ratios(beside, alone)
        table = Table("(s) steps per second while finished hierarchies are pruned", ("", "steps per second", "ratio"))
        table.add("alone", alone, [1.0])
        table.add("beside pruning", beside, share)
        table.targets.append(Target(f"at least {LEAST_RATE}", statistics.median(share), least=LEAST_RATE))
        table.notes.append(await _rest(bench, control, count))
    return table


async def _rest(bench: Bench, control: Control, count: int) -> str:
    """Prune a part of what is left, with pauses; tell how fast it goes, and what autovacuum leaves of it."""
    rest = min(_REST, count // 2)
    began = time.monotonic()
    with Pruning(control.url) as pruning:
        await asyncio.to_thread(pruning.prune, PruningOptions(timedelta(hours=1), limit=rest))
    took = time.monotonic() - began
    deadline = time.monotonic() + (0 if bench.smoke or bench.quick else _NAPS)
    while time.monotonic() < deadline and await control.one(_DEAD, {"tables": list(_PARTS)}) > rest * 0.2:
        await asyncio.sleep(1)
    dead = await control.one(_DEAD, {"tables": list(_PARTS)})
    rate = f"{rest:,} of them went at {rest / took:,.0f} a second, with pauses."
    return f"{count:,} hierarchies of {FAMILY} runs. {rate} Autovacuum has left {dead:,} dead rows."


@asynccontextmanager
async def _pruning(control: Control) -> AsyncIterator[None]:
    """Prune in a process of its own, with pauses, as long as the block lasts."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "scoop_outbox", "prune", "--older-than", "1h", "--database", control.url
    )
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
