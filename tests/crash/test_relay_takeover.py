"""A relay ends, dies or hangs, and a standby publishes on: nothing is lost, doubled or out of order."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from scoop_outbox.daemon.relay.leases import LEASE
from tests.crash import file_broker
from tests.crash.file_broker import Published, published
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
    until_blocking(lambda: "relay: publishing (shards" in owner.log, 20)
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
    until_blocking(lambda: "relay: publishing (shards" in standby.log)
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
    until_blocking(lambda: "relay: publishing (shards" in standby.log, LEASE_SECONDS + 5)
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
    until_blocking(lambda: "relay: publishing (shards" in standby.log, LEASE_SECONDS + 5)
    launch(250)
    owner.send(signal.SIGCONT)
    launch(400)
    until_blocking(lambda: "relay: shards taken over by another relay" in owner.log)
    until_blocking(lambda: _taken_in(effects) == 400)
    _assert_in_order_and_once(effects, 400)
    # It stands by from now on, and takes over in its turn.
    standby.send(signal.SIGTERM)
    assert standby.wait(10) == 0
    launch(420)
    until_blocking(lambda: _taken_in(effects) == 420)
    _assert_in_order_and_once(effects, 420)


# With a broker that takes its time: the relay is hit while it publishes --------------------------------------------


class Relays:
    """Relays that publish into a file, slowly."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self._fleet = fleet
        self._path = folder / "published"
        self._folder = file_broker.install(folder / "adapter")

    def start(self, delay: float, *options: str) -> Process:
        broker = ["--broker", f"file://{self._path}", "--broker-setting", f"delay={delay}"]
        return self._fleet.start("relay", *broker, *options, PYTHONPATH=str(self._folder))

    @property
    def published(self) -> list[Published]:
        return published(self._path)

    def assert_in_order(self, launched: int) -> None:
        """Nothing is missing, and of each key every message came for the first time in order."""
        first: dict[str, list[int]] = {}
        for one in self.published:
            numbers = first.setdefault(one.key, [])
            if one.number not in numbers:
                numbers.append(one.number)
        assert first == {f"key {k}": [n for n in range(1, launched + 1) if n % KEYS == k] for k in range(KEYS)}


@pytest.fixture
def slow_relays(fleet: Fleet, tmp_path: Path) -> Relays:
    return Relays(fleet, tmp_path)


def _waiting(effects: psycopg.Connection[Any]) -> int:
    return count(effects, "select count(*) from scoop_outbox.outbox")


def test_sigterm_lets_the_batch_in_hand_finish_and_hands_over(
    effects: psycopg.Connection[Any], slow_relays: Relays, launch: Callable[[int], None]
) -> None:
    launch(20)
    owner = slow_relays.start(0.1)
    until_blocking(lambda: slow_relays.published, 20)
    standby = slow_relays.start(0.0)
    standby.wait_until_ready()
    owner.send(signal.SIGTERM)
    launch(30)
    assert owner.wait(10) == 0
    until_blocking(lambda: "relay: publishing (shards" in standby.log, 1)
    until_blocking(lambda: _waiting(effects) == 0)
    # The first batch to the end by the one, the rest by the other, and nothing twice.
    assert [one.pid == owner.pid for one in slow_relays.published] == [True] * 20 + [False] * 10
    slow_relays.assert_in_order(30)
    assert len(slow_relays.published) == 30


def test_a_second_signal_ends_a_relay_that_waits_for_its_broker_at_once(
    effects: psycopg.Connection[Any], slow_relays: Relays, launch: Callable[[int], None]
) -> None:
    launch(1)
    relay = slow_relays.start(3600)
    until_blocking(lambda: "relay: publishing (shards" in relay.log, 20)
    relay.send(signal.SIGTERM)
    until_blocking(lambda: "process: stopping" in relay.log)
    relay.send(signal.SIGTERM)
    assert relay.wait(5) == 128 + signal.SIGTERM
    assert _waiting(effects) == 1


def test_a_relay_whose_broker_never_answers_ends_when_its_grace_is_over(
    effects: psycopg.Connection[Any], slow_relays: Relays, launch: Callable[[int], None]
) -> None:
    launch(1)
    relay = slow_relays.start(3600, "--grace", "0.5")
    until_blocking(lambda: "relay: publishing (shards" in relay.log, 20)
    relay.send(signal.SIGTERM)
    assert relay.wait(5) == 0
    assert _waiting(effects) == 1
    assert count(effects, "select count(*) from scoop_outbox.outbox_shard where owner is null") > 0


def test_a_relay_that_is_killed_while_it_publishes_loses_nothing(
    effects: psycopg.Connection[Any], slow_relays: Relays, launch: Callable[[int], None]
) -> None:
    launch(200)
    owner = slow_relays.start(0.01)
    until_blocking(lambda: len(slow_relays.published) > 20, 20)
    standby = slow_relays.start(0.0)
    standby.wait_until_ready()
    owner.kill()
    killed = time.monotonic()
    until_blocking(lambda: "relay: publishing (shards" in standby.log, LEASE_SECONDS + 5)
    assert time.monotonic() - killed < LEASE_SECONDS + 1
    until_blocking(lambda: _waiting(effects) == 0)
    slow_relays.assert_in_order(200)


def test_a_relay_that_hangs_while_it_publishes_publishes_nothing_new_when_it_comes_back(
    effects: psycopg.Connection[Any], slow_relays: Relays, launch: Callable[[int], None]
) -> None:
    launch(60)
    owner = slow_relays.start(0.05)
    until_blocking(lambda: len(slow_relays.published) > 5, 20)
    standby = slow_relays.start(0.0)
    standby.wait_until_ready()
    owner.send(signal.SIGSTOP)
    launch(100)
    until_blocking(lambda: "relay: publishing (shards" in standby.log, LEASE_SECONDS + 5)
    until_blocking(lambda: _waiting(effects) == 0)
    slow_relays.assert_in_order(100)
    owner.send(signal.SIGCONT)
    launch(140)
    until_blocking(lambda: "relay: shards taken over by another relay" in owner.log)
    until_blocking(lambda: _waiting(effects) == 0)
    slow_relays.assert_in_order(140)
    # It may send to the end what it had in hand, and has found out by then.
    until_blocking(lambda: sum(one.pid == owner.pid for one in slow_relays.published) == 60)
    standby.send(signal.SIGTERM)
    assert standby.wait(10) == 0
    launch(150)
    until_blocking(lambda: _waiting(effects) == 0)
    slow_relays.assert_in_order(150)
    assert {one.number for one in slow_relays.published if one.pid == owner.pid} == {*range(1, 61), *range(141, 151)}
