"""A broker that does not take some messages, or none, for now: who waits, and who does not."""

import itertools
from contextlib import ExitStack
from typing import Any

import pytest

from scoop_outbox.broker.protocol import ACKNOWLEDGED, PublishStatus, Receipt
from scoop_outbox.daemon.relay import ownership as ownership_module
from scoop_outbox.daemon.relay import scan as scan_module
from scoop_outbox.daemon.relay import topic_backoff as backoff_module
from scoop_outbox.daemon.relay import watermark as watermark_module
from scoop_outbox.daemon.relay.leases import Leases
from scoop_outbox.daemon.relay.prefetch import Prefetch
from scoop_outbox.store.async_driver import AsyncDriver
from scoop_outbox.store.callbacks import Interrupted
from scoop_outbox.store.schema import SHARDS
from tests.integration.relaying import FakePublisher, ask, left, made, relaying, shard_of, write, written_late
from tests.waiting import until

FULL = Receipt(PublishStatus.RETRIABLE, "the queue is full")


async def test_a_topic_that_is_not_taken_does_not_stop_the_others(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_module, "BATCH", 10)
    full = True
    publisher = FakePublisher(lambda one: FULL if full and one.topic == "full" else ACKNOWLEDGED)
    keys = [str(number) for number in range(16)]
    # More than a batch of it in every shard, and the others behind it.
    write(database_url, *(made(number, keys[number % 16], "full") for number in range(480)))
    write(database_url, *(made(number, keys[number % 16]) for number in range(480, 560)))
    async with relaying(database_url, publisher) as relay:
        await until(lambda: len(publisher.acknowledged) == 80)
        assert relay.problem == "the queue is full"
        # What comes now is published as quickly as ever.
        write(database_url, *(made(number, keys[number % 16], "other") for number in range(560, 640)))
        await until(lambda: left(database_url) == 480)
        full = False
        await until(lambda: left(database_url) == 0)
        await until(lambda: relay.problem is None)
    for key in keys:
        published = publisher.of(key)
        assert [one for one in published if one < 480] == list(range(int(key), 480, 16))
        assert [one for one in published if one >= 480] == list(range(480 + int(key), 640, 16))


async def test_a_topic_that_is_not_taken_is_tried_again_with_a_few_messages(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_module, "TRIAL", 2)
    monkeypatch.setattr(backoff_module, "LONGEST", 0.2)
    full = True
    publisher = FakePublisher(lambda one: FULL if full and one.topic == "full" else ACKNOWLEDGED)
    write(database_url, *(made(number, "k", "full") for number in range(100)))
    async with relaying(database_url, publisher):
        await until(lambda: len(publisher.batches) >= 4)
        full = False
        await until(lambda: left(database_url) == 0)
    assert publisher.batches[0] == [str(number) for number in range(100)]
    assert publisher.batches[1:4] == [["0", "1"]] * 3
    assert publisher.of("k") == list(range(100))


async def test_a_long_backlog_that_is_held_back_is_not_passed_over_with_each_look(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watermark_module, "_EVERY", 0.0)
    monkeypatch.setattr(watermark_module, "FULL_SCAN_EVERY", 3600.0)
    monkeypatch.setattr(scan_module, "BATCH", 2)
    full = True
    publisher = FakePublisher(lambda one: FULL if full and one.topic == "full" else ACKNOWLEDGED)
    write(database_url, *(made(number, "k", "full") for number in range(50)))
    shard = shard_of(database_url, "k")
    (last,) = ask(database_url, "select max(seq) from outbox where topic = 'full'")[0]
    async with relaying(database_url, publisher) as relay:
        await until(lambda: relay._scan._watermarks.low(shard) >= last, 30)
        full = False
        await until(lambda: left(database_url) == 0)
    assert publisher.of("k") == list(range(50))


async def test_what_comes_to_light_below_a_message_that_is_not_taken_is_tried_with_it(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watermark_module, "FULL_SCAN_EVERY", 3600.0)
    monkeypatch.setattr(watermark_module, "_EVERY", 0.0)
    monkeypatch.setattr(scan_module, "BATCH", 2)
    full = True
    publisher = FakePublisher(lambda one: FULL if full else ACKNOWLEDGED)
    publisher.open.clear()
    with ExitStack() as late:
        late.enter_context(written_late(database_url, made(0, "k")))
        write(database_url, *(made(number, "k") for number in range(1, 7)))
        read = Prefetch._run

        def read_behind_the_commit(reader: Any, plan: Any) -> Any:
            late.close()
            return read(reader, plan)

        monkeypatch.setattr(Prefetch, "_run", read_behind_the_commit)
        async with relaying(database_url, publisher) as relay:
            await until(lambda: relay._backlog.ahead)
            publisher.open.set()
            await until(lambda: relay.problem == "the queue is full")
            full = False
            await until(lambda: left(database_url) == 0)
    assert publisher.of("k") == list(range(7))


async def test_rev_01_what_commits_while_its_topic_is_held_back_is_not_passed_over(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watermark_module, "FULL_SCAN_EVERY", 3600.0)
    monkeypatch.setattr(watermark_module, "_EVERY", 0.0)
    monkeypatch.setattr(backoff_module, "_SHORTEST", 3.0)
    monkeypatch.setattr(backoff_module, "_LONGEST_FOR_ALL", 0.01)
    full = True
    publisher = FakePublisher(lambda one: FULL if full and one.topic == "full" else ACKNOWLEDGED)
    shard = shard_of(database_url, "k")
    async with relaying(database_url, publisher) as relay:
        await until(lambda: relay.shards == SHARDS)
        with written_late(database_url, made(0, "k", "full")) as write_more:
            # It has a higher number, commits first, and is what the topic is held back for.
            write(database_url, made(1, "k", "full"))
            await until(lambda: relay.problem == "the queue is full")
            write_more(made(2, "k", "full"))
        last = ask(database_url, "select max(seq) from outbox")[0][0]
        # Others go on, and the floor with them.
        numbers = itertools.count(3)

        def passed() -> bool:
            write(database_url, made(next(numbers), "k", "other"))
            return relay._scan._watermarks.low(shard) > int(last)

        await until(passed, 30, 0.1)
        full = False
        await until(lambda: left(database_url) == 0, 30)
    assert [one for one in publisher.of("k") if one in {0, 2}] == [0, 2]
    assert 1 in publisher.of("k")


async def test_a_topic_of_which_nothing_is_left_is_held_back_no_more(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff_module, "LONGEST", 0.2)
    publisher = FakePublisher(lambda one: FULL if one.topic == "full" else ACKNOWLEDGED)
    write(database_url, made(0, "k", "full"), made(1, "k"))
    async with relaying(database_url, publisher) as relay:
        await until(lambda: relay.problem == "the queue is full")
        ask(database_url, "delete from outbox where topic = 'full' returning 1")
        await until(lambda: relay.problem is None)
    assert publisher.of("k") == [1]


async def test_a_relay_that_cannot_reach_the_broker_leaves_its_shards_to_one_that_can(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership_module, "_STAND_ASIDE_AFTER", 0.2)
    cut_off = FakePublisher(lambda _: Receipt(PublishStatus.RETRIABLE, "no route to host"))
    cut_off.problem = "no route to host"
    write(database_url, *(made(number, str(number)) for number in range(40)))
    async with relaying(database_url, cut_off) as first:
        await until(lambda: first.shards == SHARDS and cut_off.batches)
        well = FakePublisher()
        async with relaying(database_url, well) as second:
            await until(lambda: left(database_url) == 0)
            assert second.shards == SHARDS
            assert first.shards == 0
            assert first.problem == "no route to host"
    assert sorted(int(body) for _, body in well.acknowledged) == list(range(40))


async def test_a_relay_that_is_alone_takes_its_shards_back_when_it_can_reach_the_broker(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership_module, "_STAND_ASIDE_AFTER", 0.2)
    publisher = FakePublisher(lambda _: Receipt(PublishStatus.RETRIABLE, "down") if publisher.problem else ACKNOWLEDGED)
    publisher.problem = "down"
    write(database_url, made(0, "k"))
    async with relaying(database_url, publisher) as relay:
        await until(lambda: relay._ownership._aside)
        assert relay.problem == "down"
        write(database_url, made(1, "k"))
        publisher.problem = None
        await until(lambda: left(database_url) == 0)
        await until(lambda: relay.problem is None)
    assert publisher.of("k") == [0, 1]


async def test_a_database_that_fails_while_a_relay_leaves_its_shards_costs_nothing(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership_module, "_STAND_ASIDE_AFTER", 0.2)
    failures = [Interrupted("the database went away"), Interrupted("once more")]
    release = Leases.release

    async def fail_first(leases: Leases, driver: AsyncDriver) -> None:
        if failures:
            raise failures.pop()
        await release(leases, driver)

    monkeypatch.setattr(Leases, "release", fail_first)
    publisher = FakePublisher(lambda _: Receipt(PublishStatus.RETRIABLE, "down") if publisher.problem else ACKNOWLEDGED)
    publisher.problem = "down"
    write(database_url, made(0, "k"))
    async with relaying(database_url, publisher) as relay:
        await until(lambda: not failures)
        publisher.problem = None
        await until(lambda: left(database_url) == 0)
        await until(lambda: relay.problem is None)
    assert publisher.of("k") == [0]


async def test_a_relay_whose_broker_answers_keeps_its_shards(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership_module, "_STAND_ASIDE_AFTER", 0.2)
    publisher = FakePublisher(lambda _: FULL)
    write(database_url, made(0, "k"))
    async with relaying(database_url, publisher) as relay:
        await until(lambda: relay._backoff.stalled > 0.5)
        probed = publisher.probed
        await until(lambda: publisher.probed > probed)
        assert relay.shards == SHARDS
