"""(i) Rows of a full outbox that a relay publishes to a broker in a second, and what the client itself reaches."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.brokers import KAFKA, KINDS, RABBITMQ, SERVICE, Kind, build, create, release, serving, stage
from benchmarks.control import Control
from benchmarks.raw import WINDOW, publish_to_kafka, publish_to_rabbitmq, purge
from benchmarks.server import Bench
from benchmarks.table import Table, Target, ratios
from benchmarks.writer import writing
from scoop_outbox.daemon.relay.scan import BATCH
from scoop_outbox.store.schema import SHARDS

TOPIC, OTHER = "drain", "drain.other"
WRITES = 200
_NUMBERS = "select shard, array_agg(seq order by seq) from outbox where topic = %(topic)s group by shard"
# One search of the index for each shard, whatever the planner believes of a table that was empty a moment ago: a join
# read the whole of it, a hundred times a second, and took a fifth of the machine.
_THERE = """
select p.shard, p.seq from unnest(%(shards)s::smallint[], %(seqs)s::bigint[]) as p (shard, seq)
cross join lateral (select from outbox o where o.shard = p.shard and o.seq = p.seq offset 0) there
"""
_NEXT = """
select p.shard, (select min(o.seq) from outbox o where o.shard = p.shard and o.seq > p.seq)
from unnest(%(shards)s::smallint[], %(seqs)s::bigint[]) as p (shard, seq)
"""
LEAST = {KAFKA.scheme: 0.5, RABBITMQ.scheme: 0.8}


async def measure(bench: Bench) -> list[Table]:
    """Publish the same messages in turn by the client alone and by the relay."""
    table = Table(
        "(i) rows relayed to a broker per second",
        ("", "scoop_outbox", "the client alone", "ratio", "the client in batches", "ratio"),
    )
    for kind in KINDS:
        with serving(kind, table.notes) as url:
            if url is None:
                continue
            for keyed in (True,) if kind.is_kafka else (True, False):
                ours, client, batched = await _measure(bench, kind, url, keyed=keyed)
                found = ratios(ours, client)
                name = f"{kind.name}, {'with' if keyed else 'without'} keys"
                below = (batched, ratios(ours, batched)) if batched else ("-", "-")
                table.add(name, ours, client, found, *below)
                least = LEAST[kind.scheme]
                table.targets.append(
                    Target(f"{name}, of the client: at least {least}", statistics.median(found), least=least)
                )
    table.notes.append(
        "By `scoop-outbox relay`, from when the first batch of a full outbox is deleted until the last one is. "
        f"A process writes meanwhile, in both: {WRITES} transactions per second, each with a message on another topic, "
        "which is not counted."
    )
    table.notes.append(
        "Kafka: confluent-kafka with the settings of the adapter; factor 3 and min.insync 2 on three nodes. "
        f"In batches: it waits for all acknowledgements after each {BATCH * SHARDS:,} messages, as the relay does. "
        f"RabbitMQ: aio-pika, mandatory, confirmed, {WINDOW} at once, into the same quorum queue."
    )
    return [table]


async def _measure(bench: Bench, kind: Kind, url: str, *, keyed: bool) -> tuple[list[float], ...]:
    count = bench.size(200_000, 20_000) if kind.is_kafka else bench.size(20_000, 5_000)
    ours: list[float] = []
    client: list[float] = []
    batched: list[float] = []
    async with bench.database() as control:
        app = build(control.url, url)
        await create(app, [TOPIC, OTHER])
        envelopes = await stage(app, control, TOPIC, count, keyed=keyed)
        for _ in range(bench.runs):
            if not kind.is_kafka:
                await purge(url, SERVICE)
            async with writing(control.url, url, OTHER, rows=1, per_second=WRITES):
                if kind.is_kafka:
                    client.append(publish_to_kafka(url, envelopes))
                    batched.append(publish_to_kafka(url, envelopes, BATCH * SHARDS))
                else:
                    client.append(await publish_to_rabbitmq(url, envelopes))
                    await purge(url, SERVICE)
                ours.append(await _relay(control, url))
            await control.settle("outbox")
    return ours, client, batched


async def _relay(control: Control, url: str) -> float:
    """Return how many rows a second are published, behind the first batch."""
    await release(control)
    numbers: dict[int, list[int]] = dict(await control.all(_NUMBERS, {"topic": TOPIC}))
    async with _relaying(control.url, url):
        await _gone(control, {shard: seqs[0] for shard, seqs in numbers.items()})
        following = await _find(control, _NEXT, {shard: seqs[0] for shard, seqs in numbers.items()})
        started = time.monotonic()
        left = sum(len(seqs) - bisect_left(seqs, following[shard] or seqs[-1] + 1) for shard, seqs in numbers.items())
        await _gone(control, {shard: seqs[-1] for shard, seqs in numbers.items()})
        return left / (time.monotonic() - started)


async def _gone(control: Control, places: Mapping[int, int]) -> None:
    """Wait until these rows are deleted. Single rows are looked for: to count would be to pass over all dead ones."""
    while places:
        await asyncio.sleep(0.04)  # a hundredth of what is measured; to look more often took a twentieth of the machine
        places = await _find(control, _THERE, places)


async def _find(control: Control, query: str, places: Mapping[int, int]) -> dict[int, Any]:
    return dict(await control.all(query, {"shards": list(places), "seqs": list(places.values())}))


@asynccontextmanager
async def _relaying(database: str, broker: str) -> AsyncIterator[None]:
    """Run a relay as users do."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "scoop_outbox", "relay"),
        env=os.environ | {"SCOOP_OUTBOX_DATABASE": database, "SCOOP_OUTBOX_BROKER": broker},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        await process.wait()
