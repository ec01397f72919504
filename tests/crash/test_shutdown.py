"""A process that is told to end finishes what it has in hand, and leaves the rest for others."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from scoop_outbox import Scoop
from tests.crash import flow
from tests.crash.gated import Gate, gated, never
from tests.crash.ledger import assert_exactly_once, count, is_quiet
from tests.crash.processes import Fleet, Process
from tests.waiting import until, until_blocking

STEPS_OF = "select s.step from scoop_outbox.step s join scoop_outbox.run r on r.id = s.run_id where r.saga = %s"


@pytest.fixture
def launch(database_url: str) -> Callable[..., None]:
    """Launch one message on a topic of the gated service."""
    gated.configure(database=database_url)
    gated.announce_sync()

    def launch(topic: str, **payload: Any) -> None:
        gated.launch_sync(topic, payload)
        gated.close_sync()

    return launch


def _ended(effects: psycopg.Connection[Any], runs: int) -> bool:
    return (
        count(effects, "select count(*) from scoop_outbox.run where state = 'committed'") == runs
        and count(effects, "select count(*) from scoop_outbox.mailbox") == 0
    )


def _tell(process: Process, number: signal.Signals = signal.SIGTERM) -> None:
    process.send(number)
    until_blocking(lambda: "process: stopping" in process.log)


def _pids(effects: psycopg.Connection[Any]) -> dict[str, int]:
    return dict(effects.execute("select step, pid from effect").fetchall())


def test_sigterm_drains_running_steps_of_both_colours_and_claims_nothing_more(
    effects: psycopg.Connection[Any], fleet: Fleet, launch: Callable[..., None]
) -> None:
    gate = Gate(effects, 1)
    relay, first = fleet.relay(), fleet.worker("gated:gated", "--grace", "15")
    launch("gated.coroutine", gate=1)
    launch("gated.blocking", gate=1)
    until_blocking(lambda: gate.waiting == 2, 20)
    _tell(first)
    launch("gated.coroutine", gate=2)
    until_blocking(lambda: count(effects, "select count(*) from scoop_outbox.mailbox") >= 3)
    gate.open()
    assert first.wait(10) == 0

    # Each run has done the step that was in hand, and its next one is left to others, mail and all.
    assert set(effects.execute("select step from effect").fetchall()) == {("first_coroutine",), ("first_blocking",)}
    assert count(effects, "select count(*) from scoop_outbox.run where state = 'running'") == 3
    assert count(effects, "select count(distinct run_id) from scoop_outbox.mailbox") == 3

    second = fleet.worker("gated:gated")
    until_blocking(lambda: _ended(effects, 3), 20)
    pids = _pids(effects)
    assert pids["second_coroutine"] == pids["second_blocking"] == second.pid
    assert_exactly_once(effects)
    for process in (relay, second):
        _tell(process)
        assert process.wait(10) == 0


def test_steps_that_outlast_their_grace_are_undone_and_executed_elsewhere(
    effects: psycopg.Connection[Any], fleet: Fleet, launch: Callable[..., None]
) -> None:
    gate = Gate(effects, 1)
    fleet.relay()
    first = fleet.worker("gated:gated", "--grace", "1")
    launch("gated.coroutine", gate=1)
    launch("gated.blocking", gate=1)
    launch("gated.asleep", asleep=True)
    until_blocking(lambda: gate.waiting == 2, 20)
    until_blocking(lambda: count(effects, _LOCKED) == 4)
    started = time.monotonic()
    _tell(first)
    assert first.wait(10) == 0
    assert 1 <= time.monotonic() - started < 5
    assert "run: step not finished in time, will be executed again (" in first.log
    assert "ERROR" not in first.log

    # Nobody waits for the gate any more, though it is closed: the server has given up what the process began.
    until_blocking(lambda: gate.waiting == 0)
    until_blocking(lambda: count(effects, _LOCKED) == 0)
    assert count(effects, "select count(*) from effect") == 0
    effects.execute("update scoop_outbox.message set body = '{\"asleep\": false}' where topic = 'gated.asleep'")
    gate.open()
    second = fleet.worker("gated:gated")
    until_blocking(lambda: _ended(effects, 4), 20)
    assert set(_pids(effects).values()) == {second.pid}
    assert_exactly_once(effects)


_LOCKED = """
select count(distinct pid) from pg_locks
where relation = 'effect'::regclass and mode = 'RowExclusiveLock' and granted
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once_and_loses_nothing(
    number: signal.Signals, effects: psycopg.Connection[Any], fleet: Fleet, launch: Callable[..., None]
) -> None:
    gate = Gate(effects, 1)
    fleet.relay()
    first = fleet.worker("gated:gated", "--grace", "60")
    launch("gated.coroutine", gate=1)
    launch("gated.blocking", gate=1)
    launch("gated.asleep", asleep=True)
    until_blocking(lambda: gate.waiting == 2, 20)
    until_blocking(lambda: count(effects, _LOCKED) == 4)
    _tell(first, number)
    first.send(number)
    assert first.wait(3) == 128 + number
    gate.open()
    effects.execute("update scoop_outbox.message set body = '{\"asleep\": false}' where topic = 'gated.asleep'")
    second = fleet.worker("gated:gated")
    until_blocking(lambda: _ended(effects, 4), 20)
    assert set(_pids(effects).values()) == {second.pid}
    assert_exactly_once(effects)


async def test_within_a_process_too_steps_that_outlast_their_grace_are_undone(
    database_url: str, effects: psycopg.Connection[Any]
) -> None:
    gate = Gate(effects, 1)
    gated.configure(database=database_url)
    async with gated.running(grace=0.1):
        await gated.launch("gated.coroutine", {"gate": 1})
        await gated.launch("gated.blocking", {"gate": 1})
        await until(lambda: gate.waiting == 2)
    await until(lambda: _nothing_left(effects))
    assert gate.waiting == 0
    assert count(effects, "select count(*) from effect") == 0
    gate.open()
    async with gated.running():
        await until(lambda: _ended(effects, 2))
    assert_exactly_once(effects)


async def test_a_thread_that_outlasts_its_grace_writes_nothing(
    database_url: str, effects: psycopg.Connection[Any]
) -> None:
    gated.configure(database=database_url)
    async with gated.running(grace=0.1):
        await gated.launch("gated.asleep", {"asleep": True})
        await until(lambda: count(effects, _LOCKED) == 2)
    await until(lambda: count(effects, _LOCKED) == 0)
    effects.execute("update scoop_outbox.message set body = '{\"asleep\": false}'")
    async with gated.running():
        await until(lambda: _ended(effects, 2))
    never.set()
    try:
        await until(lambda: _nothing_left(effects))
    finally:
        never.clear()
    assert_exactly_once(effects)


def _nothing_left(effects: psycopg.Connection[Any]) -> bool:
    """Tell whether a process that has stopped has kept nothing: no connection, no task and no thread."""
    connections = "select count(*) from pg_stat_activity where datname = current_database() and application_name <> ''"
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("scoop_outbox")]
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    return count(effects, connections) == 0 and not tasks and not threads


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "in the midst of work"])
async def test_sd_01_starting_and_stopping_again_and_again_leaves_nothing_behind(
    busy: bool, database_url: str, effects: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for app in flow.SERVICES.values():
        app.configure(database=database_url)
        await app.announce()
        await app.close()
    launched = 0
    for _ in range(20):
        async with flow.orders.running(), flow.stock.running(), flow.billing.running():
            for _ in range(5 if busy else 0):
                launched += 1
                await flow.orders.launch("order.placed", {"n": launched})
            if busy:
                await until(lambda: count(effects, "select count(*) from effect") > launched)  # noqa: B023
        await until(lambda: _nothing_left(effects))
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert not [record for record in caplog.records if "interrupted" in record.getMessage()]

    async with flow.orders.running(), flow.stock.running(), flow.billing.running():
        await until(lambda: is_quiet(effects, launched, "order.placed"), 20)
    assert_exactly_once(effects)


def test_sd_01_one_application_runs_in_one_event_loop_after_the_other(
    database_url: str, effects: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    flow.stock.configure(database=database_url)

    async def once(n: int) -> None:
        async with flow.stock.running():
            await flow.stock.launch("ledger.entry", {"n": 1})
            await until(lambda: is_quiet(effects, n, "ledger.entry"))

    for n in (1, 2, 3):
        asyncio.run(once(n))
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert_exactly_once(effects)


async def test_a_step_that_ends_while_the_block_is_left_is_not_lost(
    database_url: str, effects: psycopg.Connection[Any]
) -> None:
    gate = Gate(effects, 1)
    gated.configure(database=database_url)
    other = Scoop("crash gate keeper", database=database_url)
    async with other.running(worker=False):
        async with gated.running(relay=False):
            await gated.launch("gated.blocking", {"gate": 1})
            await until(lambda: gate.waiting == 1)
            asyncio.get_running_loop().call_later(0.05, gate.open)
        assert count(effects, "select count(*) from effect where step = 'first_blocking'") == 1
        async with gated.running(relay=False):
            await until(lambda: _ended(effects, 1))
    assert_exactly_once(effects)
