"""Publishing on a real broker: what the broker stores, and what it refuses."""

import asyncio
import multiprocessing
import os
import secrets
from typing import Any

import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME
from scoop_outbox_kafka.publisher import KafkaPublisher

from scoop_outbox.errors import BrokerError
from scoop_outbox.message import JSON, Envelope, uuid7
from scoop_outbox.wire import headers as wire
from tests.kafka.trial import ACKNOWLEDGED, FOR_GOOD, FOR_NOW, Trial, envelope, name, verdicts


async def test_a_plain_consumer_sees_an_ordinary_message(trial: Trial) -> None:
    topic = trial.topic()
    message = Envelope(str(uuid7()), topic, "k", b"\x00body\xff", "application/x-thing", {"traceparent": "00-1-2-03"})
    assert verdicts(await (await trial.publisher()).publish([message])) == [ACKNOWLEDGED]
    (found,) = trial.read(topic)
    assert found.value() == b"\x00body\xff"
    assert found.key() == b"k"
    assert trial.headers(topic) == {
        "traceparent": b"00-1-2-03",
        "scoop-id": message.id.encode(),
        "scoop-topic": topic.encode(),
        "content-type": b"application/x-thing",
    }
    assert found.timestamp()[0] == TIMESTAMP_CREATE_TIME


async def test_binary_keys_and_headers_are_published_byte_for_byte(trial: Trial) -> None:
    topic = trial.topic()
    key, value = b"\xff\x00k", b"\xfe\x80\xff"
    await (await trial.publisher()).publish([envelope(topic, wire.key_text(key), odd=wire.text(value))])
    (found,) = trial.read(topic)
    assert found.key() == key
    assert trial.headers(topic)["odd"] == value


async def test_without_a_key_and_without_a_content_type(trial: Trial) -> None:
    topic = trial.topic()
    await (await trial.publisher()).publish([Envelope(str(uuid7()), topic, None, b"", "", {})])
    (found,) = trial.read(topic)
    assert found.key() is None
    assert found.value() == b""
    assert set(trial.headers(topic)) == {"scoop-id", "scoop-topic"}


async def test_a_tombstone_is_a_null_value(trial: Trial) -> None:
    topic = trial.topic()
    await (await trial.publisher()).publish(
        [Envelope(str(uuid7()), topic, "k", b"null", JSON, {"kafka-tombstone": "true"})]
    )
    (found,) = trial.read(topic)
    assert found.value() is None
    assert found.key() == b"k"
    assert set(trial.headers(topic)) == {"scoop-id", "scoop-topic"}


# What Java's Utils.murmur2 returns.
JAVA = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


async def test_keys_go_to_the_partitions_that_java_chooses(trial: Trial) -> None:
    topic = trial.topic(7)
    publisher = await trial.publisher()
    assert set(verdicts(await publisher.publish([envelope(topic, key.decode(), key) for key in JAVA]))) == {
        ACKNOWLEDGED
    }
    chosen = {key: (hashed & 0x7FFFFFFF) % 7 for key, hashed in JAVA.items()}
    assert len(set(chosen.values())) > 2
    for partition in set(chosen.values()):
        expected = [key for key in JAVA if chosen[key] == partition]
        assert [message.value() for message in trial.read(topic, partition)] == expected


async def test_a_large_batch_keeps_its_order(trial: Trial) -> None:
    topic = trial.topic(3)
    batch = [envelope(topic, f"k{number % 5}", b"%d" % number) for number in range(4000)]
    # A queue that is full all the time.
    publisher = await trial.publisher(producer__queue__buffering__max__messages=150)
    assert set(verdicts(await publisher.publish(batch))) == {ACKNOWLEDGED}
    found = [message for partition in range(3) for message in trial.read(topic, partition)]
    assert len(found) == 4000
    for key in range(5):
        numbers = [int(message.value() or b"") for message in found if message.key() == b"k%d" % key]
        assert numbers == list(range(key, 4000, 5))


async def test_an_unknown_topic_fails_alone(trial: Trial) -> None:
    topic, missing = trial.topic(), name("missing")
    publisher = await trial.publisher()
    batch = [envelope(topic, "k", b"1"), envelope(missing, "k", b"2"), envelope(topic, "k", b"3")]
    receipts = await publisher.publish(batch)
    assert verdicts(receipts) == [ACKNOWLEDGED, FOR_GOOD, ACKNOWLEDGED]
    assert f"there is no topic {missing}" in receipts[1].reason
    assert "scoop-outbox topology apply" in receipts[1].reason
    assert [message.value() for message in trial.read(topic)] == [b"1", b"3"]
    # The next one costs no wait, and nothing is created by itself.
    async with asyncio.timeout(1):
        assert verdicts(await publisher.publish(batch)) == [ACKNOWLEDGED, FOR_GOOD, ACKNOWLEDGED]
    assert missing not in trial.admin.list_topics(timeout=10).topics
    # As soon as somebody creates it, it is published on.
    trial.create(missing)
    assert verdicts(await publisher.publish(batch)) == [ACKNOWLEDGED] * 3


async def test_a_topic_that_is_created_in_the_nick_of_time_is_waited_for(trial: Trial) -> None:
    topic = name()
    publishing = asyncio.create_task((await trial.publisher()).publish([envelope(topic)]))
    await asyncio.sleep(0)
    trial.create(topic)
    assert verdicts(await publishing) == [ACKNOWLEDGED]


async def test_topics_that_do_not_exist_share_the_time_that_they_have(trial: Trial) -> None:
    topic, missing = trial.topic(), [name("missing") for _ in range(10)]
    publisher = await trial.publisher(publish__timeout=2)
    batch = [envelope(one) for one in (*missing, topic)]
    # Half a second for each of them would be longer than publish.timeout.
    assert verdicts(await publisher.publish(batch)) == [*[FOR_GOOD] * 10, ACKNOWLEDGED]


async def test_a_topic_is_not_refused_before_it_has_had_its_time(trial: Trial) -> None:
    topic, missing = trial.topic(), name("missing")
    publisher = await trial.publisher(publish__timeout=1, producer__topic__metadata__propagation__max__ms=1_200)
    batch = [envelope(missing, None, b"1"), envelope(topic, None, b"1")]
    receipts = await publisher.publish(batch)
    assert verdicts(receipts) == [FOR_NOW, ACKNOWLEDGED]
    assert f"there is no topic {missing}" in receipts[0].reason
    assert verdicts(await publisher.publish(batch)) == [FOR_NOW, ACKNOWLEDGED]
    assert verdicts(await publisher.publish(batch)) == [FOR_GOOD, ACKNOWLEDGED]
    trial.create(missing)
    assert verdicts(await publisher.publish(batch)) == [ACKNOWLEDGED] * 2


async def test_how_long_a_topic_may_need_to_become_known_can_be_set(trial: Trial) -> None:
    missing = name("missing")
    publisher = await trial.publisher(producer__topic__metadata__propagation__max__ms=60_000)
    publishing = asyncio.create_task(publisher.publish([envelope(missing)]))
    done, _ = await asyncio.wait([publishing], timeout=1)
    assert not done
    trial.create(missing)
    assert verdicts(await publishing) == [ACKNOWLEDGED]


async def test_a_topic_that_is_deleted_between_two_batches(trial: Trial) -> None:
    topic, other = trial.topic(), trial.topic()
    publisher = await trial.publisher()
    assert verdicts(await publisher.publish([envelope(topic), envelope(other)])) == [ACKNOWLEDGED] * 2
    trial.admin.delete_topics([topic], operation_timeout=10)[topic].result(10)
    batch = [envelope(other), envelope(topic), envelope(other)]
    # Kafka says so when its controller has noted it. Until the broker hears of it, messages still go into the topic.
    while verdicts(receipts := await publisher.publish(batch)) == [ACKNOWLEDGED] * 3:
        pass
    assert verdicts(receipts) == [ACKNOWLEDGED, FOR_GOOD, ACKNOWLEDGED], receipts


async def test_a_name_that_no_topic_can_have(trial: Trial) -> None:
    topic = trial.topic()
    wrong = [envelope("no such/topic"), envelope("\udc80"), envelope("a\0b")]
    receipts = await (await trial.publisher()).publish([*wrong, envelope(topic)])
    assert verdicts(receipts) == [FOR_GOOD, FOR_GOOD, FOR_GOOD, ACKNOWLEDGED]
    assert "cannot be the name of a topic" in receipts[0].reason


@pytest.mark.parametrize("settings", [{}, {"message__max__bytes": 1_000_000}], ids=["the broker", "the client"])
async def test_a_message_that_is_too_large_fails_alone(trial: Trial, settings: dict[str, Any]) -> None:
    topic = trial.topic()
    batch = [envelope(topic, "k", body) for body in (b"1", secrets.token_bytes(1_100_000), b"3")]
    receipts = await (await trial.publisher(**settings)).publish(batch)
    assert verdicts(receipts) == [ACKNOWLEDGED, FOR_GOOD, ACKNOWLEDGED]
    assert "too large" in receipts[1].reason
    assert [message.value() for message in trial.read(topic)] == [b"1", b"3"]


@pytest.mark.parametrize("header", ["\udc80", "a\0b"])
async def test_a_header_that_no_record_can_have_fails_alone(trial: Trial, header: str) -> None:
    topic = trial.topic()
    batch = [envelope(topic, "k", b"1"), envelope(topic, "k", b"2", **{header: "x"}), envelope(topic, "k", b"3")]
    receipts = await (await trial.publisher()).publish(batch)
    assert verdicts(receipts) == [ACKNOWLEDGED, FOR_GOOD, ACKNOWLEDGED]
    assert "cannot be a record of Kafka" in receipts[1].reason


@pytest.mark.parametrize("partitions", [1, 3])
async def test_a_message_that_is_too_large_for_the_topic_fails_alone(trial: Trial, partitions: int) -> None:
    # The broker refuses all that came with it in one request.
    topic, other = trial.topic(partitions, max_message_bytes="20000"), trial.topic()
    publisher = await trial.publisher()
    batch = [envelope(topic, f"k{number % 7}", b"%d" % number) for number in range(300)]
    batch.insert(100, envelope(topic, "k2", secrets.token_bytes(30_000)))
    batch.insert(200, envelope(other, "k2", b"other"))
    receipts = await publisher.publish(batch)
    assert [index for index, status in enumerate(verdicts(receipts)) if status is not ACKNOWLEDGED] == [100]
    assert verdicts(receipts)[100] is FOR_GOOD
    assert "Kafka refuses it" in receipts[100].reason
    found = [message for part in range(partitions) for message in trial.read(topic, part)]
    for key in range(7):
        came = [int(message.value() or b"") for message in found if message.key() == b"k%d" % key]
        assert list(dict.fromkeys(came)) == list(range(key, 300, 7))


async def test_a_message_that_is_too_large_for_a_segment_of_the_log_fails_alone(trial: Trial) -> None:
    topic = trial.topic(max_message_bytes="5000000", segment_bytes="1048576")
    batch = [
        envelope(topic, "k", b"1"),
        envelope(topic, "k", secrets.token_bytes(2_000_000)),
        envelope(topic, "k", b"3"),
    ]
    receipts = await (await trial.publisher()).publish(batch)
    assert verdicts(receipts) == [ACKNOWLEDGED, FOR_GOOD, ACKNOWLEDGED], receipts
    assert [message.value() for message in trial.read(topic)] == [b"1", b"3"]


async def test_messages_that_are_too_large_only_together_are_all_published(trial: Trial) -> None:
    topic = trial.topic(max_message_bytes="20000")
    batch = [envelope(topic, "k", b"%4d" % number + secrets.token_bytes(5000)) for number in range(100)]
    publisher = await trial.publisher()
    assert set(verdicts(await publisher.publish(batch))) == {ACKNOWLEDGED}
    came = [int((message.value() or b"")[:4]) for message in trial.read(topic)]
    assert list(dict.fromkeys(came)) == list(range(100))


async def test_requests_behind_one_that_is_refused_are_not_stored_before_it(trial: Trial) -> None:
    topic = trial.topic(max_message_bytes="5000")
    bodies = [secrets.token_bytes(800) for _ in range(9)] + [b"a" * 800] * 200
    batch = [envelope(topic, "k", b"%4d" % number + body) for number, body in enumerate(bodies)]
    # Many requests, of which the first is too large: what is in it cannot be compressed.
    publisher = await trial.publisher(producer__batch__size=8000)
    assert set(verdicts(await publisher.publish(batch))) == {ACKNOWLEDGED}
    came = [int((message.value() or b"")[:4]) for message in trial.read(topic)]
    assert list(dict.fromkeys(came)) == list(range(209))


async def test_a_record_that_the_broker_finds_invalid_fails_alone(trial: Trial) -> None:
    topic = trial.topic(cleanup_policy="compact")
    batch = [envelope(topic, key, b"%d" % number) for number, key in enumerate(["a", None, "a", "b"])]
    receipts = await (await trial.publisher()).publish(batch)
    assert verdicts(receipts) == [ACKNOWLEDGED, FOR_GOOD, ACKNOWLEDGED, ACKNOWLEDGED], receipts
    came = [message.value() for message in trial.read(topic)]
    assert came == [b"0", b"2", b"3"]


async def test_the_event_loop_goes_on_meanwhile(trial: Trial) -> None:
    publisher = await trial.publisher()
    publishing = asyncio.create_task(publisher.publish([envelope(name("missing"))]))
    turns = 0
    while not publishing.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert turns > 20


def _publish_in_a_child(publisher: KafkaPublisher, answer: "multiprocessing.SimpleQueue[str]") -> None:
    try:
        asyncio.run(publisher.publish([envelope("x")]))
    except BrokerError as error:
        answer.put(str(error))
    finally:
        os._exit(0)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_a_fork_is_refused(trial: Trial) -> None:
    publisher = await trial.publisher()
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    child = context.Process(target=_publish_in_a_child, args=(publisher, answer))
    child.start()
    child.join(10)
    assert not answer.empty()
    assert "opened before the process was forked" in answer.get()
    assert verdicts(await publisher.publish([envelope(trial.topic())])) == [ACKNOWLEDGED]


async def test_a_broker_that_is_down_says_so_in_time() -> None:
    async with Trial("kafka://127.0.0.1:1") as trial:
        publisher = await trial.publisher(publish__timeout=1)
        async with asyncio.timeout(5):
            receipts = await publisher.publish([envelope("x"), envelope("x")])
    assert verdicts(receipts) == [FOR_NOW, FOR_NOW]
    assert receipts[0].reason


async def test_a_producer_that_finds_no_broker_again_and_again_is_made_anew() -> None:
    async with Trial("kafka://127.0.0.1:1") as trial:
        publisher = await trial.publisher(publish__timeout=1)
        used = []
        for _ in range(4):
            await publisher.publish([envelope("x")])
            used.append(publisher._producer)
    assert used[0] is used[1] is not None
    assert used[2] is None
    assert used[3] not in (None, used[0])
