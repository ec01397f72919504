"""The relay with a broker that says what the test wants to hear."""

import asyncio
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from itertools import product
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import make_url

from scoop_outbox._emission import emission
from scoop_outbox.broker.protocol import ACKNOWLEDGED, PublishStatus, Receipt
from scoop_outbox.daemon.relay import leases as leases_module
from scoop_outbox.daemon.relay import scan as scan_module
from scoop_outbox.daemon.relay import topic_backoff as backoff_module
from scoop_outbox.daemon.relay import watermark as watermark_module
from scoop_outbox.daemon.relay.watermark import Watermarks
from scoop_outbox.message import Envelope
from scoop_outbox.store.async_driver import AsyncDriver
from scoop_outbox.store.schema import SHARDS
from tests.integration.relaying import (
    FakePublisher,
    ask,
    keys_of_different_shards,
    left,
    made,
    relaying,
    shard_of,
    write,
    written_late,
)
from tests.waiting import until


@pytest.fixture
def without_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is found just because all is looked through now and then."""
    monkeypatch.setattr(watermark_module, "FULL_SCAN_EVERY", 3600.0)


async def test_messages_of_a_key_are_published_in_order_and_then_deleted(database_url: str) -> None:
    keys = ["a", "b", "c", None]
    for start in range(0, 200, 40):
        write(database_url, *(made(number, keys[number % 4]) for number in range(start, start + 40)))
    publisher = FakePublisher()
    async with relaying(database_url, publisher) as relay:
        await until(lambda: left(database_url) == 0)
        await until(lambda: relay.counters.deleted == 200)
    for index, key in enumerate(keys[:3]):
        assert publisher.of(key) == list(range(index, 200, 4))
    assert sorted(publisher.of(None)) == list(range(3, 200, 4))
    assert publisher.closed


async def test_many_messages_go_in_batches(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "BATCH", 10)
    write(database_url, *(made(number, "k") for number in range(95)))
    publisher = FakePublisher()
    async with relaying(database_url, publisher):
        await until(lambda: left(database_url) == 0)
    # When only one shard has so many, it fills the batches alone.
    assert [len(batch) for batch in publisher.batches] == [10, 80, 5]
    assert publisher.of("k") == list(range(95))


async def test_two_relays_publish_everything_once_and_each_shard_has_one_owner(database_url: str) -> None:
    one, other = FakePublisher(), FakePublisher()
    async with relaying(database_url, one) as first, relaying(database_url, other) as second:
        for start in range(0, 300, 50):
            write(database_url, *(made(number, str(number % 7)) for number in range(start, start + 50)))
            await asyncio.sleep(0)
        await until(lambda: left(database_url) == 0)
        assert set(first._leases._epochs) | set(second._leases._epochs) == set(range(SHARDS))
        assert not set(first._leases._epochs) & set(second._leases._epochs)
    published = Counter(body for _, body in one.acknowledged + other.acknowledged)
    assert published == Counter(str(number) for number in range(300))
    for key in map(str, range(7)):
        assert one.of(key) == sorted(one.of(key))
        assert other.of(key) == sorted(other.of(key))


async def test_a_relay_that_lost_its_lease_while_it_published_deletes_nothing(database_url: str) -> None:
    write(database_url, *(made(number, "k") for number in range(3)))
    slow, quick = FakePublisher(), FakePublisher()
    slow.open.clear()
    async with relaying(database_url, slow) as loser:
        await until(lambda: slow.batches)
        # Its lease runs out behind its back, and another relay takes the shards.
        with psycopg.connect(database_url) as connection:
            connection.execute("update scoop_outbox.outbox_shard set expires_at = '-infinity'")
        quick.open.clear()
        async with relaying(database_url, quick) as winner:
            await until(lambda: quick.batches)
            slow.open.set()
            await until(lambda: not loser._leases._epochs)
            assert left(database_url) == 3
            assert loser.counters.deleted == 0
            assert set(winner._leases._epochs) == set(range(SHARDS))
            quick.open.set()
            await until(lambda: left(database_url) == 0)
    # The loser noticed at once, and published nothing twice.
    assert slow.of("k") == quick.of("k") == [0, 1, 2]


async def test_a_relay_that_lost_its_lease_buries_nothing(database_url: str) -> None:
    write(database_url, made(1, "k"))
    slow = FakePublisher(lambda _: Receipt(PublishStatus.PERMANENT, "too large"))
    slow.open.clear()
    async with relaying(database_url, slow) as loser:
        await until(lambda: slow.batches)
        with psycopg.connect(database_url) as connection:
            connection.execute("update scoop_outbox.outbox_shard set epoch = epoch + 1")
        slow.open.set()
        await until(lambda: not loser._leases._epochs)
        assert slow.batches == [["1"]]
        assert ask(database_url, "select 1 from dead_letter") == []
        assert left(database_url) == 1


async def test_what_fails_for_now_holds_its_own_shard_back_and_keeps_its_order(database_url: str) -> None:
    stuck, fine = keys_of_different_shards(database_url, 2)
    down = True
    publisher = FakePublisher(
        lambda one: Receipt(PublishStatus.RETRIABLE, "no leader") if down and one.key == stuck else ACKNOWLEDGED
    )
    write(database_url, *(made(number, key) for number in range(10) for key in (stuck, fine)))
    async with relaying(database_url, publisher) as relay:
        await until(lambda: publisher.of(fine) == list(range(10)))
        await until(lambda: relay._backoff)
        assert {shard for shard, _ in relay._backoff._flows} == {shard_of(database_url, stuck)}
        write(database_url, *(made(number, key) for number in range(10, 20) for key in (stuck, fine)))
        await until(lambda: publisher.of(fine) == list(range(20)))
        assert publisher.of(stuck) == []
        await until(lambda: left(database_url) == 20)
        down = False
        await until(lambda: left(database_url) == 0)
    assert publisher.of(stuck) == list(range(20))
    assert ask(database_url, "select 1 from dead_letter") == []


async def test_what_fails_for_good_is_a_dead_letter_and_others_go_on(database_url: str) -> None:
    publisher = FakePublisher(
        lambda one: Receipt(PublishStatus.PERMANENT, "too large: o'clock") if one.body == b"3" else ACKNOWLEDGED
    )
    bad = made(3, "k")
    write(
        database_url, *(made(number, "k") for number in range(3)), bad, *(made(number, "k") for number in range(4, 8))
    )
    async with relaying(database_url, publisher):
        await until(lambda: left(database_url) == 0)
    assert publisher.of("k") == [0, 1, 2, 4, 5, 6, 7]
    assert ask(database_url, "select message_id, topic, key, body, content_type, origin, reason from dead_letter") == [
        (bad.message_id, "topic", "k", b"3", "application/json", "relay", "too large: o'clock")
    ]


async def test_a_relay_with_nothing_to_publish_knows_whether_it_could(database_url: str) -> None:
    publisher = FakePublisher()
    publisher.problem = "no broker answers"
    async with relaying(database_url, publisher) as relay:
        await until(lambda: relay.problem == "no broker answers")
        # Nor does it ask again and again.
        assert publisher.probed == 1
        write(database_url, made(0))
        await until(lambda: relay.problem is None)
        assert publisher.of(None) == [0]
        relay._probe._due = 0.0
        await until(lambda: relay.problem == "no broker answers")


async def test_nothing_is_published_while_the_broker_is_asked_for_a_sign_of_life(database_url: str) -> None:
    class Slow(FakePublisher):
        answered = False

        async def probe(self) -> str | None:
            await super().probe()
            await self.open.wait()
            self.answered = True
            return None

        async def publish(self, batch: Sequence[Envelope]) -> Sequence[Receipt]:
            assert self.answered
            return await super().publish(batch)

    publisher = Slow()
    publisher.open.clear()
    async with relaying(database_url, publisher) as relay:
        await until(lambda: publisher.probed)
        write(database_url, made(0))
        await until(lambda: relay._backlog.in_flight)
        publisher.open.set()
        await until(lambda: publisher.of(None) == [0])


async def test_a_database_user_that_may_only_read_is_told_what_it_needs(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("create role only_reads login password 'reads'")
        connection.execute("grant usage on schema scoop_outbox to only_reads")
        connection.execute("grant select on all tables in schema scoop_outbox to only_reads")
    reads = make_url(database_url).set(username="only_reads", password="reads")  # noqa: S106 - it stands for one
    try:
        async with relaying(reads.render_as_string(hide_password=False), FakePublisher()) as relay:
            await until(lambda: relay.problem)
            await until(lambda: len(relay_warnings(caplog)) == 1)
            problem = relay.problem
            assert problem is not None
            assert "only_reads" in problem
            assert "permission denied for table outbox_shard" in problem
            assert "needs usage on the schema, and select, insert, update and delete on its tables" in problem
            assert "reads@" not in problem
            with psycopg.connect(database_url) as connection:
                connection.execute(
                    "grant select, insert, update, delete on all tables in schema scoop_outbox to only_reads"
                )
            await until(lambda: relay.shards == SHARDS)
            await until(lambda: relay.problem is None)
        assert len(relay_warnings(caplog)) == 1, "once, however often it tries"
    finally:
        with psycopg.connect(database_url) as connection:
            connection.execute("drop owned by only_reads")
            connection.execute("drop role only_reads")


def relay_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "database: unavailable" in record.getMessage()]


async def test_a_publisher_that_raises_is_a_broker_that_is_down(database_url: str) -> None:
    broken = [ValueError("an adapter's own bug"), asyncio.CancelledError()]
    unanswered = [asyncio.CancelledError()]

    class Broken(FakePublisher):
        async def probe(self) -> str | None:
            if unanswered:
                raise unanswered.pop()
            return await super().probe()

        async def publish(self, batch: Sequence[Envelope]) -> Sequence[Receipt]:
            if broken:
                raise broken.pop()
            receipts = await super().publish(batch)
            return receipts if len(self.batches) > 1 else receipts[1:]

    publisher = Broken()
    async with relaying(database_url, publisher) as relay:
        await until(lambda: relay.problem == "what was waited for has been cancelled")
        write(database_url, *(made(number, "k") for number in range(3)))
        await until(lambda: left(database_url) == 0)
    assert publisher.of("k") == [0, 1, 2, 0, 1, 2]


async def test_a_message_that_commits_late_is_published_though_later_ones_were(database_url: str) -> None:
    publisher = FakePublisher()
    async with relaying(database_url, publisher):
        with written_late(database_url, made(0, "k")):
            write(database_url, *(made(number, "k") for number in range(1, 20)))
            await until(lambda: publisher.of("k") == list(range(1, 20)) and left(database_url) == 0)
        await until(lambda: publisher.of("k") == [*range(1, 20), 0])


@pytest.mark.usefixtures("without_sweeps")
async def test_what_a_transaction_writes_is_published_in_order_however_long_it_takes(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watermark_module, "_EVERY", 0.0)
    publisher = FakePublisher()
    async with relaying(database_url, publisher):
        with written_late(database_url, made(0, "k")) as write_more:
            for number in range(1, 6):
                write(database_url, made(number, "k"))
                await until(lambda: left(database_url) == 0)
            write_more(made(6, "k"))
        await until(lambda: publisher.of("k") == [*range(1, 6), 0, 6])


@pytest.mark.usefixtures("without_sweeps")
async def test_what_commits_while_others_are_in_hand_comes_before_what_commits_after_it(database_url: str) -> None:
    publisher = FakePublisher()
    publisher.open.clear()
    async with relaying(database_url, publisher):
        with written_late(database_url, made(0, "k")) as write_more:
            write(database_url, made(1, "k"))
            await until(lambda: publisher.batches == [["1"]])
            write_more(made(2, "k"))
        write(database_url, made(3, "k"))
        publisher.open.set()
        await until(lambda: left(database_url) == 0)
    assert publisher.of("k") == [1, 0, 2, 3]


@pytest.mark.usefixtures("without_sweeps")
async def test_what_commits_below_a_backlog_comes_before_what_commits_after_it(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_module, "BATCH", 2)
    publisher = FakePublisher()
    publisher.open.clear()
    async with AsyncExitStack() as stack:
        with written_late(database_url, made(0, "k")) as write_more:
            write(database_url, *(made(number, "k") for number in range(1, 101)))
            await stack.enter_async_context(relaying(database_url, publisher))
            await until(lambda: publisher.batches)
            write_more(made(101, "k"))
        write(database_url, made(102, "k"))
        publisher.open.set()
        await until(lambda: left(database_url) == 0)
    published = publisher.of("k")
    assert published.index(0) < published.index(100), "it has waited for the outbox to be empty"
    assert [number for number in published if number] == list(range(1, 103))


@pytest.mark.parametrize("batch", [2, scan_module.BATCH], ids=["a backlog", "none"])
@pytest.mark.usefixtures("without_sweeps")
async def test_transactions_that_launch_now_and_then_keep_the_order_of_what_they_launch(
    database_url: str, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """One after the other each has its turn, while the others' numbers lie between its own."""
    monkeypatch.setattr(scan_module, "BATCH", batch)
    publisher = FakePublisher()

    def launch_again_and_again(writer: int) -> None:
        for transaction in range(25):
            with written_late(database_url, made(4 * transaction, str(writer))) as write_more:
                for number in range(1, 4):
                    write_more(made(4 * transaction + number, str(writer)))

    async with relaying(database_url, publisher):
        await asyncio.gather(*(asyncio.to_thread(launch_again_and_again, writer) for writer in range(6)))
        await until(lambda: left(database_url) == 0, 30)
    assert {str(writer): publisher.of(str(writer)) for writer in range(6)} == {
        str(writer): list(range(100)) for writer in range(6)
    }


async def test_what_nobody_was_known_to_write_is_found_all_the_same(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = Watermarks.record_writers
    monkeypatch.setattr(Watermarks, "record_writers", lambda self, ends, _: writing(self, ends, set()))
    monkeypatch.setattr(watermark_module, "_EVERY", 0.0)
    monkeypatch.setattr(watermark_module, "FULL_SCAN_EVERY", 0.5)
    publisher = FakePublisher()
    async with relaying(database_url, publisher) as relay:
        with written_late(database_url, made(0, "k")):
            (late,) = ask(database_url, "select last_value from pg_sequences where sequencename = 'outbox_seq_seq'")
            for number in range(1, 6):
                write(database_url, made(number, "k"))
                await until(lambda: left(database_url) == 0)
            await until(lambda: relay._scan._watermarks.low(shard_of(database_url, "k")) > late[0])
        await until(lambda: publisher.of("k") == [*range(1, 6), 0])


async def test_a_relay_that_stops_leaves_its_shards_to_a_standby_at_once(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases_module, "LEASE", timedelta(hours=1))
    one, other = FakePublisher(), FakePublisher()
    async with relaying(database_url, one) as owner:
        await until(lambda: len(owner._leases._epochs) == SHARDS)
        async with relaying(database_url, other) as standby:
            await until(lambda: standby._leases._renew_at > 0)
            assert standby._leases._epochs == {}
            owner.stop()
            await until(lambda: len(standby._leases._epochs) == SHARDS, timeout=5)
            write(database_url, made(1, "k"))
            await until(lambda: other.of("k") == [1])
    assert one.acknowledged == []


async def test_a_relay_that_died_is_succeeded_when_its_lease_runs_out(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases_module, "LEASE", timedelta(seconds=0.5))
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "update scoop_outbox.outbox_shard set owner = %s, epoch = 7,"
            " expires_at = clock_timestamp() + interval '0.3 seconds'",
            (uuid.uuid4(),),
        )
    publisher = FakePublisher()
    write(database_url, made(1, "k"))
    async with relaying(database_url, publisher) as relay:
        await until(lambda: publisher.of("k") == [1])
        assert relay._leases._epochs == dict.fromkeys(range(SHARDS), 8)


async def test_a_relay_survives_the_loss_of_its_connection(database_url: str) -> None:
    publisher = FakePublisher()
    async with relaying(database_url, publisher) as relay:
        await until(lambda: len(relay._leases._epochs) == SHARDS)
        for number in range(3):
            ask(
                database_url,
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'relay test'",
            )
            write(database_url, made(number, "k"))
            await until(lambda: number in publisher.of("k"))  # noqa: B023 - awaited within the turn
    assert publisher.of("k") == [0, 1, 2]


async def test_a_relay_that_stops_finishes_the_batch_in_hand(database_url: str) -> None:
    write(database_url, *(made(number, "k") for number in range(3)))
    publisher = FakePublisher()
    publisher.open.clear()
    async with relaying(database_url, publisher) as relay:
        await until(lambda: publisher.batches)
        relay.stop()
        write(database_url, made(3, "k"))
        publisher.open.set()
    assert publisher.of("k") == [0, 1, 2]
    assert left(database_url) == 1
    assert ask(database_url, "select distinct owner, expires_at = '-infinity' from outbox_shard") == [(None, True)]


async def test_a_reason_is_logged_when_it_changes_and_not_for_each_message(
    database_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "scoop_outbox.daemon")
    monkeypatch.setattr(backoff_module, "LONGEST", 0.01)
    monkeypatch.setattr(backoff_module, "_LONGEST_FOR_ALL", 0.01)
    reason = ["no leader"]
    publisher = FakePublisher(lambda _: Receipt(PublishStatus.RETRIABLE, reason[0]) if reason else ACKNOWLEDGED)
    write(database_url, *(made(number, "k") for number in range(3)))
    async with relaying(database_url, publisher) as relay:
        await until(lambda: len(publisher.batches) > 5)
        assert relay.problem == "no leader"
        reason[:] = ["no room"]
        await until(lambda: relay.problem == "no room")
        await until(lambda: len(publisher.batches) > 10)
        reason.clear()
        await until(lambda: left(database_url) == 0)
        await until(lambda: relay.problem is None)
    said = [record.getMessage() for record in caplog.records if "shards [0" not in record.getMessage()]
    assert [text.rpartition(": ")[2] for text in said] == ["no leader)", "no room)", "topics unblocked"]


async def test_a_topic_that_is_missing_does_not_slow_the_others_of_its_shard(database_url: str) -> None:
    publisher = FakePublisher(
        lambda one: Receipt(PublishStatus.PERMANENT, "there is no topic gone") if one.topic == "gone" else ACKNOWLEDGED
    )
    gone = [
        emission("gone", number, key="k", headers=None, context=None, awaited=False, depth=0) for number in range(800)
    ]
    write(database_url, *(one for number in range(800) for one in (gone[number], made(number, "k"))))
    batches: list[int] = []
    run = AsyncDriver.run

    async def counting(driver: AsyncDriver, plan: Any) -> Any:
        batches.append(plan.__name__ == "bury_unpublishable")
        return await run(driver, plan)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AsyncDriver, "run", counting)
        async with relaying(database_url, publisher) as relay:
            await until(lambda: left(database_url) == 0)
            assert relay.problem is None
    assert publisher.of("k") == list(range(800))
    assert ask(database_url, "select count(*), count(distinct message_id) from dead_letter") == [(800, 800)]
    assert sum(batches) == len(publisher.batches) == 2
    assert relay.counters.dead_letters == {"no_topic": 800}
    assert relay.counters.published == {"topic": 800}


VERDICTS = st.lists(
    st.sampled_from([PublishStatus.ACKNOWLEDGED] * 4 + [PublishStatus.RETRIABLE, PublishStatus.PERMANENT]), max_size=40
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    verdicts=VERDICTS,
    messages=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["topic", "other"])), max_size=40),
    batch=st.integers(1, 8),
)
async def test_messages_of_a_key_on_a_topic_keep_their_order_whatever_the_broker_says(
    database_url: str, verdicts: list[PublishStatus], messages: list[tuple[str, str]], batch: int
) -> None:
    left_to_say = list(reversed(verdicts))
    publisher = FakePublisher(
        lambda _: Receipt(left_to_say.pop() if left_to_say else PublishStatus.ACKNOWLEDGED, "why")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_module, "BATCH", batch)
        patch.setattr(backoff_module, "LONGEST", 0.001)
        patch.setattr(backoff_module, "_LONGEST_FOR_ALL", 0.001)
        patch.setattr(watermark_module, "FULL_SCAN_EVERY", 0.03)
        with psycopg.connect(database_url) as connection:
            connection.execute("truncate scoop_outbox.outbox, scoop_outbox.dead_letter")
        write(database_url, *(made(number, *message) for number, message in enumerate(messages)))
        async with relaying(database_url, publisher):
            await until(lambda: left(database_url) == 0)
    buried = [int(body) for (body,) in ask(database_url, "select convert_from(body, 'utf8') from dead_letter")]
    for key, topic in product("abc", ("topic", "other")):
        published = [number for number in publisher.of(key) if messages[number][1] == topic]
        assert published == sorted(published)
    assert sorted([*buried, *(int(body) for _, body in publisher.acknowledged)]) == list(range(len(messages)))
