"""(k) Messages that are taken in from a broker in a second, and what the client itself and a bare COPY reach."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import defaultdict
from contextlib import closing

from benchmarks.brokers import KAFKA, KEYS, KINDS, Kind, build, create, payload, serving
from benchmarks.control import Control
from benchmarks.raw import (
    Copying,
    consume_from_kafka,
    consume_from_rabbitmq,
    nowhere,
    publish_to_kafka,
    publish_to_rabbitmq,
)
from benchmarks.server import Bench
from benchmarks.table import Table, Target, ratios
from benchmarks.writer import writing
from scoop_outbox import Scoop
from scoop_outbox.app import service_of
from scoop_outbox.daemon.intake.membership import BATCH
from scoop_outbox.daemon.intake.service import service_intake
from scoop_outbox.message import JSON, Envelope, dump_json, uuid7
from scoop_outbox.wire.headers import LAUNCHED_AT

TOPIC, OTHER = "intake", "intake.other"
WRITES = 200
PREFETCH = 1000
LEAST = 10_000
_LAUNCHED_AT = '{"file": "/srv/shop/orders.py", "line": 42, "function": "place_order", "code": "app.launch(ORDERS)"}'


async def measure(bench: Bench) -> list[Table]:
    """Take in the same messages by intake, and by the client alone, without and with a table."""
    table = Table(
        "(k) messages taken in from a broker per second",
        ("", "scoop_outbox", "the client alone", "the client and COPY", "ratio to the client", "to COPY"),
    )
    for kind in KINDS:
        with serving(kind, table.notes) as url:
            if url is None:
                continue
            columns = await _measure(bench, kind, url)
            ours = columns["ours"]
            table.add(
                kind.name,
                *(ours, columns["client"], columns["copy"]),
                *(ratios(ours, columns["client"]), ratios(ours, columns["copy"])),
            )
            if kind is KAFKA:
                table.targets.append(
                    Target(f"{kind.name}: at least {LEAST:,} per second", statistics.median(ours), least=LEAST)
                )
    table.notes.append(
        f"Each message starts a run, which nobody executes. Meanwhile a process writes {WRITES} transactions per "
        "second."
    )
    table.notes.append(
        "The client and COPY: batches of 500 into a table with a primary key, a commit each, and then the broker is "
        "told; headers become JSON, and nothing else is looked at."
    )
    return [table]


async def _measure(bench: Bench, kind: Kind, url: str) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = defaultdict(list)
    count = bench.size(40_000, 10_000) if kind.is_kafka else bench.size(15_000, 4_000)
    count = max(count, 3 * BATCH)  # the clock starts behind the first batch
    for run in range(bench.runs):
        async with bench.database() as control:
            apps = {name: build(control.url, url, TOPIC, group=f"{name}-{run}") for name in ("ours", "client", "copy")}
            for name, app in apps.items():
                await create(app, [TOPIC], group=f"{name}-{run}")
            await create(apps["ours"], [OTHER], group="other")
            envelopes = _envelopes(count)
            if not kind.is_kafka:
                await publish_to_rabbitmq(url, envelopes)  # each group has a queue, and gets a copy
            elif not run:
                publish_to_kafka(url, envelopes)
            await control.settle("message")
            async with writing(control.url, url, OTHER, rows=1, per_second=WRITES):
                columns["ours"].append(await _ours(control, apps["ours"], count))
                with closing(Copying(control.url)) as copying:
                    for name, store in (("client", nowhere), ("copy", copying)):
                        group = f"{name}-{run}"
                        if kind.is_kafka:
                            rate = consume_from_kafka(url, TOPIC, group, count, store)
                        else:
                            rate = await consume_from_rabbitmq(url, group, count, PREFETCH, store)
                        columns[name].append(rate)
    return columns


def _envelopes(count: int) -> list[Envelope]:
    return [
        Envelope(
            str(uuid7()),
            TOPIC,
            f"key-{number % KEYS}",
            dump_json(payload(number), "the payload").encode(),
            JSON,
            {LAUNCHED_AT: _LAUNCHED_AT},
        )
        for number in range(count)
    ]


async def _ours(control: Control, app: Scoop, count: int) -> float:
    await app.announce()
    ours = service_of(app)
    assert ours.broker is not None
    intake = service_intake(
        ours.home, ours.broker, ours.subscription, app.sagas, ours.hints, high=10 * count, low=9 * count
    )
    running = asyncio.create_task(intake.run())
    try:
        while not intake.counters.taken_in:
            await asyncio.sleep(0.002)
        # A member of its group, and connected: the clock starts behind the first batch.
        first, started = intake.counters.taken_in, time.perf_counter()
        while intake.counters.taken_in < count:
            await asyncio.sleep(0.005)
        ended = time.perf_counter()
    finally:
        intake.stop()
        await running
        await app.close()
    assert await control.one("select count(*) from message") == count
    return (count - first) / (ended - started)
