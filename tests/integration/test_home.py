"""A home lends connections, and what it has lent is closed whatever happens meanwhile."""

import asyncio
import contextlib
import gc
import subprocess
import sys
from collections.abc import Coroutine, Generator
from typing import Any

import pytest
from psycopg.pq import ConnStatus

from scoop_outbox.store.home import Home
from scoop_outbox.store.schema import DEFAULT_SCHEMA


async def test_a_connection_that_was_lent_while_the_pool_was_closed_is_closed_when_it_comes_back(
    database_url: str,
) -> None:
    home = Home(database_url, DEFAULT_SCHEMA, "test")
    with home.blocking_driver() as blocking:
        async with home.driver() as driver:
            lent = (blocking.raw, driver.raw)
            await home.dispose()
            assert not any(connection.closed for connection in lent)
    assert all(connection.closed for connection in lent)


async def test_a_connection_that_was_lent_is_lent_again(database_url: str) -> None:
    home = Home(database_url, DEFAULT_SCHEMA, "test")
    seen = set()
    for _ in range(5):
        with home.blocking_driver() as blocking:
            seen.add(blocking.raw)
        async with home.driver() as driver:
            seen.add(driver.raw)  # type: ignore[arg-type]
    assert len(seen) == 2
    await home.dispose()
    assert all(connection.closed for connection in seen)


async def test_however_many_callers_there_are_the_pool_stays_small(database_url: str) -> None:
    home = Home(database_url, DEFAULT_SCHEMA, "a small pool")

    async def ask() -> int:
        async with home.driver() as driver:
            counted = await driver.raw.execute(
                "select count(*) from pg_stat_activity where application_name = 'a small pool'"
            )
            row = await counted.fetchone()
            return int(row[0]) if row else 0

    assert max(await asyncio.gather(*(ask() for _ in range(100)))) <= 10
    await home.dispose()


def test_a_program_that_does_not_close_what_it_used_is_not_told_off(database_url: str) -> None:
    program = """
import asyncio, gc, os
from scoop_outbox import Scoop

async def launch():
    await Scoop("careless").launch("nobody", 1)

asyncio.run(launch())
Scoop("careless").launch_sync("nobody", 2)
gc.collect()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={"SCOOP_OUTBOX_DATABASE": database_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@pytest.mark.parametrize("cycle", [False, True], ids=["alone", "in a cycle"])
async def test_a_driver_that_is_dropped_closes_its_connection_without_a_word(
    database_url: str, recwarn: pytest.WarningsRecorder, *, cycle: bool
) -> None:
    home = Home(database_url, DEFAULT_SCHEMA, "test")
    driver, blocking = await home.connect(), home.connect_blocking()
    beneath = (driver.raw.pgconn, blocking.raw.pgconn)
    if cycle:  # the collector may come to the connection first
        driver.raw.holder, blocking.raw.holder = driver, blocking  # type: ignore[attr-defined]
    del driver, blocking
    gc.collect()
    assert all(connection.status == ConnStatus.BAD for connection in beneath)
    assert not recwarn.list


class CancelledAt:
    """Awaits a coroutine, and is cancelled where that waits for the n-th time."""

    def __init__(self, number: int, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._number = number
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        waiting = self._coroutine.__await__()
        try:
            awaited = next(waiting)
            for _ in range(self._number):
                yield awaited
                awaited = next(waiting)
            yield waiting.throw(asyncio.CancelledError())
            return (yield from waiting)
        except StopIteration as done:
            return done.value


@pytest.mark.parametrize("number", range(30))
async def test_whoever_opens_a_connection_may_be_cancelled_wherever_he_waits(
    number: int, database_url: str, recwarn: pytest.WarningsRecorder
) -> None:
    home = Home(database_url, DEFAULT_SCHEMA, "cancelled")
    for opening in (home.connect(), home.connect_for_steps()):
        with contextlib.suppress(asyncio.CancelledError):
            await (await CancelledAt(number, opening)).close()
    gc.collect()
    assert not recwarn.list
