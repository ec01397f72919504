"""What reads ahead for a relay: plans on a thread of their own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest

from scoop_outbox.core.plans.outbox import Outgoing, read_outbox
from scoop_outbox.core.statement import Plan
from scoop_outbox.daemon.relay.prefetch import Prefetch
from scoop_outbox.message import uuid7
from scoop_outbox.store.callbacks import Interrupted
from scoop_outbox.store.home import Home
from scoop_outbox.store.schema import DEFAULT_SCHEMA, SHARDS
from tests.waiting import until

FILL = """
insert into scoop_outbox.outbox (shard, message_id, topic, body, content_type, headers)
select n % 8, gen_random_uuid(), 'orders', n::text::bytea, 'application/json', '{}' from generate_series(1, 3000) n
"""
READING = b"""
select pid from pg_stat_activity where datname = current_database() and application_name = 'reader test'
"""
WAITING = b"""
select pid from pg_stat_activity
where datname = current_database() and application_name = 'reader test' and wait_event_type = 'Lock'
"""


def everything() -> Plan[Outgoing]:
    return read_outbox(dict.fromkeys(range(SHARDS), 0), 1000, 1_000_000, uuid7())


@asynccontextmanager
async def reading(url: str) -> AsyncIterator[Prefetch]:
    reader = Prefetch(Home(url, DEFAULT_SCHEMA, "reader test"))
    try:
        yield reader
    finally:
        await reader.close()


async def test_a_plan_returns_what_it_would_on_any_driver(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(FILL.encode())
    async with reading(database_url) as reader:
        for _ in range(2):  # prepared, and then found
            found = await reader.run(everything())
            assert [one.body for one in found.envelopes] == [b"%d" % number for number in range(1, 3001)]


async def test_after_a_lost_connection_it_takes_another_one(database_url: str) -> None:
    async with reading(database_url) as reader:
        assert len(await reader.run(everything())) == 0
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("select pg_terminate_backend(%s)", connection.execute(READING).fetchone())
        with pytest.raises(Interrupted):
            await reader.run(everything())
        assert len(await reader.run(everything())) == 0


async def test_after_a_statement_that_failed_it_goes_on(database_url: str) -> None:
    async with reading(database_url) as reader:
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("alter table scoop_outbox.outbox rename to elsewhere")
            with pytest.raises(Interrupted, match="UndefinedTable"):
                await reader.run(everything())
            connection.execute("alter table scoop_outbox.elsewhere rename to outbox")
        assert len(await reader.run(everything())) == 0


async def test_cancelling_ends_the_wait_and_the_statement(database_url: str) -> None:
    async with reading(database_url) as reader:
        assert len(await reader.run(everything())) == 0
        with psycopg.connect(database_url) as holder, psycopg.connect(database_url, autocommit=True) as observer:
            holder.execute("lock table scoop_outbox.outbox")
            task = asyncio.create_task(reader.run(everything()))
            await until(lambda: observer.execute(WAITING).fetchall())
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: not observer.execute(READING).fetchall())
        assert len(await reader.run(everything())) == 0
