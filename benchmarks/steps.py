"""(a) Steps per second of a saga of three steps, beside what the database gives without an engine."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence

from benchmarks.bare import bare
from benchmarks.control import Control
from benchmarks.pgbench import Pgbench, program
from benchmarks.sagas import STEPS
from benchmarks.server import Bench
from benchmarks.table import Table, Target, ratios
from benchmarks.work import execute

SLOTS = (1, 4, 16)
COLOURS = ("async", "def")
LEAST = 0.7

Rates = dict[tuple[int, str, str], list[float]]


async def measure(bench: Bench) -> list[Table]:
    """Take turns: ours, the two ceilings of psycopg, then pgbench; a machine that slows down slows all of them."""
    rates: Rates = defaultdict(list)
    async with bench.database() as control:
        executable = program()
        pgbench = None if executable is None else Pgbench(control, executable)
        for _ in range(bench.runs):
            for slots in bench.some(SLOTS):
                count = bench.size(300 if slots == 1 else 1500, 80 if slots == 1 else 400)
                for colour in COLOURS:
                    await _side_by_side(control, slots, colour, count, rates)
                if pgbench is not None:
                    rates[slots, "", "pgbench"].append(await pgbench.steps_per_second(count, slots))
    table = _table(rates, bench.some(SLOTS))
    if pgbench is None:
        table.notes.append("There is no pgbench here.")
    return [table]


async def _side_by_side(control: Control, slots: int, colour: str, count: int, rates: Rates) -> None:
    topic, coroutines = f"steps.{colour}", colour == "async"
    done = await execute(control, topic, count, slots)
    rates[slots, colour, "ours"].append(done.per_second * STEPS)
    for way, pipelined in (("pipelined", True), ("one", False)):
        done = await bare(control, topic, count, slots, coroutines=coroutines, pipelined=pipelined)
        rates[slots, colour, way].append(done.per_second * STEPS)


def _table(rates: Rates, measured: Sequence[int]) -> Table:
    psycopg = ("psycopg, pipelined", "psycopg, one statement", "pgbench")
    shares = ("of pipelined", "of one statement", "of pgbench")
    table = Table("(a) steps per second, three steps, no children", ("slots", "scoop_outbox", *psycopg, *shares))
    for slots in measured:
        for colour in COLOURS:
            ours = rates[slots, colour, "ours"]
            ceilings = [rates[slots, colour, "pipelined"], rates[slots, colour, "one"], rates[slots, "", "pgbench"]]
            shown = [ratios(ours, ceiling) if ceiling else [] for ceiling in ceilings]
            table.add(f"{slots}, {colour}", ours, *ceilings, *shown)
    most = measured[-1]
    for colour in COLOURS:
        for way, name in (("pipelined", "pipelined"), ("one", "one statement a step")):
            ratio = statistics.median(ratios(rates[most, colour, "ours"], rates[most, colour, way]))
            table.targets.append(Target(f"{colour}, {most} slots, of psycopg, {name}: at least {LEAST}", ratio, LEAST))
    return table
