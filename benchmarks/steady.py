"""(j) From the commit of a message to the broker's acknowledgement, at a steady pace."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import defaultdict

from benchmarks.brokers import CLUSTER, KAFKA, KINDS, Kind, Watched, build, create, payload, serving, watch
from benchmarks.control import Control
from benchmarks.raw import KafkaProducer, messages, publish_window, rabbitmq, records
from benchmarks.server import Bench
from benchmarks.table import Table, Target, percentile
from benchmarks.writer import writing
from scoop_outbox.message import JSON, Envelope, dump_json, uuid7

TOPIC = "steady"
ROWS, PER_SECOND = 10, 100
WARM_UP = 1.0
MOST_P50, MOST_P99 = 15.0, 60.0


async def measure(bench: Bench) -> list[Table]:
    """Write at a steady pace, and publish by the relay; then publish as much by the client, as the writer goes on."""
    table = Table(
        f"(j) {ROWS * PER_SECOND:,} rows per second: ms from commit to the broker's acknowledgement",
        ("", "rows per second", "p50", "p99", "the client alone, p50", "p99"),
    )
    for kind in KINDS:
        with serving(kind, table.notes) as url:
            if url is None:
                continue
            columns: dict[str, list[float]] = defaultdict(list)
            for _ in range(bench.runs):
                async with bench.database() as control:
                    await create(build(control.url, url), [TOPIC])
                    await _ours(bench, control, url, columns)
                    await _client(bench, control, kind, url, columns)
            table.add(kind.name, *(columns[name] for name in ("rate", "p50", "p99", "client p50", "client p99")))
            if kind in (KAFKA, CLUSTER):
                for share, most in (("p50", MOST_P50), ("p99", MOST_P99)):
                    table.targets.append(
                        Target(
                            f"{kind.name}, {share}: at most {most:.0f} ms", statistics.median(columns[share]), most=most
                        )
                    )
    table.notes.append(
        f"A process of its own writes: transactions of {ROWS} messages and a row, {PER_SECOND} per second. It tells "
        "the relay nothing, so that the relay finds them by looking. Both times are the machine's monotonic clock: "
        "behind the commit, and behind the receipts of a batch."
    )
    table.notes.append(
        f"The client alone: {ROWS} messages, {PER_SECOND} times a second, from the first to the last acknowledgement; "
        "the process goes on writing to the database."
    )
    return [table]


async def _ours(bench: Bench, control: Control, url: str, columns: dict[str, list[float]]) -> None:
    async with build(control.url, url).running(worker=False) as daemons:
        watched = watch(daemons, TOPIC)
        async with writing(control.url, url, TOPIC, rows=ROWS, per_second=PER_SECOND) as writer:
            while not watched.acknowledged:
                await asyncio.sleep(0.01)
            await asyncio.sleep(WARM_UP + bench.size(6, 2))
            committed = await writer.stop()
        await _until_all(watched, len(committed))
    begin = min(committed.values()) + WARM_UP
    counted = {message: moment for message, moment in committed.items() if moment >= begin}
    took = [(watched.acknowledged[message] - moment) * 1000 for message, moment in counted.items()]
    columns["rate"].append(len(counted) / (max(counted.values()) - begin))
    columns["p50"].append(percentile(took, 0.5))
    columns["p99"].append(percentile(took, 0.99))


async def _until_all(watched: Watched, count: int) -> None:
    while len(watched.acknowledged) < count:
        await asyncio.sleep(0.01)


async def _client(bench: Bench, control: Control, kind: Kind, url: str, columns: dict[str, list[float]]) -> None:
    count = bench.size(300, 100)
    async with writing(control.url, url, TOPIC, rows=ROWS, per_second=PER_SECOND):
        took = await (_kafka(url, count) if kind.is_kafka else _rabbitmq(url, count))
    columns["client p50"].append(percentile(took, 0.5))
    columns["client p99"].append(percentile(took, 0.99))


def _envelopes() -> list[Envelope]:
    bodies = [dump_json(payload(number), "the payload").encode() for number in range(ROWS)]
    return [Envelope(str(uuid7()), TOPIC, f"key-{number}", body, JSON, {}) for number, body in enumerate(bodies)]


async def _kafka(url: str, count: int) -> list[float]:
    took = []
    producer = KafkaProducer(url)
    producer.publish(records(_envelopes()))
    for _ in range(count):
        ready = records(_envelopes())
        started = time.perf_counter()
        producer.publish(ready)
        took.append((time.perf_counter() - started) * 1000)
        await asyncio.sleep(1 / PER_SECOND)
    return took


async def _rabbitmq(url: str, count: int) -> list[float]:
    took = []
    async with rabbitmq(url) as (_, exchange):
        await publish_window(exchange, messages(_envelopes()))
        for _ in range(count):
            ready = messages(_envelopes())
            started = time.perf_counter()
            await publish_window(exchange, ready)
            took.append((time.perf_counter() - started) * 1000)
            await asyncio.sleep(1 / PER_SECOND)
    return took
