"""(m) What a relay's process holds in memory while it publishes a long outbox to Kafka.

`python -m benchmarks.memory DATABASE BROKER TOTAL EVERY` relays, and prints at every so many rows: how many were
published, the seconds since the first, and the bytes that are resident.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from asyncio.subprocess import PIPE
from pathlib import Path

from benchmarks.brokers import KAFKA, KEYS, build, create, serving
from benchmarks.server import Bench
from benchmarks.table import Table, Target
from scoop_outbox.store.schema import SHARDS

TOPIC = "memory"
SAMPLES = 10
MOST = 1.2
"""The last of the samples, to the first."""
_MEBI = 1024 * 1024
_FILL = f"""
insert into outbox (shard, message_id, topic, key, body, content_type, headers)
select abs(hashtext('key-' || n %% {KEYS}) %% {SHARDS}), gen_random_uuid(), '{TOPIC}', 'key-' || n %% {KEYS},
       convert_to(format('{{"number": %%s, "text": "%%s"}}', n, repeat(md5(n::text), 4)), 'UTF8'),
       'application/json', '{{}}'::json
from generate_series(1, %(count)s) as n
"""


async def measure(bench: Bench) -> list[Table]:
    """Publish one long outbox, once."""
    count = bench.size(1_000_000, 50_000)
    table = Table(
        f"(m) a relay that publishes {count:,} rows",
        ("", "rows per second", "MiB, first sample", "largest", "last", "last to first"),
    )
    with serving(KAFKA, table.notes) as url:
        if url is None:
            return [table]
        async with bench.database() as control:
            await create(build(control.url, url), [TOPIC])
            await control.all(_FILL, {"count": count})
            await control.settle("outbox")
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "benchmarks.memory", control.url, url, str(count), str(count // SAMPLES)),
                stdout=PIPE,
            )
            output, _ = await process.communicate()
    samples = [tuple(map(float, line.split())) for line in output.decode().splitlines()]
    sizes = [size / _MEBI for _, _, size in samples]
    (first, began, _), (last, ended, _) = samples[0], samples[-1]
    table.add(
        "Kafka, one node",
        [(last - first) / (ended - began)],
        *([sizes[0]], [max(sizes)], [sizes[-1]], [sizes[-1] / sizes[0]]),
    )
    table.targets.append(Target(f"last sample to the first: at most {MOST}", sizes[-1] / sizes[0], most=MOST))
    table.notes.append(
        f"A process with a relay alone, measured once; resident memory after each {count // SAMPLES:,} rows: "
        f"{', '.join(f'{size:.0f}' for size in sizes)} MiB; median {statistics.median(sizes):.0f}. Bodies of 160 bytes."
    )
    return [table]


async def _relay(database: str, broker: str, total: int, every: int) -> None:
    async with build(database, broker).running(worker=False) as daemons:
        relay = daemons.relay
        assert relay is not None
        for due in range(every, total + 1, every):
            while relay.counters.deleted < due:
                await asyncio.sleep(0.01)
            print(relay.counters.deleted, time.monotonic(), _resident(), flush=True)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    asyncio.run(_relay(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
