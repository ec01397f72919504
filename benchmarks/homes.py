"""(t) Homes: what it costs that a child lives in another database than its parent, and how that grows."""

from __future__ import annotations

import asyncio
import os
import secrets
import statistics
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from benchmarks.brokers import KAFKA, RABBITMQ, serving
from benchmarks.control import Control
from benchmarks.costs import Meter, Server
from benchmarks.sagas import nothing
from benchmarks.server import Bench
from benchmarks.table import Table, Target, percentile, ratios
from scoop_outbox import Message, Scoop, Scope
from scoop_outbox.app import service_of
from scoop_outbox.core.plans.homes import Identity
from scoop_outbox.daemon.announcer import control_subscription

SLOTS = 16
MOST_HOP, MOST_FAN, MOST_GROWTH = 2.5, 1.5, 1.1
FEW, MANY = 100, 1000
_WAIT = 300.0
# What homes say to each other, counted where it is written.
_COUNTED = """
create table said (topic text, bytes int);
create function note_said() returns trigger language plpgsql as
    'begin insert into scoop_outbox.said values (new.topic, octet_length(new.body)); return null; end';
create trigger said after insert on outbox for each row
    when (new.topic ~ '(control[.]|homes$)') execute function note_said()
"""


class _Homes:
    """Homes in this process.

    They stand in a ring, each with a service of its own, and the children of one live in the next. Or the first one
    has a service, and all others are homes of another one, which share its children.

    Args:
        controls: their databases.
        url: the broker.
        shared: whether the second service has all other homes.

    Attributes:
        apps: the services, by home.
        controls: their databases.
        prefix: what the names of topics begin with.
    """

    def __init__(self, controls: Sequence[Control], url: str, *, shared: bool = False) -> None:
        self.controls = controls
        # Others on this broker have names, topics and groups of their own, and are none of our homes.
        self.prefix = f"{secrets.token_hex(4)}."
        self._names = names = [f"{self.prefix}home-{number}" for number in range(len(controls))]
        services = [names[min(number, 1)] for number in range(len(names))] if shared else names
        cooperates = len(controls) > 1
        self.apps = [
            Scoop(service, database=control.url, broker=url, start="earliest", home=name if cooperates else None)
            for service, name, control in zip(services, names, controls, strict=True)
        ]
        for number, app in enumerate(self.apps):
            launches = not shared or number == 0
            handles = (number - 1) % len(self.apps) if not shared else None if number == 0 else 0
            _declare(app, self.prefix, number if launches else None, handles)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run all of them, and begin when each knows who listens in the others."""
        async with AsyncExitStack() as stack:
            for app, name, control in zip(self.apps, self._names, self.controls, strict=True):
                await control.all("update home set prefix = %(prefix)s", {"prefix": self.prefix})
                await app.apply_topology()
                await _create_control_topics(app, name, self.prefix)
            for app in self.apps:
                await stack.enter_async_context(app.running(slots=SLOTS))
            while not all([await self._knows_all(control) for control in self.controls]):
                await asyncio.sleep(0.05)
            yield

    async def _knows_all(self, control: Control) -> bool:
        known: int = await control.one(
            "select count(*) from peer p, home h where p.revision > 0 and p.confirmed = h.revision"
        )
        return known >= len(self.apps) - 1 or len(self.apps) == 1


async def _create_control_topics(app: Scoop, home: str, prefix: str) -> None:
    broker = service_of(app).broker
    assert broker is not None
    control = control_subscription(Identity(uuid.UUID(int=0), home, prefix))
    await broker.topology(control.topics, control, create=True)


def _declare(app: Scoop, prefix: str, number: int | None, before: int | None) -> None:
    """Declare parents of this home, and the children of those in the home before, if there are any."""

    async def launch_hop(scope: Scope, message: Message) -> None:
        scope.launch(f"{prefix}hop.{number}", {})

    async def launch_fan(scope: Scope, message: Message) -> None:
        for one in range(message.payload["children"]):
            scope.launch(f"{prefix}fan.{number}", {"number": one}, key=str(one))

    if before is not None:
        app.saga("hop-child", on=f"{prefix}hop.{before}").add_step("only", nothing)
        app.saga("fan-child", on=f"{prefix}fan.{before}").add_step("only", nothing)
    if number is None:
        return
    root = app.saga("hop-root", on=f"{prefix}hop.root.{number}")
    root.add_step("launch", launch_hop)
    root.add_step("finish", nothing)
    fan = app.saga("fan-root", on=f"{prefix}fan.root.{number}")
    fan.add_step("launch", launch_fan)
    fan.add_step("finish", nothing)


async def measure(bench: Bench) -> list[Table]:
    """Measure over each broker: idle, many children, and more homes."""
    hops = Table(
        "(t) ms from launch to the root's end, one child, idle: in the same home, and in another",
        ("", "one home, p50", "two homes, p50", "ratio", "messages between homes", "bytes"),
    )
    fans = Table(
        f"(t) ms for each of so many children in another home ({SLOTS} slots)",
        ("", f"{FEW}", f"{MANY}", "ratio", "messages between homes for each"),
    )
    growth = Table(
        "(t) processor ms for each tree of two runs, all launched at once, in a ring of homes in one process",
        ("", "one home", "two homes", "four homes", "four to two", "trees per second: one", "two", "four"),
    )
    shares = Table(
        "(t) processor ms for each child with a key, of a service with so many homes, all in one process",
        ("", "one home", "two homes", "three homes", "three to two"),
    )
    for kind in (KAFKA, RABBITMQ):
        with serving(kind, hops.notes) as url:
            if url is not None:
                await _over(bench, kind.name, url, (hops, fans, growth, shares))
    return [hops, fans, growth, shares]


async def _over(bench: Bench, name: str, url: str, tables: Sequence[Table]) -> None:
    columns: dict[str, list[float]] = defaultdict(list)
    for _ in range(bench.runs):
        for homes in (1, 2):
            async with _ring(bench, url, homes) as ring:
                columns[f"hop {homes}"].append(percentile(await _hops(ring, bench.size(100, 30)), 0.5))
        async with _ring(bench, url, 2) as ring:
            await _fan(ring, FEW)
            for size in (FEW, bench.size(MANY, FEW * 2)):
                columns[f"fan {size if size == FEW else MANY}"].append(await _fan(ring, size) / size)
        for homes in (1, 2, 4):
            async with _ring(bench, url, homes) as ring:
                cost, rate = await _cost(ring, bench.size(1000, 100))
            columns[f"cost {homes}"].append(cost)
            columns[f"rate {homes}"].append(rate)
        for homes in (1, 2, 3):
            async with _ring(bench, url, 1 + homes, shared=True) as ring:
                columns[f"share {homes}"].append(await _cost_of_fan(ring, bench.size(MANY, FEW)))
    async with _ring(bench, url, 2, counted=True) as ring:
        said, octets = await _said(ring, 20)
        said_of_fan, _ = await _said(ring, 1, FEW)
    hops, fans, growth, shares = tables
    share = ratios(columns["hop 2"], columns["hop 1"])
    hops.add(name, columns["hop 1"], columns["hop 2"], share, [said], [octets])
    hops.targets.append(Target(f"{name}: at most {MOST_HOP}", statistics.median(share), most=MOST_HOP))
    flat = ratios(columns[f"fan {MANY}"], columns[f"fan {FEW}"])
    fans.add(name, columns[f"fan {FEW}"], columns[f"fan {MANY}"], flat, [said_of_fan / FEW])
    fans.targets.append(Target(f"{name}: at most {MOST_FAN}", statistics.median(flat), most=MOST_FAN))
    grown = ratios(columns["cost 4"], columns["cost 2"])
    rates = [columns[f"rate {homes}"] for homes in (1, 2, 4)]
    growth.add(name, columns["cost 1"], columns["cost 2"], columns["cost 4"], grown, *rates)
    growth.targets.append(Target(f"{name}: at most {MOST_GROWTH}", statistics.median(grown), most=MOST_GROWTH))
    shared = [columns[f"share {homes}"] for homes in (1, 2, 3)]
    shares.add(name, *shared, ratios(shared[2], shared[1]))


@asynccontextmanager
async def _ring(
    bench: Bench, url: str, homes: int, *, counted: bool = False, shared: bool = False
) -> AsyncIterator[_Homes]:
    async with AsyncExitStack() as stack:
        controls = [await stack.enter_async_context(bench.database()) for _ in range(homes)]
        if counted:
            for control in controls:
                await control.all(_COUNTED)
        ring = _Homes(controls, url, shared=shared)
        async with ring.running():
            yield ring


async def _hops(ring: _Homes, count: int) -> list[float]:
    """Launch messages one by one; return milliseconds."""
    took: list[float] = []
    for _ in range(10 + count):
        began = time.perf_counter()
        await (await ring.apps[0].launch(f"{ring.prefix}hop.root.0", {})).wait(_WAIT)
        took.append((time.perf_counter() - began) * 1000)
    return took[10:]


async def _fan(ring: _Homes, children: int) -> float:
    """Launch one message with so many children; return milliseconds."""
    began = time.perf_counter()
    await (await ring.apps[0].launch(f"{ring.prefix}fan.root.0", {"children": children})).wait(_WAIT)
    return (time.perf_counter() - began) * 1000


async def _cost(ring: _Homes, count: int) -> tuple[float, float]:
    """Launch trees in all homes at once; return processor milliseconds for each, and how many there are in a second."""
    server = await Server.of(ring.controls[0])
    await _hops(ring, 10)
    meter = Meter(server, [os.getpid()])
    began = time.perf_counter()
    each = count // len(ring.apps)
    handles = [
        await app.launch(f"{ring.prefix}hop.root.{number}", {})
        for number, app in enumerate(ring.apps)
        for _ in range(each)
    ]
    await asyncio.gather(*(handle.wait(_WAIT) for handle in handles))
    return _processor_ms(meter) / len(handles), len(handles) / (time.perf_counter() - began)


async def _cost_of_fan(ring: _Homes, children: int) -> float:
    """Launch one message with so many children; return processor milliseconds for each."""
    server = await Server.of(ring.controls[0])
    await _fan(ring, 10)
    meter = Meter(server, [os.getpid()])
    await _fan(ring, children)
    return _processor_ms(meter) / children


def _processor_ms(meter: Meter) -> float:
    """Return what Python and Postgres have used together."""
    spent = meter.spent()
    return (spent.python + (spent.postgres or 0.0)) * 1000


async def _said(ring: _Homes, count: int, children: int = 1) -> tuple[float, float]:
    """Return how many messages homes say to each other because of a tree, and of how many bytes."""
    for control in ring.controls:
        await control.all("truncate said")
    for _ in range(count):
        if children == 1:
            await (await ring.apps[0].launch(f"{ring.prefix}hop.root.0", {})).wait(_WAIT)
        else:
            await _fan(ring, children)
    total = [await control.all("select count(*), coalesce(sum(bytes), 0) from said") for control in ring.controls]
    messages, size = (sum(rows[0][column] for rows in total) for column in (0, 1))
    return float(messages) / count, float(size) / count
