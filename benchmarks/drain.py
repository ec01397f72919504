"""(i) Rows of a full outbox that a relay publishes to a broker in a second, and what the client itself reaches."""

from __future__ import annotations

import asyncio
import statistics
from collections import defaultdict

from benchmarks.brokers import KAFKA, KINDS, RABBITMQ, SERVICE, Kind, build, create, fill, serving, watch
from benchmarks.control import Control
from benchmarks.raw import WINDOW, publish_to_kafka, publish_to_rabbitmq, purge
from benchmarks.server import Bench
from benchmarks.table import Table, Target, ratios
from benchmarks.writer import writing

TOPIC, OTHER = "drain", "drain.other"
WRITES = 200
LEAST = {KAFKA.scheme: 0.5, RABBITMQ.scheme: 0.8}


async def measure(bench: Bench) -> list[Table]:
    """Publish the same messages in turn by the relay and by the client alone."""
    table = Table("(i) rows relayed to a broker per second", ("", "scoop_outbox", "the client alone", "ratio"))
    for kind in KINDS:
        with serving(kind, table.notes) as url:
            if url is None:
                continue
            rates: dict[tuple[bool, str], list[float]] = defaultdict(list)
            async with bench.database() as control:
                await create(build(control.url, url), [TOPIC, OTHER])
                for _ in range(bench.runs):
                    for keyed in (True,) if kind.is_kafka else (True, False):
                        ours, client = await _run(bench, control, kind, url, keyed=keyed)
                        rates[keyed, "ours"].append(ours)
                        rates[keyed, "client"].append(client)
            for keyed in (True, False):
                if not (ours_of := rates[keyed, "ours"]):
                    continue
                found = ratios(ours_of, rates[keyed, "client"])
                name = f"{kind.name}, {'with' if keyed else 'without'} keys"
                table.add(name, ours_of, rates[keyed, "client"], found)
                least = LEAST[kind.scheme]
                table.targets.append(
                    Target(f"{name}, of the client: at least {least}", statistics.median(found), least=least)
                )
    table.notes.append(
        f"A process writes meanwhile, in both: {WRITES} transactions per second, each with a message on another topic, "
        "which is not counted."
    )
    table.notes.append(
        "Kafka: confluent-kafka with the settings of the adapter; factor 3 and min.insync 2 on three nodes. "
        f"RabbitMQ: aio-pika, mandatory, confirmed, {WINDOW} at once, into the same quorum queue."
    )
    return [table]


async def _run(bench: Bench, control: Control, kind: Kind, url: str, *, keyed: bool) -> tuple[float, float]:
    count = bench.size(40_000, 10_000) if kind.is_kafka else bench.size(10_000, 4_000)
    app = build(control.url, url)
    if not kind.is_kafka:
        await purge(url, SERVICE)
    envelopes = await fill(app, control, TOPIC, count, keyed=keyed)
    async with writing(control.url, url, OTHER, rows=1, per_second=WRITES):
        if kind.is_kafka:
            client = publish_to_kafka(url, envelopes)
        else:
            client = await publish_to_rabbitmq(url, envelopes)
            await purge(url, SERVICE)
        async with app.running(worker=False) as daemons:
            watched = watch(daemons, TOPIC)
            while len(watched.acknowledged) < count:
                await asyncio.sleep(0.005)
    # Connected, and with its shards: the clock starts with the receipts of the first batch.
    batches = [batch for batch in watched.batches if batch[1]]
    (started, first), (ended, last) = batches[0], next(batch for batch in batches if batch[1] == count)
    return (last - first) / (ended - started), client
