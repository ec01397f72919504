"""(g) Several worker processes on one database: how many of their claims find nothing.

`python -m benchmarks.processes URL SLOTS` is such a process: it says what it has counted when it reads a line.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.control import Control
from benchmarks.sagas import STEPS, TREE_STEPS, build
from benchmarks.server import Bench
from benchmarks.table import Table, Target, ratios
from benchmarks.work import WARM_UP, done_since, prepare, release, until_done, until_ended
from scoop_outbox.daemon.worker.roster import EVERY

PROCESSES = 4
_LONGEST_SLEEP = 1.5
SLOTS = 16
MOST = 0.1


@dataclass(slots=True)
class Process:
    """A worker process of ours."""

    process: asyncio.subprocess.Process

    async def counters(self) -> dict[str, int]:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(b"\n")
        counters: dict[str, int] = json.loads(await stdout.readline())
        return counters


@asynccontextmanager
async def _process(url: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.processes", url, str(SLOTS)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        worker = Process(process)
        await worker.counters()  # it answers when it works
        yield worker
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def measure(bench: Bench) -> list[Table]:
    """Execute the same work by one process and by four."""
    values: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    all_works = {
        "steps.async": ("three steps", bench.size(2000, 600), STEPS),
        "tree.parent": ("trees of 7 steps", bench.size(500, 150), TREE_STEPS),
    }
    works = {topic: all_works[topic] for topic in bench.some(list(all_works))}
    several = 2 if bench.smoke else PROCESSES
    async with bench.database() as control:
        for _ in range(bench.runs):
            for topic, (_, count, steps) in works.items():
                for processes in (1, several):
                    rate, counted = await _execute(control, topic, count, processes, hurried=bench.smoke)
                    row = values[topic, processes]
                    row["rate"].append(rate * steps)
                    row["claims"].append(counted["claims"])
                    row["empty"].append(counted["empty_claims"] / counted["claims"])
                    row["interruptions"].append(counted["interruptions"])
    table = Table(
        f"(g) worker processes of {SLOTS} slots on one database",
        ("", "steps per second", "ratio to one process", "claims", "of them empty", "interruptions"),
    )
    for topic, (name, _, _) in works.items():
        one = values[topic, 1]["rate"]
        for processes in (1, several):
            row = values[topic, processes]
            table.add(
                f"{name}, {processes} process{'es' * (processes > 1)}",
                *(row["rate"], ratios(row["rate"], one), row["claims"], row["empty"], row["interruptions"]),
            )
        empty = statistics.median(values[topic, several]["empty"])
        table.targets.append(Target(f"{name}, {several} processes, empty claims: below {MOST}", empty, most=MOST))
    return [table]


async def _execute(
    control: Control, topic: str, count: int, processes: int, *, hurried: bool
) -> tuple[float, dict[str, int]]:
    await prepare(control, topic, count, WARM_UP * processes)
    async with AsyncExitStack() as stack:
        if topic == "tree.parent":
            await stack.enter_async_context(build(control.url).running(worker=False))
        workers = [await stack.enter_async_context(_process(control.url)) for _ in range(processes)]
        await until_done(control)
        if processes > 1 and not hurried:
            await asyncio.sleep(EVERY + _LONGEST_SLEEP)  # until they know of each other
        before = [await worker.counters() for worker in workers]
        started = await release(control)
        await until_ended(control)
        after = [await worker.counters() for worker in workers]
        done = await done_since(control, started)
    counted = {name: sum(a[name] - b[name] for a, b in zip(after, before, strict=True)) for name in after[0]}
    return done.per_second, counted


async def _work(url: str, slots: int) -> None:
    async with build(url).running(relay=False, slots=slots) as daemons:
        assert daemons.worker is not None
        counters: Any = daemons.worker.counters
        while await asyncio.to_thread(sys.stdin.readline):
            counted = {name: getattr(counters, name) for name in ("claims", "empty_claims")}
            counted["interruptions"] = daemons.worker.interruptions.counted.total()
            sys.stdout.write(json.dumps(counted) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_work(sys.argv[1], int(sys.argv[2])))
