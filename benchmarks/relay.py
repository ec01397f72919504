"""(f) Rows that a relay publishes in a second with the built-in broker, where publishing is taking in."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import sql

from benchmarks.control import SEARCH_PATH, Control
from benchmarks.sagas import SERVICE, build
from benchmarks.server import Bench
from benchmarks.table import Table, ratios
from benchmarks.work import launch_in_bulk

_BATCH = 500
_READ = b"""
select shard, seq, message_id, topic, key, body, content_type, headers::text
from outbox where seq > %s order by seq limit %s
"""
_DELETE = b"""
delete from outbox o using unnest(%s::smallint[], %s::bigint[]) as p (shard, seq)
where o.shard = p.shard and o.seq = p.seq
"""
_COLUMNS = {
    "message": ("id", "topic", "key", "body", "content_type", "headers"),
    "run": ("id", "message_id", "service", "saga", "lineage"),
    "mailbox": ("service", "saga", "run_id", "due"),
}


async def measure(bench: Bench) -> list[Table]:
    """Publish the same rows in turn by the relay and by bare psycopg, which copies them."""
    count = bench.size(20_000, 5_000)
    rates: dict[tuple[str, str], list[float]] = defaultdict(list)
    async with bench.database() as control:
        for _ in range(bench.runs):
            for topic in ("relay.unhandled", "relay.handled"):
                rates[topic, "ours"].append(await _relay(control, topic, count))
                rates[topic, "bare"].append(await _bare(control, topic, count))
    table = Table("(f) rows relayed per second", ("", "scoop_outbox", "psycopg, copy", "ratio"))
    for topic, name in (("relay.unhandled", "nobody handles them"), ("relay.handled", "each starts a run")):
        ours, bare = rates[topic, "ours"], rates[topic, "bare"]
        table.add(name, ours, bare, ratios(ours, bare))
    table.notes.append(
        f"psycopg: batches of {_BATCH}, read, copied into message (and run and mailbox) and deleted in one transaction "
        "each; nothing is looked up, and no message may come twice."
    )
    return [table]


async def _fill(control: Control, topic: str, count: int) -> None:
    await launch_in_bulk(build(control.url), topic, count)
    await control.settle("outbox", "mailbox", "run", "message")


async def _relay(control: Control, topic: str, count: int) -> float:
    await _fill(control, topic, count)
    async with build(control.url).running(worker=False) as daemons:
        relay = daemons.relay
        assert relay is not None
        while not relay.counters.deleted:
            await asyncio.sleep(0.001)
        # Connected, and with its shards: the clock starts behind the first batch.
        first, started = relay.counters.deleted, time.perf_counter()
        while relay.counters.deleted < count:
            await asyncio.sleep(0.005)
        return (relay.counters.deleted - first) / (time.perf_counter() - started)


async def _bare(control: Control, topic: str, count: int) -> float:
    await _fill(control, topic, count)
    connection = await psycopg.AsyncConnection.connect(control.url, autocommit=True, options=SEARCH_PATH)
    async with connection:
        started, done, floor = time.perf_counter(), 0, 0
        while done < count:
            async with connection.transaction():
                rows = await (await connection.execute(_READ, [floor, _BATCH])).fetchall()
                await _take_in(connection, rows, handled=topic == "relay.handled")
                await connection.execute(_DELETE, [[row[0] for row in rows], [row[1] for row in rows]])
            done += len(rows)
            floor = rows[-1][1]
        return done / (time.perf_counter() - started)


async def _take_in(connection: psycopg.AsyncConnection[Any], rows: list[Any], *, handled: bool) -> None:
    await _copy(connection, "message", [row[2:] for row in rows])
    if handled:
        runs = [(uuid4(), row[2]) for row in rows]
        await _copy(connection, "run", [(run, message, SERVICE, "relay", [run]) for run, message in runs])
        await _copy(connection, "mailbox", [(SERVICE, "relay", run, "now") for run, _ in runs])


async def _copy(connection: psycopg.AsyncConnection[Any], table: str, rows: list[tuple[Any, ...]]) -> None:
    columns = sql.SQL(", ").join(map(sql.Identifier, _COLUMNS[table]))
    statement = sql.SQL("copy {} ({}) from stdin").format(sql.Identifier(table), columns)
    async with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            await copy.write_row(row)
