"""A relay ends, dies or hangs, and a standby publishes on: nothing is lost, doubled or out of order."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from scoop_outbox.daemon.leases import LEASE
from tests.crash.flow import stock
from tests.crash.ledger import count
from tests.crash.processes import Fleet, Process
from tests.waiting import until_blocking

LEASE_SECONDS = LEASE.total_seconds()
KEYS = 4


@pytest.fixture
def launch(database_url: str, effects: psycopg.Connection[Any]) -> Callable[[int], None]:
    """Launch messages up to the given number, to a saga that no worker executes: only intake is looked at."""
    stock.configure(database=database_url)
    stock.announce_sync()
    launched = 0

    def launch(up_to: int) -> None:
        nonlocal launched
        while launched < up_to:
            launched += 1
            stock.launch_sync("ledger.entry", {"n": launched}, key=f"key {launched % KEYS}")
        stock.close_sync()

    return launch


@pytest.fixture
def relays(fleet: Fleet) -> tuple[Process, Process]:
    """A relay that owns the whole outbox, and one that stands by."""
    owner = fleet.relay()
    until_blocking(lambda: "relaying shards" in owner.log, 20)
    standby = fleet.relay()
    standby.wait_until_ready()
    return owner, standby


def _taken_in(effects: psycopg.Connection[Any]) -> int:
    return count(effects, "select count(*) from scoop_outbox.message")


def _assert_in_order_and_once(effects: psycopg.Connection[Any], launched: int) -> None:
    until_blocking(lambda: count(effects, "select count(*) from scoop_outbox.outbox") == 0)
    rows = effects.execute(
        "select m.key, array_agg((convert_from(m.body, 'utf8')::json ->> 'n')::int order by m.created_at)"
        " from scoop_outbox.message m join scoop_outbox.run r on r.message_id = m.id group by 1"
    ).fetchall()
    assert dict(rows) == {f"key {k}": [n for n in range(1, launched + 1) if n % KEYS == k] for k in range(KEYS)}
    assert count(effects, "select count(*) from scoop_outbox.dead_letter") == 0


def test_a_relay_that_ends_gives_its_lease_back(
    effects: psycopg.Connection[Any], relays: tuple[Process, Process], launch: Callable[[int], None]
) -> None:
    owner, standby = relays
    launch(40)
    until_blocking(lambda: _taken_in(effects) == 40)
    owner.send(signal.SIGTERM)
    launch(80)
    assert owner.wait(10) == 0
    ended = time.monotonic()
    until_blocking(lambda: "relaying shards" in standby.log)
    assert time.monotonic() - ended < 1
    until_blocking(lambda: _taken_in(effects) == 80)
    _assert_in_order_and_once(effects, 80)
    assert standby.ready


def test_a_relay_that_is_killed_is_succeeded_when_its_lease_has_run_out(
    effects: psycopg.Connection[Any], relays: tuple[Process, Process], launch: Callable[[int], None]
) -> None:
    owner, standby = relays
    launch(40)
    until_blocking(lambda: _taken_in(effects) > 0)
    owner.kill()
    killed = time.monotonic()
    launch(80)
    until_blocking(lambda: "relaying shards" in standby.log, LEASE_SECONDS + 5)
    assert time.monotonic() - killed < LEASE_SECONDS + 1
    until_blocking(lambda: _taken_in(effects) == 80)
    _assert_in_order_and_once(effects, 80)


def test_a_relay_that_hangs_and_comes_back_publishes_nothing_twice(
    effects: psycopg.Connection[Any], relays: tuple[Process, Process], launch: Callable[[int], None]
) -> None:
    owner, standby = relays
    launch(100)
    until_blocking(lambda: _taken_in(effects) > 0)
    owner.send(signal.SIGSTOP)
    launch(200)
    until_blocking(lambda: "relaying shards" in standby.log, LEASE_SECONDS + 5)
    launch(250)
    owner.send(signal.SIGCONT)
    launch(400)
    until_blocking(lambda: "another relay has taken shards" in owner.log)
    until_blocking(lambda: _taken_in(effects) == 400)
    _assert_in_order_and_once(effects, 400)
    # It stands by from now on, and takes over in its turn.
    standby.send(signal.SIGTERM)
    assert standby.wait(10) == 0
    launch(420)
    until_blocking(lambda: _taken_in(effects) == 420)
    _assert_in_order_and_once(effects, 420)
