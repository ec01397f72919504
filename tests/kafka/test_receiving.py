"""Receiving on a real broker: what comes, where a group begins, and what is committed."""

import asyncio
import os
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from scoop_outbox_kafka.consumer import KafkaConsumer
from scoop_outbox_kafka.membership import Membership
from scoop_outbox_kafka.positions import Positions

from scoop_outbox.broker.protocol import Delivery, Subscription
from scoop_outbox.errors import BrokerError
from scoop_outbox.wire import headers as wire
from tests.kafka.trial import ACKNOWLEDGED, Trial, bodies, envelope, joined, name, nothing, received, verdicts
from tests.waiting import until

PROTOCOLS = [{}, {"consumer__group__protocol": "consumer"}]


async def test_a_plain_producer_s_message_becomes_a_root(trial: Trial) -> None:
    topic = trial.topic()
    trial.produce(topic, b"\x00\xff", key=b"k", headers=[("a", b"1"), ("a", b"2"), ("null", None)])
    (one,) = await received(await trial.consumer(name("g"), topic), 1)
    assert one.envelope.topic == topic
    assert one.envelope.key == "k"
    assert one.envelope.body == b"\x00\xff"
    assert one.envelope.content_type == ""
    # Of a name that comes several times, the last one counts.
    assert one.envelope.headers == {"a": "2", "null": ""}
    assert one.position == f"{topic}[0]@0"
    assert one.defect is None


async def test_what_we_publish_comes_as_it_was(trial: Trial) -> None:
    topic = trial.topic()
    sent = envelope(topic, wire.key_text(b"\xff\x00"), b"\x00\x01", odd=wire.text(b"\xfe\xff"))
    await (await trial.publisher()).publish([sent])
    (one,) = await received(await trial.consumer(name("g"), topic), 1)
    assert one.envelope.id == sent.id
    assert one.envelope.key == sent.key
    assert one.envelope.body == sent.body
    assert one.envelope.content_type == sent.content_type
    assert {**one.envelope.headers} == {**sent.headers, "scoop-id": sent.id, "scoop-topic": sent.topic}


async def test_a_null_value_is_an_empty_body_with_a_header(trial: Trial) -> None:
    topic = trial.topic(cleanup_policy="compact")
    trial.produce(topic, None, key=b"k")
    (one,) = await received(await trial.consumer(name("g"), topic), 1)
    assert one.envelope.body == b""
    assert one.envelope.headers == {"kafka-tombstone": "true"}
    # And it goes on as one.
    other = trial.topic()
    await (await trial.publisher()).publish([envelope(other, "k", b"", **one.envelope.headers)])
    assert [message.value() for message in trial.read(other)] == [None]


async def test_a_defect_is_told_with_the_message(trial: Trial) -> None:
    topic = trial.topic()
    trial.produce(topic, b"x", headers=[("scoop-id", b"not one")])
    trial.produce(topic, b"y")
    one, other = await received(await trial.consumer(name("g"), topic), 2)
    assert one.defect == "its header scoop-id is no UUID"
    assert other.defect is None


async def test_a_message_without_an_id_gets_the_same_one_whenever_it_comes(trial: Trial) -> None:
    topic = trial.topic()
    trial.produce(topic, b"1", b"2")
    first = await received(await trial.consumer(name("g"), topic), 2)
    again = await received(await trial.consumer(name("g"), topic), 2)
    assert [one.envelope.id for one in first] == [one.envelope.id for one in again]
    assert len({one.envelope.id for one in first}) == 2
    # Of a topic that is made anew the offsets begin again; the ids must not.
    trial.admin.delete_topics([topic], operation_timeout=10)[topic].result(10)
    await until(lambda: topic not in trial.admin.list_topics(timeout=10).topics)
    trial.create(topic)
    trial.produce(topic, b"1", b"2")
    anew = await received(await trial.consumer(name("g"), topic), 2)
    assert not {one.envelope.id for one in first} & {one.envelope.id for one in anew}


async def test_a_header_that_identifies_messages(trial: Trial) -> None:
    topic = trial.topic()
    known = str(uuid.uuid4()).encode()
    for value in (known, b"other", known):
        trial.produce(topic, b"x", headers=[("id", value)])
    trial.produce(topic, b"x")
    group = name("g")
    found = await received(await trial.consumer(group, topic, identity__header="id"), 4)
    one, other, again, without = (each.envelope.id for each in found)
    assert one == again
    assert len({one, other, without}) == 3


async def test_offsets_are_committed_when_messages_are_acknowledged(trial: Trial) -> None:
    topic, group = trial.topic(), name("g")
    trial.produce(topic, b"1", b"2", b"3")
    consumer = await trial.consumer(group, topic)
    first = await received(consumer, 3, acknowledge=False)
    assert trial.committed(group, topic) == 0  # where it began
    await consumer.acknowledge(first[:2])
    await until(lambda: trial.committed(group, topic) == 2)
    await consumer.close()
    # What was not acknowledged comes again.
    assert bodies(await received(await trial.consumer(group, topic), 1)) == [b"3"]


async def test_close_commits_what_was_acknowledged_last(trial: Trial) -> None:
    topic, group = trial.topic(), name("g")
    trial.produce(topic, b"1", b"2")
    consumer = await trial.consumer(group, topic)
    await consumer.acknowledge(await received(consumer, 2, acknowledge=False))
    await consumer.close()
    assert trial.committed(group, topic) == 2


async def test_a_batch_does_not_wait_until_it_is_full(trial: Trial) -> None:
    topic = trial.topic()
    consumer = await trial.consumer(name("g"), topic, start="latest")
    await joined(consumer)
    waiting = asyncio.create_task(consumer.receive(500, 10))
    trial.produce(topic, b"1")
    async with asyncio.timeout(5):
        assert bodies(await waiting) == [b"1"]


async def test_no_more_comes_than_was_asked_for(trial: Trial) -> None:
    topic = trial.topic()
    trial.produce(topic, *(b"%d" % number for number in range(10)))
    consumer = await trial.consumer(name("g"), topic)
    sizes: list[int] = []
    while sum(sizes) < 10:
        sizes.append(len(await consumer.receive(3, 0.2)))
    assert max(sizes) == 3


async def test_what_was_read_when_somebody_stopped_waiting_is_not_lost(trial: Trial) -> None:
    topic = trial.topic()
    consumer = await trial.consumer(name("g"), topic, start="latest")
    await joined(consumer)
    waiting = asyncio.create_task(consumer.receive(500, 5))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    trial.produce(topic, b"1")
    assert bodies(await received(consumer, 1)) == [b"1"]


async def test_markers_of_transactions_are_no_messages(trial: Trial) -> None:
    topic, group = trial.topic(), name("g")
    producer = Producer({**trial.client, "transactional.id": name("t")})
    producer.init_transactions(10)
    for value, end in ((b"1", producer.commit_transaction), (b"2", producer.abort_transaction)):
        producer.begin_transaction()
        producer.produce(topic, value)
        producer.flush(10)
        end(10)
    trial.produce(topic, b"3")
    consumer = await trial.consumer(group, topic)
    found = await received(consumer, 2)
    assert bodies(found) == [b"1", b"3"]
    assert [one.position for one in found] == [f"{topic}[0]@0", f"{topic}[0]@4"]
    await consumer.close()
    assert trial.committed(group, topic) == 5


async def test_what_is_in_a_transaction_does_not_come_before_its_end(trial: Trial) -> None:
    topic = trial.topic()
    producer = Producer({**trial.client, "transactional.id": name("t")})
    producer.init_transactions(10)
    producer.begin_transaction()
    producer.produce(topic, b"1")
    producer.flush(10)
    consumer = await trial.consumer(name("g"), topic)
    await joined(consumer)
    await nothing(consumer)
    producer.commit_transaction(10)
    assert bodies(await received(consumer, 1)) == [b"1"]


async def test_pause_and_resume(trial: Trial) -> None:
    topic, group = trial.topic(2), name("g")
    consumer = await trial.consumer(group, topic, consumer__session__timeout__ms=6000)
    await joined(consumer)
    await consumer.pause()
    for partition in (0, 1):
        trial.produce(topic, b"%d" % partition, partition=partition)
    await nothing(consumer)
    await consumer.resume()
    assert sorted(bodies(await received(consumer, 2))) == [b"0", b"1"]


async def test_a_pause_that_fails_loses_no_message(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = trial.topic()
    consumer = await trial.consumer(name("g"), topic)
    trial.produce(topic, b"x")

    def fails(_: Membership) -> None:
        if consumer._ready:
            raise KafkaException("no such partition")

    with monkeypatch.context() as patched:
        patched.setattr(Membership, "pause_if_due", fails)
        with pytest.raises(KafkaException):
            await received(consumer, 1)
    assert bodies(await received(consumer, 1)) == [b"x"]


async def test_a_pause_holds_for_partitions_that_come_later(trial: Trial) -> None:
    topic, group = trial.topic(2), name("g")
    consumer = await trial.consumer(group, topic)
    await consumer.pause()
    await joined(consumer)
    trial.produce(topic, b"1")
    await nothing(consumer)
    await consumer.resume()
    assert bodies(await received(consumer, 1)) == [b"1"]


# Where a group begins.


async def test_without_a_start_a_new_group_is_refused(trial: Trial) -> None:
    topic, group = trial.topic(), name("g")
    broker = trial.broker()
    consumer = await trial.consumer(group, topic, start=None)
    for refused in (broker.prepare(Subscription("test", group, (topic,))), consumer.receive(1, 0.1)):
        with pytest.raises(BrokerError, match="where to begin was not said") as caught:
            await refused
        for part in (group, topic, '"earliest"', '"latest"', "ISO 8601", '"group:NAME"', "Scoop(start=...)"):
            assert part in str(caught.value)
    # A group that has been here needs none.
    trial.commit(group, topic, 0)
    await broker.prepare(Subscription("test", group, (topic,)))
    trial.produce(topic, b"1")
    assert bodies(await received(consumer, 1)) == [b"1"]


@pytest.mark.parametrize("start, wrong", [("newest", "means nothing"), ("group:", "names no group")])
async def test_a_start_that_means_nothing(trial: Trial, start: str, wrong: str) -> None:
    with pytest.raises(BrokerError, match=wrong):
        await trial.consumer(name("g"), "topic", start=start)
    with pytest.raises(BrokerError, match=wrong):
        await trial.broker().prepare(Subscription("test", name("g"), ("topic",), start))


async def test_a_time_needs_a_zone(trial: Trial) -> None:
    with pytest.raises(BrokerError, match="has no time zone"):
        await trial.consumer(name("g"), "topic", start="2026-01-31T12:00:00")


async def test_start_earliest_and_latest(trial: Trial) -> None:
    topic = trial.topic()
    trial.produce(topic, b"old")
    late = await trial.consumer(name("g"), topic, start="latest")
    await joined(late)
    await nothing(late)
    trial.produce(topic, b"new")
    assert bodies(await received(late, 1)) == [b"new"]
    assert bodies(await received(await trial.consumer(name("g"), topic, start="earliest"), 2)) == [b"old", b"new"]


async def test_start_at_a_time(trial: Trial) -> None:
    topic = trial.topic(2)
    noon = datetime(2026, 1, 31, 12, tzinfo=UTC)
    for hours in (-1, 0, 1):
        stamp = int((noon + timedelta(hours=hours)).timestamp() * 1000)
        trial.produce(topic, b"%d" % hours, timestamp=stamp, partition=0)
    trial.produce(topic, b"long ago", timestamp=1, partition=1)
    consumer = await trial.consumer(name("g"), topic, start=noon.isoformat())
    assert bodies(await received(consumer, 2)) == [b"0", b"1"]
    await nothing(consumer)
    trial.produce(topic, b"now", partition=1)
    assert bodies(await received(consumer, 1)) == [b"now"]


async def test_start_at_the_offsets_of_another_group(trial: Trial) -> None:
    topic, other = trial.topic(2), name("other")
    for partition in (0, 1):
        trial.produce(topic, b"a%d" % partition, b"b%d" % partition, partition=partition)
    trial.commit(other, topic, 1, partition=0)
    consumer = await trial.consumer(name("g"), topic, start=f"group:{other}")
    # It has taken nothing from the second partition.
    assert sorted(bodies(await received(consumer, 3))) == [b"a1", b"b0", b"b1"]
    stranger = await trial.consumer(name("g"), topic, start="group:nobody")
    with pytest.raises(BrokerError, match=f"the group nobody, .* has no offsets on the topic {topic}"):
        await stranger.receive(1, 0.1)


async def test_a_start_is_laid_down_at_once(trial: Trial) -> None:
    topic, group = trial.topic(), name("g")
    trial.produce(topic, b"old")
    consumer = await trial.consumer(group, topic, start="latest")
    await joined(consumer)
    # As after a crash: nothing was acknowledged, and what comes meanwhile belongs to the group.
    assert trial.committed(group, topic) == 1
    await consumer.close()
    trial.produce(topic, b"new")
    assert bodies(await received(await trial.consumer(group, topic, start="latest"), 1)) == [b"new"]


async def test_a_start_on_another_topic_of_a_group_that_is_at_work(trial: Trial) -> None:
    known, other, group = trial.topic(), trial.topic(2), name("g")
    at_work = await trial.consumer(group, known)
    await joined(at_work)
    trial.produce(other, b"old0", partition=0)
    trial.produce(other, b"old1", partition=1)
    newer = await trial.consumer(group, known, other, start="latest")

    found: list[bytes] = []
    done = asyncio.Event()

    async def both() -> None:
        while not done.is_set():
            await at_work.receive(10, 0.05)
            found.extend(bodies(await newer.receive(10, 0.05)))

    receiving = asyncio.create_task(both())
    # The newer one commits where it begins as soon as it is assigned the topic.
    await until(lambda: (trial.committed(group, other, 0), trial.committed(group, other, 1)) == (1, 1), timeout=20)
    # Behind what is old, in each partition.
    trial.produce(other, b"new0", partition=0)
    trial.produce(other, b"new1", partition=1)
    await until(lambda: {b"new0", b"new1"} <= set(found), timeout=20)
    done.set()
    await receiving
    assert sorted(found) == [b"new0", b"new1"]


async def test_new_partitions_begin_at_their_beginning(trial: Trial) -> None:
    topic, group = trial.topic(), name("g")
    consumer = await trial.consumer(group, topic, start="latest", topic__metadata__refresh__interval__ms=300)
    await joined(consumer)
    trial.enlarge(topic, 2)
    await until(lambda: len(trial.admin.list_topics(topic, timeout=10).topics[topic].partitions) == 2)
    trial.produce(topic, b"1", partition=1)
    assert bodies(await received(consumer, 1)) == [b"1"]


async def test_an_offset_that_is_gone_is_told_and_the_earliest_taken(
    trial: Trial, caplog: pytest.LogCaptureFixture
) -> None:
    topic, group = trial.topic(), name("g")
    trial.commit(group, topic, 0)
    trial.produce(topic, b"0", b"1", b"2", b"3")
    next(iter(trial.admin.delete_records([TopicPartition(topic, 0, 2)]).values())).result(10)
    consumer = await trial.consumer(group, topic, start="latest")
    assert bodies(await received(consumer, 2)) == [b"2", b"3"]
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert f"{topic}[0]" in record.getMessage()
    assert "it goes on at 2)" in record.getMessage()


async def test_an_offset_behind_the_end_is_told_and_the_earliest_taken(
    trial: Trial, caplog: pytest.LogCaptureFixture
) -> None:
    topic, group = trial.topic(), name("g")
    trial.commit(group, topic, 100)
    trial.produce(topic, b"0")
    consumer = await trial.consumer(group, topic)
    assert bodies(await received(consumer, 1)) == [b"0"]
    assert [record.levelname for record in caplog.records if "kafka: position lost" in record.getMessage()] == ["ERROR"]


# Several members.


@pytest.mark.parametrize("protocol", [{}, {"consumer__group__protocol": "consumer"}, {"eager": True}])
async def test_a_group_shares_its_work_and_loses_nothing(trial: Trial, protocol: dict[str, Any]) -> None:
    if protocol.get("eager"):
        protocol = {"consumer__partition__assignment__strategy": "range"}
    topic, group = trial.topic(4), name("g")
    publisher = await trial.publisher()
    came: dict[bytes, list[int]] = {}
    first = await trial.consumer(group, topic, **protocol)
    await joined(first)
    second = await trial.consumer(group, topic, **protocol)
    sent, stop = [0], asyncio.Event()

    async def send() -> None:
        while not stop.is_set():
            batch = [envelope(topic, f"k{n % 50}", b"%d" % n) for n in range(sent[0], sent[0] + 50)]
            assert set(verdicts(await publisher.publish(batch))) == {ACKNOWLEDGED}
            sent[0] += 50
            await asyncio.sleep(0.01)

    async def take(consumer: KafkaConsumer, which: int, ended: asyncio.Event) -> None:
        while not ended.is_set():
            batch = await consumer.receive(100, 0.1)
            for one in batch:
                came.setdefault(one.envelope.body, []).append(which)
            await consumer.acknowledge(batch)

    sending = asyncio.create_task(send())
    over, left = asyncio.Event(), asyncio.Event()
    takers = [asyncio.create_task(take(first, 1, left)), asyncio.create_task(take(second, 2, over))]
    await until(lambda: any(2 in who for who in came.values()), timeout=20)
    # One leaves in the middle of it.
    left.set()
    await takers[0]
    await first.close()
    at = sent[0]
    await until(lambda: sent[0] > at + 500)
    stop.set()
    await sending
    await until(lambda: len(came) == sent[0], timeout=20)
    over.set()
    await takers[1]
    assert {int(body) for body in came} == set(range(sent[0]))


async def test_what_others_have_meanwhile_is_not_acknowledged(trial: Trial) -> None:
    topic, group = trial.topic(2), name("g")
    for partition in (0, 1):
        trial.produce(topic, b"%d" % partition, partition=partition)
    first = await trial.consumer(group, topic)
    held = await received(first, 2, acknowledge=False)
    second = await trial.consumer(group, topic)
    found: Sequence[Delivery] = []
    async with asyncio.timeout(20):
        while not found:
            assert bodies(await first.receive(10, 0.05)) == []
            found = await second.receive(10, 0.05)
    # It passes over the one, and commits the other.
    await first.acknowledge(held)
    theirs = int(bodies(found)[0])
    await until(lambda: trial.committed(group, topic, 1 - theirs) == 1)
    assert trial.committed(group, topic, theirs) == 0
    await second.acknowledge(found)
    await until(lambda: trial.committed(group, topic, theirs) == 1)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=["classic", "consumer"])
async def test_a_member_is_well_once_it_is_in_its_group_even_with_nothing_to_do(
    trial: Trial, protocol: dict[str, Any]
) -> None:
    topic, group = trial.topic(1), name("g")
    members = [await trial.consumer(group, topic, **protocol) for _ in range(2)]
    assert f"it is not in the group {group} yet" in str(members[0].problem)
    async with asyncio.timeout(20):
        while any(member.problem for member in members):
            for member in members:
                await member.receive(1, 0.05)


async def test_who_is_too_slow_loses_its_partitions_and_comes_back(trial: Trial) -> None:
    topic, group = trial.topic(), name("g")
    trial.produce(topic, b"1")
    consumer = await trial.consumer(
        group, topic, consumer__session__timeout__ms=1000, consumer__max__poll__interval__ms=1000
    )
    (slow,) = await received(consumer, 1, acknowledge=False)
    await until(lambda: not members(trial, group), timeout=20, interval=0.2)
    again = await received(consumer, 1, acknowledge=False)
    # What it held was taken from it; what it has got anew is its own.
    await consumer.acknowledge([slow])
    assert trial.committed(group, topic) == 0
    await consumer.acknowledge(again)
    await until(lambda: trial.committed(group, topic) == 1)


def members(trial: Trial, group: str) -> int:
    (described,) = trial.admin.describe_consumer_groups([group]).values()
    return len(described.result(10).members)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=["classic", "consumer"])
async def test_who_has_the_name_of_another_member_is_shut_out_says_so_and_comes_back(
    trial: Trial, protocol: dict[str, Any]
) -> None:
    topic, group = trial.topic(), name("g")
    one, two = [await trial.consumer(group, topic, consumer__group__instance__id="1", **protocol) for _ in "12"]
    await joined(one)
    # With the newer protocol it is the second one; with the older the first, once the second one is there.
    loser, winner = (two, one) if protocol else (one, two)

    async def shut_out() -> bool:
        try:
            await two.receive(1, 0.1)
            await one.receive(1, 0.1)
        except BrokerError as error:
            return "Kafka has shut this consumer out" in str(error)
        return False

    await until(shut_out, timeout=20)
    await winner.close()
    trial.produce(topic, b"1")
    assert bodies(await received(loser, 1)) == [b"1"]


async def test_where_a_group_begins_is_laid_down_for_all_partitions_before_anything_is_read(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, group = trial.topic(3), name("g")
    for partition in range(3):
        trial.produce(topic, b"old", b"old", partition=partition)
    # A group that has members takes no offsets from others.
    await joined(await trial.consumer(group, trial.topic()))
    consumer = await trial.consumer(group, topic, start="latest")

    def crash(*_: object) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(Positions, "_assign", crash)
    async with asyncio.timeout(30):
        with pytest.raises(RuntimeError, match="killed"):
            await nothing_ever(consumer)
    assert [trial.committed(group, topic, partition) for partition in range(3)] == [2, 2, 2]


async def test_where_a_group_begins_takes_nothing_back_that_another_member_has_done(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, group = trial.topic(2), name("g")
    for partition in range(2):
        trial.produce(topic, *[b"old"] * 5, partition=partition)
    await joined(await trial.consumer(group, trial.topic()))
    consumer = await trial.consumer(group, topic, start="2000-01-01T00:00:00Z")
    reposition = Positions._reposition

    def meanwhile(self: Positions, client: Consumer, part: tuple[str, int]) -> None:
        # What another member did, between our look at the group and our turn in the partition.
        if trial.committed(group, topic, 0) < 0:
            client.commit(offsets=[TopicPartition(topic, 0, 4)], asynchronous=False)
        reposition(self, client, part)

    monkeypatch.setattr(Positions, "_reposition", meanwhile)
    came = await received(consumer, 6, acknowledge=False)
    assert sorted(one.position for one in came) == [f"{topic}[0]@4", *(f"{topic}[1]@{offset}" for offset in range(5))]
    assert [trial.committed(group, topic, partition) for partition in range(2)] == [4, 0]


async def nothing_ever(consumer: KafkaConsumer) -> None:
    while True:
        assert await consumer.receive(10, 0.1) == []


async def test_a_fork_is_refused(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = trial.topic()
    consumer = await trial.consumer(name("g"), topic)
    with monkeypatch.context() as forked:
        forked.setattr(os, "getpid", lambda: 1)
        for refused in (consumer.receive(1, 0.1), consumer.acknowledge([])):
            with pytest.raises(BrokerError, match="opened before the process was forked"):
                await refused
        await consumer.close()
    await joined(consumer)


async def test_two_groups_get_every_message(trial: Trial) -> None:
    topic = trial.topic()
    trial.produce(topic, b"1", b"2")
    for _ in range(2):
        assert bodies(await received(await trial.consumer(name("g"), topic), 2)) == [b"1", b"2"]
