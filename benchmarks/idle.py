"""(h) What a worker process costs that has nothing to do."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.control import Control
from benchmarks.sagas import build
from benchmarks.server import Bench, server
from benchmarks.table import Table, Target, ratios
from benchmarks.waiting import fill_with_deadlines

SLOTS = (1, 16, 64)
MOST_QUERIES = 5.0
MOST_CPU = 0.02
DEADLINES = 100_000
MOST_FOR_DEADLINES = 1.1

_RELAY = " and a relay"
_SETTLED = 4.0
"""Seconds until a worker that found nothing polls as seldom as it ever does."""
_PRELOAD = {"shared_preload_libraries": "pg_stat_statements"}
_STATEMENTS = (
    "select coalesce(sum(calls), 0)::float8 from public.pg_stat_statements "
    "where dbid = (select oid from pg_database where datname = current_database()) and query not like '%%pg_stat_%%'"
)
_CONNECTIONS = (
    "select count(*) from pg_stat_activity "
    "where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'"
)
_TRANSACTIONS = "select (xact_commit + xact_rollback)::float8 from pg_stat_database where datname = current_database()"


async def measure(bench: Bench) -> list[Table]:
    """Watch workers of several sizes side by side, each on a database of its own."""
    with server(None if bench.own else bench.admin, _PRELOAD) as admin:
        return [await _measure(replace(bench, admin=admin))]


async def _measure(bench: Bench) -> Table:
    seconds = 1 if bench.smoke else bench.size(20, 4)
    table = Table(
        f"(h) an idle worker process, watched {bench.runs} times for {seconds} s",
        ("", "memory in MiB", "queries per second", "share of a core", "connections"),
    )
    async with AsyncExitStack() as stack:
        watched = []
        deadlines = bench.size(DEADLINES, 1000)
        beside = f", beside {deadlines:,} deadlines in an hour"
        kinds = [(slots, "") for slots in bench.some(SLOTS)] + [(SLOTS[1], _RELAY), (SLOTS[1], beside)]
        for slots, kind in kinds:
            control = await stack.enter_async_context(bench.database())
            await build(control.url).announce()
            if kind == beside:
                await fill_with_deadlines(control, deadlines)
            pid = await stack.enter_async_context(_worker(control.url, slots, relay=kind == _RELAY))
            watched.append((f"{slots} slots{kind}", control, pid))
        counters = [await _counter(control) for _, control, _ in watched]
        await asyncio.sleep(0 if bench.smoke else _SETTLED)
        results: list[list[list[float]]] = [[[], [], [], []] for _ in watched]
        for _ in range(bench.runs):
            before = [
                (await control.one(count), _cpu(pid))
                for count, (_, control, pid) in zip(counters, watched, strict=True)
            ]
            await asyncio.sleep(seconds)
            for index, (_, control, pid) in enumerate(watched):
                queries, cpu = before[index]
                memory, rate, share, connections = results[index]
                # The statement that asks leaves itself out, or is one transaction of its own.
                own = 0 if counters[index] is _STATEMENTS else 1
                rate.append((await control.one(counters[index]) - queries - own) / seconds)
                share.append((_cpu(pid) - cpu) / seconds)
                memory.append(_memory(pid))
                connections.append(float(await control.one(_CONNECTIONS)))
    alone = f"{SLOTS[1]} slots"
    found = {name: result for (name, _, _), result in zip(watched, results, strict=True)}
    for name, result in found.items():
        table.add(name, *result)
        if name.endswith(_RELAY):
            continue
        if name.endswith(beside) and alone in found:
            ratio = statistics.median(ratios(result[1], found[alone][1]))
            table.targets.append(
                Target(
                    f"queries per second beside deadlines: at most {MOST_FOR_DEADLINES}", ratio, most=MOST_FOR_DEADLINES
                )
            )
        queries, busy = (statistics.median(values) for values in result[1:3])
        table.targets.append(
            Target(f"{name}: queries per second: below {MOST_QUERIES:.0f}", queries, most=MOST_QUERIES)
        )
        table.targets.append(Target(f"{name}: share of a core: below {MOST_CPU}", busy, most=MOST_CPU))
    what = "statements, by pg_stat_statements" if counters[0] is _STATEMENTS else "transactions, by pg_stat_database"
    table.notes.append(f"Queries are {what}. CPU is the worker's own, not Postgres's.")
    return table


async def _counter(control: Control) -> str:
    """Return what counts queries here."""
    loaded = str(await control.one("select current_setting('shared_preload_libraries')"))
    if "pg_stat_statements" not in loaded:
        return _TRANSACTIONS
    await control.all("create extension if not exists pg_stat_statements schema public")
    return _STATEMENTS


@asynccontextmanager
async def _worker(url: str, slots: int, *, relay: bool) -> AsyncIterator[int]:
    """Run a worker as users do, and yield its process id once it is ready."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "scoop_outbox", "worker", "benchmarks.sagas:app"),
        *("--slots", str(slots), "--relay" if relay else "--no-relay"),
        env=os.environ | {"SCOOP_OUTBOX_DATABASE": url},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        while b"ready" not in (line := await process.stderr.readline()):
            if not line:
                raise RuntimeError("the worker did not start")
        yield process.pid
    finally:
        process.terminate()
        await process.communicate()


def _memory(pid: int) -> float:
    """Return resident memory in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has no memory")


def _cpu(pid: int) -> float:
    """Return seconds of CPU that a process has used."""
    user, system = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
