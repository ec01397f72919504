"""The relay while a batch is being published: it reads the next one, deletes the last one, and keeps its leases."""

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest

from scoop_outbox.broker.protocol import ACKNOWLEDGED, PublishStatus, Receipt
from scoop_outbox.core.plans.outbox import read_outbox
from scoop_outbox.daemon.hints import ProcessHints
from scoop_outbox.daemon.relay import leases as leases_module
from scoop_outbox.daemon.relay import scan as scan_module
from scoop_outbox.daemon.relay import watermark as watermark_module
from scoop_outbox.daemon.relay.prefetch import Prefetch
from scoop_outbox.daemon.relay.relay import Relay
from scoop_outbox.message import Envelope
from scoop_outbox.store.home import Home
from scoop_outbox.store.schema import DEFAULT_SCHEMA, SHARDS
from tests.integration.relaying import (
    FakePublisher,
    ask,
    keys_of_different_shards,
    left,
    made,
    relaying,
    take_over,
    write,
)
from tests.waiting import until


async def test_the_next_batch_is_read_while_one_is_published_and_each_row_is_published_once(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_module, "BATCH", 10)
    write(database_url, *(made(number, "k") for number in range(95)))
    publisher = FakePublisher()
    publisher.open.clear()
    async with relaying(database_url, publisher) as relay:
        await until(lambda: [one.body for one in relay._backlog.ahead.envelopes] == [b"%d" % n for n in range(10, 90)])
        assert len(publisher.batches) == 1
        publisher.open.set()
        await until(lambda: left(database_url) == 0)
    assert publisher.of("k") == list(range(95))


async def test_what_was_published_is_deleted_while_the_next_batch_is_published(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_module, "BATCH", 10)
    publisher = FakePublisher()

    def close_behind_the_first(_: Envelope) -> Receipt:
        publisher.open.clear()
        return ACKNOWLEDGED

    publisher.status = close_behind_the_first
    write(database_url, *(made(number, "k") for number in range(100)))
    async with relaying(database_url, publisher):
        await until(lambda: len(publisher.batches) == 2)
        await until(lambda: left(database_url) == 90)
        publisher.status = lambda _: ACKNOWLEDGED
        publisher.open.set()
        await until(lambda: left(database_url) == 0)
    assert publisher.of("k") == list(range(100))


async def test_what_was_read_ahead_is_thrown_away_when_the_shard_fails_for_now(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_module, "BATCH", 5)
    stuck, fine = keys_of_different_shards(database_url, 2)
    failing = [b"2"]
    publisher = FakePublisher(
        lambda one: (
            Receipt(PublishStatus.RETRIABLE, "no leader") if one.key == stuck and one.body in failing else ACKNOWLEDGED
        )
    )
    publisher.open.clear()
    write(database_url, *(made(number, key) for number in range(20) for key in (stuck, fine)))
    async with relaying(database_url, publisher) as relay:
        await until(lambda: len(relay._backlog.ahead) == 30)
        publisher.open.set()
        await until(lambda: publisher.of(fine) == list(range(20)))
        assert publisher.of(stuck) == [0, 1]
        failing.clear()
        await until(lambda: left(database_url) == 0)
    assert publisher.of(stuck) == list(range(20))
    assert publisher.of(fine) == list(range(20))


async def test_a_batch_is_bounded_by_bytes(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "BATCH_BYTES", 10)
    numbers = [*range(10**31, 10**31 + 7), 10**99, *range(10**32, 10**32 + 2)]
    write(database_url, *(made(number, "k") for number in numbers))
    publisher = FakePublisher()
    async with relaying(database_url, publisher):
        await until(lambda: left(database_url) == 0)
    # The first one, and then what eight shards would have together.
    sizes = [sum(map(len, batch)) for batch in publisher.batches]
    assert sizes == [32, 96, 96, 100, 66]
    assert publisher.of("k") == numbers


async def test_leases_are_renewed_while_a_batch_is_published(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases_module, "LEASE", timedelta(seconds=0.6))
    write(database_url, *(made(number, "k") for number in range(3)))
    slow, other = FakePublisher(), FakePublisher()
    slow.open.clear()
    async with relaying(database_url, slow) as owner:
        await until(lambda: slow.batches)
        async with relaying(database_url, other) as standby:
            before = ask(database_url, "select min(expires_at) from outbox_shard")[0][0]
            late = before + 3 * leases_module.LEASE
            await until(lambda: ask(database_url, "select min(expires_at) > %s from outbox_shard", late)[0][0])
            assert standby.shards == 0
            assert owner.shards == SHARDS
            slow.open.set()
            await until(lambda: left(database_url) == 0)
    assert (slow.of("k"), other.batches) == ([0, 1, 2], [])


async def test_a_shard_that_is_lost_while_it_is_read_is_begun_anew_when_it_is_won_back(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_module, "BATCH", 2)
    monkeypatch.setattr(watermark_module, "FULL_SCAN_EVERY", 3600.0)
    monkeypatch.setattr(leases_module, "LEASE", timedelta(seconds=0.6))
    write(database_url, *(made(number, "k") for number in range(6)))
    read, may_read = Prefetch._run, threading.Event()

    def hold(reader: Any, plan: Any) -> Any:
        assert may_read.wait(30)
        return read(reader, plan)

    monkeypatch.setattr(Prefetch, "_run", hold)
    publisher = FakePublisher()
    publisher.open.clear()
    async with relaying(database_url, publisher) as relay:
        await until(lambda: publisher.batches)
        take_over(database_url)
        await until(lambda: relay.shards == 0)
        may_read.set()
        publisher.open.set()
        await until(lambda: len(publisher.acknowledged) == 2 and not relay._backlog.in_flight)
        ask(database_url, "update outbox_shard set expires_at = now() returning 1")
        await until(lambda: left(database_url) == 0)
    # What had been published is still there: another owner would have published it.
    assert publisher.batches[:2] == [["0", "1"]] * 2
    assert publisher.of("k") == [0, 1, *range(6)]


async def test_what_was_read_ahead_of_a_lost_shard_is_not_published(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_module, "BATCH", 5)
    monkeypatch.setattr(leases_module, "LEASE", timedelta(seconds=0.6))
    write(database_url, *(made(number, "k") for number in range(20)))
    slow = FakePublisher()
    slow.open.clear()
    async with relaying(database_url, slow) as loser:
        await until(lambda: loser._backlog.ahead)
        take_over(database_url)
        await until(lambda: loser.shards == 0)
        slow.open.set()
        await until(lambda: slow.acknowledged)
        await until(lambda: not loser._backlog.in_flight)
    assert slow.batches == [["0", "1", "2", "3", "4"]]
    assert left(database_url) == 20


async def test_a_relay_that_stood_still_looks_at_its_leases_before_it_publishes(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = FakePublisher()
    async with relaying(database_url, publisher) as relay:
        await until(lambda: relay.shards == SHARDS)
        # Another relay took over meanwhile, and by this relay's own count nothing is to be renewed yet.
        take_over(database_url)
        relay._leases._valid_until = 0.0
        relay._leases._renew_at = float("inf")
        write(database_url, made(1, "k"))
        await until(lambda: relay.shards == 0)
    assert publisher.batches == []


async def test_a_database_that_is_lost_while_a_batch_is_published(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_module, "BATCH", 5)
    monkeypatch.setattr(leases_module, "LEASE", timedelta(seconds=0.6))
    write(database_url, *(made(number, "k") for number in range(12)))
    publisher = FakePublisher()
    publisher.open.clear()
    async with relaying(database_url, publisher) as relay:
        await until(lambda: relay._backlog.ahead)
        first = relay._database.driver
        ask(
            database_url,
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'relay test'",
        )
        await until(lambda: relay._database.driver not in (None, first))
        publisher.open.set()
        await until(lambda: left(database_url) == 0)
    assert publisher.of("k") == list(range(12))


async def test_what_nobody_expected_while_reading_ahead_ends_the_relay(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def surprised(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(scan_module, "read_outbox", raising)
        return read_outbox(*arguments, **named)

    def raising(*_: Any, **__: Any) -> Any:
        raise ValueError("not JSON")

    monkeypatch.setattr(scan_module, "BATCH", 3)
    monkeypatch.setattr(scan_module, "read_outbox", surprised)
    write(database_url, *(made(number, "k") for number in range(60)))
    home = Home(database_url, DEFAULT_SCHEMA, "relay test")
    publisher = FakePublisher()
    with pytest.raises(ValueError, match="not JSON"):
        await asyncio.wait_for(Relay(home, publisher, ProcessHints(home)).run(), 30)
    assert publisher.closed
    await home.dispose()


async def test_a_relay_that_stops_publishes_nothing_that_it_has_read_ahead(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_module, "BATCH", 3)
    write(database_url, *(made(number, "k") for number in range(9)))
    publisher = FakePublisher()
    publisher.open.clear()
    async with relaying(database_url, publisher) as relay:
        await until(lambda: relay._backlog.ahead)
        relay.stop()
        publisher.open.set()
    assert publisher.of("k") == [0, 1, 2]
    assert left(database_url) == 6
    assert ask(database_url, "select distinct owner, expires_at = '-infinity' from outbox_shard") == [(None, True)]
