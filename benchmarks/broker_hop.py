"""(l) The hop to a child and back over a broker, in one process that has nothing else to do."""

from __future__ import annotations

import statistics
from collections import defaultdict

from benchmarks.brokers import KAFKA, RABBITMQ, serving
from benchmarks.control import Control
from benchmarks.sagas import SERVICE, declare_hop
from benchmarks.server import Bench
from benchmarks.table import Table, Target, percentile
from benchmarks.tree import one_by_one
from scoop_outbox import Scoop

MOST = 15.0
_PROBE = "create table probe (n integer not null)"


async def measure(bench: Bench) -> list[Table]:
    """Launch messages one by one, without a broker and over each."""
    table = Table(
        "(l) ms from launch to the root's end, one child, idle, one process", ("", "p50", "p99", "p50 of a lone commit")
    )
    await _rows(bench, table, "built-in", None)
    for kind in (KAFKA, RABBITMQ):
        with serving(kind, table.notes) as url:
            if url is None:
                continue
            p50 = await _rows(bench, table, kind.name, url)
            table.targets.append(Target(f"{kind.name}, p50: at most {MOST:.0f} ms", p50, most=MOST))
    table.notes.append(
        "Two messages go through the broker, the launched one and the child's; from before the launch until the commit "
        "of the root's end has returned."
    )
    return [table]


async def _rows(bench: Bench, table: Table, name: str, url: str | None) -> float:
    columns: dict[str, list[float]] = defaultdict(list)
    for _ in range(bench.runs):
        async with bench.database() as control:
            took, commit = await _hops(control, url, bench.size(100, 30))
        columns["p50"].append(percentile(took, 0.5))
        columns["p99"].append(percentile(took, 0.99))
        columns["commit"].append(commit)
    table.add(name, columns["p50"], columns["p99"], columns["commit"])
    return statistics.median(columns["p50"])


async def _hops(control: Control, url: str | None, count: int) -> tuple[list[float], float]:
    await control.all(_PROBE)
    app = Scoop(SERVICE, database=control.url, broker=url, start="earliest")
    declare_hop(app)
    await app.apply_topology("hop.root", "hop.child")
    async with app.running():
        await one_by_one(control, app, "hop.root", 10)
        return await one_by_one(control, app, "hop.root", count)
