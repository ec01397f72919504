"""(n) What a user does, from the launch to the end: each step writes a row of its own."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from benchmarks.brokers import KAFKA, RABBITMQ, serving
from benchmarks.control import Control
from benchmarks.costs import Meter, Server, Spent
from benchmarks.rows import writing
from benchmarks.server import Bench
from benchmarks.table import Table, percentile, ratios
from benchmarks.users import (
    ACCESSES,
    COLOURS,
    HOP,
    RUNS,
    SERVICE,
    TABLE,
    THREE,
    TOPICS,
    TREE,
    WAY,
    build,
    launch,
    one_by_one,
)
from scoop_outbox import Scoop
from scoop_outbox.client.servers import BROKER_VARIABLE, DATABASE_VARIABLE

SLOTS = 16
LAUNCHERS = 8
WARM_UP = 32
BUILTIN = "built-in broker"
NO_BROKER = "postgresql://"
TOGETHER, APART = "one process", "apart"
HOP_COMMITS = 6
"""Commits of a hop that must follow each other."""

_ENDED = "select count(*) from run where ended_at is not null"
_BUSY = f"""
select exists (select from outbox) or exists (select from mailbox where service = '{SERVICE}')
       or (select count(*) from run where ended_at is not null) < %(runs)s
"""
_PROBE = "create table if not exists public.probe (n integer not null)"

Columns = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Way:
    """In which way the service is built and run.

    Attributes:
        access: of the step to its row: through `scope.connection` or `scope.session`.
        colour: of its steps.
        deployed: in one process, or as processes of their own.
        broker: its name.
    """

    access: str
    colour: str
    deployed: str
    broker: str

    def __str__(self) -> str:
        return f"{self.broker}, {self.deployed}, {self.access}, {self.colour}"


async def measure(bench: Bench) -> list[Table]:
    """Take turns with bare psycopg, on one database each way."""
    values: dict[Way, Columns] = {}
    notes: list[str] = []
    ways = [(access, colour, deployed) for deployed in (TOGETHER, APART) for access in ACCESSES for colour in COLOURS]
    # Processes take longer to start than a test has.
    for access, colour, deployed in (ways[0], ways[-1]) if bench.smoke else ways:
        await _way(bench, Way(access, colour, deployed, BUILTIN), None, values)
    for kind in (KAFKA, RABBITMQ):
        with serving(kind, notes) as url:
            if url is None:
                continue
            for deployed in (TOGETHER,) if bench.smoke else (TOGETHER, APART):
                await _way(bench, Way("connection", "async", deployed, kind.name), url, values)
    return _tables(values, notes)


async def _way(bench: Bench, way: Way, broker: str | None, values: dict[Way, Columns]) -> None:
    columns = values.setdefault(way, defaultdict(list))
    for _ in range(bench.runs):
        async with bench.database() as control:
            await control.all(TABLE)
            await control.all(_PROBE)
            app = build(control.url, broker or NO_BROKER, way.access, way.colour)
            await app.apply_topology(*TOPICS)
            await app.announce()
            await app.close()
            for kind, full, quick in bench.some(((TREE, 250, 50), (THREE, 500, 100))):
                await _loaded(control, way, broker, kind, bench.size(full, quick), columns)
            await _idle(control, way, broker, bench.size(40, 12), columns)


async def _loaded(control: Control, way: Way, broker: str | None, kind: str, count: int, columns: Columns) -> None:
    """Launch as fast as it goes, and divide by what bare psycopg needs for the same rows."""
    server = await Server.of(control)
    warm_up = min(WARM_UP, count)
    commits = await control.commits()
    async with _running(control, way, broker) as running:
        await running.launch(kind, warm_up)
        meter = Meter(server, running.pids)
        launched, seconds = await running.launch(kind, count)
        spent = meter.spent()
    commits = await control.commits() - commits
    floor_commits = await control.commits()
    async with writing(control, SLOTS, way.colour) as write:
        await write(kind, warm_up)
        meter, started = Meter(server, [os.getpid()]), time.monotonic()
        await write(kind, count)
        floor = time.monotonic() - started
        floor_spent = meter.spent()
    floor_commits = await control.commits() - floor_commits
    columns[f"{kind} rate"].append(count / seconds)
    columns[f"{kind} ratio"] += ratios([floor], [seconds])
    _costs(f"{kind} python", spent.python + launched, floor_spent.python, count, columns)
    _costs_of_postgres(kind, spent, floor_spent, count, columns)
    columns[f"{kind} commits"].append(commits / (count + warm_up))
    columns[f"{kind} commits ratio"].append(commits / max(floor_commits, 1))


def _costs(name: str, spent: float, floor: float, count: int, columns: Columns) -> None:
    columns[name].append(spent / count * 1000)
    if floor:  # the clock of a process ticks a hundred times a second
        columns[f"{name} ratio"].append(spent / floor)


def _costs_of_postgres(kind: str, spent: Spent, floor: Spent, count: int, columns: Columns) -> None:
    if spent.postgres is not None and floor.postgres is not None:
        _costs(f"{kind} postgres", spent.postgres, floor.postgres, count, columns)


async def _idle(control: Control, way: Way, broker: str | None, count: int, columns: Columns) -> None:
    """Launch one message at a time, and wait for its end."""
    commits = []
    for _ in range(count):
        started = time.perf_counter()
        await control.all("insert into public.probe values (1)")
        commits.append((time.perf_counter() - started) * 1000)
    async with _running(control, way, broker) as running:
        await running.hops(max(count // 4, 1))
        took = await running.hops(count)
    columns["hop p50"].append(percentile(took, 0.5))
    columns["hop p99"].append(percentile(took, 0.99))
    columns["hop ratio"].append(percentile(took, 0.5) / (statistics.median(commits) * HOP_COMMITS))


@dataclass(frozen=True, slots=True)
class _Told:
    """What a launcher says: when it began, by `time.monotonic`, its processor time, and how long each took."""

    began: float
    spent: float
    took: list[float]


class _Running:
    """The service at work.

    Attributes:
        pids: the processes whose time is taken: those that relay and work, or this one, which launches, too.
    """

    def __init__(self, control: Control, app: Scoop, environment: dict[str, str] | None, runs: int) -> None:
        self._control = control
        self._app = app
        self._environment = environment
        self._runs = runs
        self.pids = [os.getpid()] if environment is None else []

    async def launch(self, kind: str, count: int) -> tuple[float, float]:
        """Launch so many, and return when all have ended: a launcher's own processor time, and the seconds in all."""
        self._runs += count * RUNS[kind]
        spent, began = 0.0, time.monotonic()
        if self._environment is None:
            await launch(self._app, kind, count, LAUNCHERS)
        else:
            told = await self._launcher(kind, count, LAUNCHERS)
            spent, began = told.spent, told.began
        while await self._control.one(_BUSY, {"runs": self._runs}):
            await asyncio.sleep(0.02)
        return spent, time.monotonic() - began

    async def hops(self, count: int) -> list[float]:
        """Launch one by one, and return how long each took."""
        if self._environment is None:
            return await one_by_one(self._app, HOP, count)
        return (await self._launcher(HOP, count, 1)).took

    async def _launcher(self, on: str, count: int, at_once: int) -> _Told:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.users", on, str(count), str(at_once)),
            env=self._environment,
            stdout=PIPE,
        )
        output, _ = await process.communicate()
        if process.returncode:
            raise RuntimeError("the launcher has failed; see above")
        return _Told(**json.loads(output))

    async def start(self, stack: AsyncExitStack) -> None:
        """Start relay and worker, here or as processes of their own."""
        if self._environment is None:
            await stack.enter_async_context(self._app.running(slots=SLOTS))
            return
        for command in (["relay"], ["worker", "benchmarks.users:app", "--no-relay", "--slots", str(SLOTS)]):
            process = await stack.enter_async_context(_process(command, self._environment))
            self.pids.append(process.pid)


@asynccontextmanager
async def _running(control: Control, way: Way, broker: str | None) -> AsyncIterator[_Running]:
    url = broker or NO_BROKER
    environment = None
    if way.deployed == APART:
        where = {DATABASE_VARIABLE: control.url, BROKER_VARIABLE: url, WAY: f"{way.access} {way.colour}"}
        environment = os.environ | where
    running = _Running(control, build(control.url, url, way.access, way.colour), environment, await control.one(_ENDED))
    async with AsyncExitStack() as stack:
        await running.start(stack)
        yield running


@asynccontextmanager
async def _process(command: list[str], environment: dict[str, str]) -> AsyncIterator[Process]:
    """Run one of our commands as users do, and yield its process once it is ready."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "scoop_outbox", *command, env=environment, stderr=PIPE
    )
    assert process.stderr is not None
    reading = None
    try:
        while b"ready" not in (line := await process.stderr.readline()):
            if not line:
                raise RuntimeError(f"scoop-outbox {command[0]} did not start")
        reading = asyncio.create_task(process.stderr.read())  # or it would wait for room
        yield process
    finally:
        process.terminate()
        if reading is None:
            await process.communicate()
        else:
            await reading
            await process.wait()


def _tables(values: dict[Way, Columns], notes: list[str]) -> list[Table]:
    rates = Table(
        f"(n) end to end: launch, relay, intake, steps that write a row each; {SLOTS} slots",
        ("", "three-step runs per second", "of bare psycopg", "trees per second", "of bare psycopg"),
    )
    costs = Table(
        "(n) what a tree of seven steps costs, launch included: ms of processor time, and commits",
        ("", "Python", "to bare psycopg", "Postgres", "to bare psycopg", "commits", "to bare psycopg"),
    )
    latency = Table(
        "(n) ms from the launch until wait() has returned: one child, idle",
        ("", "p50", "p99", f"p50 to {HOP_COMMITS} lone commits"),
    )
    for way, columns in values.items():
        names = (f"{kind} {what}" for kind in (THREE, TREE) for what in ("rate", "ratio"))
        rates.add(str(way), *(columns[name] for name in names))
        what = ("python", "python ratio", "postgres", "postgres ratio", "commits", "commits ratio")
        costs.add(str(way), *(columns[f"{TREE} {one}"] for one in what))
        latency.add(str(way), *(columns[f"hop {one}"] for one in ("p50", "p99", "ratio")))
    rates.notes += [
        f"{LAUNCHERS} launches at a time, each in a transaction of its own; from the first until all runs have ended.",
        "Bare psycopg writes the same rows in as many transactions, on as many connections as there are slots.",
        *notes,
    ]
    costs.notes += [
        "Apart, Python is launcher, relay and worker together; Postgres is all processes of the server.",
        "Commits are counted from before the processes start until they have ended, those that only look included.",
    ]
    return [rates, costs, latency]
