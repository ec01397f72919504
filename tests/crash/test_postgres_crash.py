"""The database server dies, or is away for a while, under worker and relay processes that nobody restarts."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from scoop_outbox import Scoop
from scoop_outbox.app import service_of
from scoop_outbox.devservers.postgres import PostgresNotFoundError, PostgresServer, start_postgres
from scoop_outbox.errors import DatabaseError
from scoop_outbox.store.migrate import migrate
from tests.crash import flow
from tests.crash.ledger import assert_exactly_once, count, is_quiet
from tests.crash.processes import Fleet, Process
from tests.servers import skip_without
from tests.waiting import until, until_blocking

PARENTS = 100
OUTAGE = 5.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PostgresServer]:
    """A server of this test's own, as durable as in production."""
    try:
        server = start_postgres(tmp_path / "postgres")
    except PostgresNotFoundError as error:
        skip_without(error)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def database_url(server: PostgresServer) -> str:
    """The migrated database of that server."""
    migrate(server.url)
    return server.url


@pytest.fixture
def processes(database_url: str, fleet: Fleet) -> list[Process]:
    """A worker of each service and two relays."""
    for app in flow.SERVICES.values():
        app.configure(database=database_url)
        app.announce_sync()
        app.close_sync()
    processes = [fleet.worker(f"flow:{service}") for service in flow.SERVICES]
    processes += [fleet.relay(), fleet.relay()]
    for process in processes:
        process.wait_until_ready()
    return processes


def _launch(numbers: range) -> None:
    """Launch orders in one transaction."""
    with psycopg.connect(service_of(flow.orders).home.url) as connection:
        for n in numbers:
            flow.orders.launch_sync("order.placed", {"n": n}, key=str(n % 16), session=connection)


def _assert_all_has_ended(url: str, processes: list[Process]) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        until_blocking(lambda: is_quiet(connection, PARENTS, "order.placed"), 60, 0.05)
        assert_exactly_once(connection)
        ends = connection.execute("select saga, state, count(*) from scoop_outbox.run group by 1, 2").fetchall()
        expected = Counter(end for n in range(1, PARENTS + 1) for end in flow.expected_ends(n).items())
        assert Counter({(saga, state): runs for saga, state, runs in ends}) == expected
    assert all(process.ready for process in processes)
    for process in processes:
        assert "died" not in process.log
        assert "ERROR" not in process.log


def test_the_server_is_killed_in_the_midst_of_work(
    server: PostgresServer, effects: psycopg.Connection[Any], processes: list[Process]
) -> None:
    for crash in (1, 2):
        done = _count_steps(server.url)
        _launch(range(1 + (crash - 1) * PARENTS // 2, 1 + crash * PARENTS // 2))
        until_blocking(lambda: _count_steps(server.url) >= done + 20)  # noqa: B023 - evaluated before the next round
        server.kill()
        server.start()
    _assert_all_has_ended(server.url, processes)


def test_the_server_is_away_for_seconds(
    server: PostgresServer, effects: psycopg.Connection[Any], processes: list[Process]
) -> None:
    _launch(range(1, PARENTS + 1))
    until_blocking(lambda: _count_steps(server.url) >= 20)
    effects.close()
    server.stop()
    back = time.monotonic() + OUTAGE
    until_blocking(lambda: time.monotonic() >= back, OUTAGE + 5)
    assert all(process.ready for process in processes)
    server.start()
    _assert_all_has_ended(server.url, processes)


def _count_steps(url: str) -> int:
    """Count executions, on a connection that need not survive."""
    with psycopg.connect(url, autocommit=True) as connection:
        return count(connection, "select count(*) from scoop_outbox.step")


async def test_launching_goes_on_after_a_restart_of_the_server(server: PostgresServer, database_url: str) -> None:
    app = Scoop("launcher", database=database_url)
    handle = app.launch_sync("nobody.listens", {})
    async with app.running():
        await handle.wait(10)
    app.launch_sync("nobody.listens", {})
    await app.launch("nobody.listens", {})
    server.kill()
    with pytest.raises(DatabaseError):
        await app.launch("nobody.listens", {})
    with pytest.raises(DatabaseError):
        app.launch_sync("nobody.listens", {})
    server.start()
    app.launch_sync("nobody.listens", {})
    await app.launch("nobody.listens", {})
    with psycopg.connect(database_url) as connection:
        assert count(connection, "select count(*) from scoop_outbox.outbox") == 4
    await app.close()


async def test_a_caller_is_told_when_the_server_dies_under_it(server: PostgresServer, database_url: str) -> None:
    app = Scoop("launcher", database=database_url)
    await app.announce()
    with closing(psycopg.connect(database_url)) as connection:
        connection.execute("lock table scoop_outbox.outbox in exclusive mode")
        launching = asyncio.create_task(app.launch("nobody.listens", {}))
        with psycopg.connect(database_url, autocommit=True) as other:
            await until(lambda: count(other, "select count(*) from pg_locks where not granted") == 1)
        server.kill()
        with pytest.raises(DatabaseError, match="Whether it was committed is unknown"):
            await launching
    await app.close()
