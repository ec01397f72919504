"""(b) A parent of three steps with two children of two steps each, and the hop to a child and back."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import psycopg

from benchmarks.control import Control
from benchmarks.sagas import STEPS, TREE_STEPS, build
from benchmarks.server import Bench
from benchmarks.table import Table, Target, percentile, ratios
from benchmarks.work import WARM_UP, done_since, execute, prepare, release, until_ended, warm
from scoop_outbox import Scoop

SLOTS = 16
MOST_HOP = 5.0
MOST_COMMITS = 10.0

# From the statement that ended the last child, in the transaction that commits it, to the parent's next step.
_GAPS = """
select extract(epoch from s.started_at - max(c.ended_at))::float8 * 1000
from held
join child on child.run_id = held.run_id and child.seq = 1
join run c on c.id = child.child_run
join step s on s.run_id = held.run_id and s.seq = 2
group by held.run_id, s.started_at
"""
_TELL = """
create function tell_ended() returns trigger language plpgsql as
$$begin perform pg_notify('benchmark_ended', new.message_id::text); return null; end$$;
create trigger tell_ended after update on run for each row
when (new.ended_at is not null and old.ended_at is null and new.parent_run is null) execute function tell_ended();
create table held (id bigint generated always as identity primary key, run_id uuid not null, service text, saga text);
"""


async def measure(bench: Bench) -> list[Table]:
    """Measure loaded, then idle."""
    columns: dict[str, list[float]] = defaultdict(list)
    for _ in range(bench.runs):
        await _loaded(bench, columns)
        await _idle(bench, columns)
    loaded = Table(
        "(b) trees under load: 7 steps in 3 runs, one process, 16 slots",
        (
            "",
            "trees per second",
            "steps per second",
            "of steps without children",
            "commits per tree",
            "of them idle ones",
        ),
    )
    loaded.add(
        "all launched at once", *(columns[name] for name in ("trees", "steps", "ratio", "commits", "idle commits"))
    )
    loaded.targets.append(
        Target(
            f"commits per tree: at most {MOST_COMMITS:.0f}", statistics.median(columns["commits"]), most=MOST_COMMITS
        )
    )
    latency = Table(
        "(b) latency in ms: from the last child's end to the parent's next step; from launch to the root's end",
        ("", "p50", "p99"),
    )
    for name, shown in (
        ("gap loaded", "child to parent, loaded"),
        ("gap idle", "child to parent, idle"),
        ("hop idle", "launch to the root's end, one child, idle"),
        ("tree idle", "launch to the root's end, tree of 7 steps, idle"),
    ):
        latency.add(shown, columns[f"{name} p50"], columns[f"{name} p99"])
    latency.targets.append(
        Target(f"idle hop p50: at most {MOST_HOP:.0f} ms", statistics.median(columns["hop idle p50"]), most=MOST_HOP)
    )
    latency.notes += [
        "Child to parent includes the flush of the child's commit: both times are the database's.",
        "Launch to end: in the launching process, until a notification comes that the root's commit sends.",
        f"Commits per tree when one tree runs alone: {statistics.median(columns['commits alone']):.1f}.",
    ]
    return [loaded, latency]


async def _loaded(bench: Bench, columns: dict[str, list[float]]) -> None:
    count = bench.size(500, 150)
    async with bench.database() as control:
        steps = await execute(control, "steps.async", count * 2, SLOTS)
        await prepare(control, "tree.parent", count)
        before = await control.commits()
        lasted = time.monotonic()
        async with warm(control, SLOTS, relay=True):
            started = await release(control)
            await until_ended(control)
            done = await done_since(control, started)
        lasted = time.monotonic() - lasted
        gross = await control.commits() - before
        # The same for the same time with nothing to do: start, polling, end.
        async with build(control.url).running(slots=SLOTS):
            await asyncio.sleep(lasted)
        idle = await control.commits() - before - gross
        columns["trees"].append(done.per_second)
        columns["steps"].append(done.per_second * TREE_STEPS)
        columns["ratio"] += ratios([done.per_second * TREE_STEPS], [steps.per_second * STEPS])
        columns["commits"].append(gross / (count + WARM_UP))
        columns["idle commits"].append(idle / (count + WARM_UP))
        await _gaps(control, "gap loaded", columns)


async def _idle(bench: Bench, columns: dict[str, list[float]]) -> None:
    count = bench.size(100, 30)
    async with bench.database() as control:
        await control.all(_TELL)
        app = build(control.url)
        async with app.running(slots=SLOTS), _ended(control) as ended:
            await _one_by_one(app, ended, "hop.root", 10)
            hops = await _one_by_one(app, ended, "hop.root", count)
        before = await control.commits()
        lasted = time.monotonic()
        async with app.running(slots=SLOTS), _ended(control) as ended:
            trees = await _one_by_one(app, ended, "tree.parent", count)
        lasted = time.monotonic() - lasted
        gross = await control.commits() - before
        async with app.running(slots=SLOTS):
            await asyncio.sleep(lasted)
        idle = await control.commits() - before - gross
        for name, took in (("hop idle", hops), ("tree idle", trees)):
            columns[f"{name} p50"].append(percentile(took, 0.5))
            columns[f"{name} p99"].append(percentile(took, 0.99))
        columns["commits alone"].append((gross - idle) / count)
        await control.all("insert into held (run_id) select id from run where saga = 'tree-parent'")
        await _gaps(control, "gap idle", columns)


async def _gaps(control: Control, name: str, columns: dict[str, list[float]]) -> None:
    gaps = [float(gap) for (gap,) in await control.all(_GAPS)]
    columns[f"{name} p50"].append(percentile(gaps, 0.5))
    columns[f"{name} p99"].append(percentile(gaps, 0.99))


@asynccontextmanager
async def _ended(control: Control) -> AsyncIterator[AsyncIterator[psycopg.Notify]]:
    """Yield the messages whose runs have ended, as their commits are told."""
    connection = await psycopg.AsyncConnection.connect(control.url, autocommit=True)
    async with connection:
        await connection.execute(b"listen benchmark_ended")
        # Its generator holds the connection: it must end before the connection can.
        async with aclosing(connection.notifies()) as notifies:
            yield notifies


async def _one_by_one(app: Scoop, ended: AsyncIterator[psycopg.Notify], topic: str, count: int) -> list[float]:
    """Launch one message after the other, with pauses; return milliseconds from before the launch to the end."""
    took = []
    for number in range(count):
        await asyncio.sleep(random.uniform(0.02, 0.06))
        started = time.perf_counter()
        handle = await app.launch(topic, {"number": number})
        while (await anext(ended)).payload != str(handle.id):
            pass
        took.append((time.perf_counter() - started) * 1000)
    return took
