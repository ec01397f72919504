"""(b) A parent of three steps with two children of two steps each, and the hop to a child and back."""

from __future__ import annotations

import asyncio
import functools
import random
import statistics
import time
from collections import defaultdict

from benchmarks.control import Control
from benchmarks.sagas import STEPS, TREE_STEPS, build
from benchmarks.server import Bench
from benchmarks.table import Table, Target, percentile, ratios, text
from benchmarks.work import WARM_UP, done_since, execute, prepare, release, until_done, until_ended, warm
from scoop_outbox import Scoop
from scoop_outbox.app import service_of

SLOTS = 16
MOST_HOP = 5.0
MOST_COMMITS = 10.0
PARTLY = 0.4
"""Share of what is possible at which latency under load is measured: at more, only the length of the queue is."""
# Commits that must follow each other, the launch's among them; of siblings, one.
HOP_COMMITS = 6
TREE_COMMITS = 8

# From the statement that ended the last child, in the transaction that commits it, to the parent's next step.
_GAPS = """
select extract(epoch from s.started_at - max(c.ended_at))::float8 * 1000
from held
join child on child.run_id = held.run_id and child.seq = 1
join run c on c.id = child.child_run
join step s on s.run_id = held.run_id and s.seq = 2
group by held.run_id, s.started_at
"""
_TABLES = """
create table held (run_id uuid not null);
create table probe (n integer not null);
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
        ("", "p50", "p99", "p50 to as many lone commits"),
    )
    for name, shown in (
        ("gap loaded", "child to parent, all launched at once"),
        ("gap partly", f"child to parent, at {PARTLY:.0%} of that rate"),
        ("gap idle", "child to parent, idle"),
        ("hop idle", f"launch to the root's end, one child, idle: {HOP_COMMITS} commits"),
        ("tree idle", f"launch to the root's end, tree of 7 steps, idle: {TREE_COMMITS} commits"),
    ):
        latency.add(shown, columns[f"{name} p50"], columns[f"{name} p99"], columns[f"{name} ratio"])
    latency.targets.append(
        Target(f"idle hop p50: at most {MOST_HOP:.0f} ms", statistics.median(columns["hop idle p50"]), most=MOST_HOP)
    )
    latency.notes += [
        "Child to parent includes the flush of the child's commit: both times are the database's.",
        "Launch to end: in one process, from before the launch until the commit of the root's end has returned.",
        "A lone commit inserts one row; it is measured between the launches.",
        f"Commits per tree when one runs alone, with the polling that follows it: {text(columns['commits alone'])}.",
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
        await _launch_now_and_then(control, count, done.per_second * PARTLY)
        await _gaps(control, "gap partly", columns)


async def _launch_now_and_then(control: Control, count: int, per_second: float) -> None:
    """Launch messages at random times, and hold what became of them."""
    app = build(control.url)
    async with app.running(slots=SLOTS):
        handles = []
        due = time.monotonic()
        for number in range(count):
            due += random.expovariate(per_second)
            await asyncio.sleep(max(due - time.monotonic(), 0))
            handles.append(await app.launch("tree.parent", {"number": number}))
        await until_done(control)
        for handle in handles:
            await handle.wait(60)
    await control.all("truncate held")
    await control.all(
        "insert into held (id, run_id) select row_number() over (), id from run where message_id = any(%(messages)s)",
        {"messages": [handle.id for handle in handles]},
    )


async def _idle(bench: Bench, columns: dict[str, list[float]]) -> None:
    count = bench.size(100, 30)
    async with bench.database() as control:
        await control.all(_TABLES)
        app = build(control.url)
        async with app.running(slots=SLOTS):
            await one_by_one(control, app, "hop.root", 10)
            hops, hop_commit = await one_by_one(control, app, "hop.root", count)
        before = await control.commits()
        lasted = time.monotonic()
        async with app.running(slots=SLOTS):
            trees, tree_commit = await one_by_one(control, app, "tree.parent", count)
        lasted = time.monotonic() - lasted
        gross = await control.commits() - before
        async with app.running(slots=SLOTS):
            await asyncio.sleep(lasted)
        idle = await control.commits() - before - gross
        commits = (("hop idle", hops, hop_commit * HOP_COMMITS), ("tree idle", trees, tree_commit * TREE_COMMITS))
        for name, took, least in commits:
            columns[f"{name} ratio"].append(percentile(took, 0.5) / least)
            columns[f"{name} p50"].append(percentile(took, 0.5))
            columns[f"{name} p99"].append(percentile(took, 0.99))
        columns["commits alone"].append((gross - idle) / count)
        await control.all("insert into held (run_id) select id from run where saga = 'tree-parent'")
        await _gaps(control, "gap idle", columns)


async def _gaps(control: Control, name: str, columns: dict[str, list[float]]) -> None:
    gaps = [float(gap) for (gap,) in await control.all(_GAPS)]
    columns[f"{name} p50"].append(percentile(gaps, 0.5))
    columns[f"{name} p99"].append(percentile(gaps, 0.99))


async def one_by_one(control: Control, app: Scoop, topic: str, count: int) -> tuple[list[float], float]:
    """Launch one message after the other, with pauses.

    Return the milliseconds of each from before the launch to the end, and those of a lone commit (median).
    """
    took, commits = [], []
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in range(count):
        await asyncio.sleep(random.uniform(0.02, 0.06))
        started = time.perf_counter()
        await control.all("insert into probe values (1)")
        commits.append((time.perf_counter() - started) * 1000)
        started = time.perf_counter()
        ended.clear()
        handle = await app.launch(topic, {"number": number})
        with service_of(app).hints.awaiting(handle.id, functools.partial(loop.call_soon_threadsafe, ended.set)):
            await ended.wait()
        took.append((time.perf_counter() - started) * 1000)
    return took, statistics.median(commits)
