"""Who gives up waiting for the database: what the server was doing is not done later."""

import asyncio
import os
import signal
import time

import psycopg
import pytest

from scoop_outbox import Scoop
from scoop_outbox.store import waiting
from tests.waiting import until

WAITING = """
select pid from pg_stat_activity
where datname = current_database() and wait_event_type = 'Lock' and application_name like 'scoop_outbox%'
"""
LAUNCHED = "select count(*) from scoop_outbox.outbox"
BIG = b"x" * 20_000_000


@pytest.mark.parametrize("body", [b"small", BIG], ids=["small", "big"])
async def test_a_launch_that_timed_out_is_not_committed_later(database_url: str, body: bytes) -> None:
    app = Scoop("shop", database=database_url)
    await app.launch("orders", 0)
    with psycopg.connect(database_url) as holder, psycopg.connect(database_url, autocommit=True) as other:
        holder.execute("lock table scoop_outbox.outbox")
        for _ in range(15):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await app.launch("orders", body)
        await until(lambda: other.execute(WAITING).fetchall() == [])
        holder.rollback()
        await app.launch("orders", 1)
        assert other.execute(LAUNCHED).fetchone() == (2,)
    await app.close()


async def test_who_is_cancelled_twice_leaves_nothing_behind_either(database_url: str) -> None:
    app = Scoop("shop", database=database_url)
    await app.launch("orders", 0)
    with psycopg.connect(database_url) as holder, psycopg.connect(database_url, autocommit=True) as other:
        holder.execute("lock table scoop_outbox.outbox")
        launching = asyncio.create_task(app.launch("orders", 1))
        await until(lambda: other.execute(WAITING).fetchall())
        launching.cancel()
        await asyncio.sleep(0)
        launching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await launching
        await until(lambda: other.execute(WAITING).fetchall() == [])
        holder.rollback()
        await app.launch("orders", 2)
        assert other.execute(LAUNCHED).fetchone() == (2,)
    await app.close()


async def test_a_frozen_server_is_not_waited_for_for_ever(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_CANCEL_TIMEOUT", 0.3)
    app = Scoop("shop", database=database_url)
    await app.launch("orders", 0)
    with psycopg.connect(database_url) as holder, psycopg.connect(database_url, autocommit=True) as other:
        holder.execute("lock table scoop_outbox.outbox")
        launching = asyncio.create_task(app.launch("orders", 1))
        await until(lambda: other.execute(WAITING).fetchall())
        ((backend,),) = other.execute(WAITING).fetchall()
        os.kill(backend, signal.SIGSTOP)
        try:
            began = time.monotonic()
            launching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await launching
            assert time.monotonic() - began < 30
        finally:
            os.kill(backend, signal.SIGCONT)
        holder.rollback()
        await app.launch("orders", 2)  # on another connection
    await app.close()
