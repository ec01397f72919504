"""On Kafka's topics as they are: consumers and producers that know nothing of us, and groups of others."""

import asyncio
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from scoop_outbox import Message as Handled
from scoop_outbox import Scope, Topic
from scoop_outbox.devservers.kafka import KafkaCluster
from tests.dropin.listener import Listener
from tests.kafka.trial import Trial, name
from tests.waiting import until

AVRO = b"\x00\x00\x00\x00\x2a" + b"\x02\xff\xfe\x00caf\xc3"
"""As from a schema registry's serializer: a magic byte, the schema's number, and bytes that are no text."""

TRACE = {
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "tracestate": "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
    "baggage": "userId=Am%C3%A9lie,serverNode=DF%2028",
}


@dataclass(frozen=True)
class Order:
    sku: str


def headers_of(message: Message) -> dict[str, bytes]:
    found = message.headers() or []
    assert isinstance(found, list)
    assert len({header for header, _ in found}) == len(found)
    return {header: value for header, value in found if isinstance(value, bytes)}


def murmur2(data: bytes) -> int:
    """The hash of org.apache.kafka.common.utils.Utils, as a signed number."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = 0x9747B28C ^ len(data)
    for at in range(0, len(data) - 3, 4):
        k = int.from_bytes(data[at : at + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = h * m & mask ^ k
    rest = data[len(data) & ~3 :]
    if rest:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    h ^= h >> 15
    return h - (1 << 32) if h >> 31 else h


# -- what others see ------------------------------------------------------------------------------------------------


async def test_a_plain_consumer_sees_ordinary_messages(kafka: Trial, database_url: str) -> None:
    topic = kafka.topic()
    service = Listener(database_url, kafka.url, name("shop"))
    headers = {**TRACE, "kind": "order", "empty": "", "greeting": "Grüße"}

    async with service.running():
        await service.app.launch(topic, {"sku": "äpfel", "n": 1}, key="k-1", headers=headers)
        await service.app.launch(
            topic, AVRO, key=b"\xff\x00key", headers={**headers, "content-type": "application/avro"}
        )
        await service.app.launch(topic, b"")
        await until(lambda: service.ask("select count(*) from outbox") == [(0,)], 30)
        plain = await asyncio.to_thread(kafka.read, topic)

    assert [message.value() for message in plain] == [b'{"sku":"\\u00e4pfel","n":1}', AVRO, b""]
    assert [message.key() for message in plain] == [b"k-1", b"\xff\x00key", None]
    assert [headers_of(one)["content-type"] for one in plain[:2]] == [b"application/json", b"application/avro"]
    for message in plain[:2]:
        found = headers_of(message)
        assert {key: found[key].decode() for key in headers} == headers
        assert {key for key in found if key not in headers} == {
            "content-type",
            *(key for key in found if key.startswith("scoop-")),
        }


async def test_what_a_saga_launches_is_as_ordinary(kafka: Trial, database_url: str) -> None:
    orders, mails = kafka.topic(), kafka.topic()
    service = Listener(database_url, kafka.url, name("shop"), start="earliest")

    async def send(scope: Scope, message: Handled) -> None:
        passed = {header: message.headers[header] for header in TRACE}
        scope.launch(mails, AVRO, key=message.key, headers=passed)

    service.app.saga("send", on=orders).add_step("send", send)
    kafka.produce(orders, b'{"sku": "apple"}', key=b"k", headers=list(TRACE.items()))

    async with service.running():
        await until(lambda: service.ask("select 1 from run where state = 'committed'"), 30)
        await until(lambda: service.ask("select count(*) from outbox") == [(0,)], 30)
        (mail,) = await asyncio.to_thread(kafka.read, mails)

    assert (mail.key(), mail.value()) == (b"k", AVRO)
    found = headers_of(mail)
    assert {key: found[key].decode() for key in TRACE} == TRACE
    assert all(key in TRACE or key == "content-type" or key.startswith("scoop-") for key in found)


async def test_kcat_sees_ordinary_messages(kafka: Trial, database_url: str, kcat: str) -> None:
    topic = kafka.topic()
    service = Listener(database_url, kafka.url, name("shop"))
    async with service.running():
        await service.app.launch(topic, {"sku": "apple"}, key="k-1", headers={**TRACE})
        await service.app.launch(topic, AVRO, key="k-2")
        await until(lambda: service.ask("select count(*) from outbox") == [(0,)], 30)

    read = [kcat, "-b", kafka.client["bootstrap.servers"], "-t", topic, "-C", "-e", "-q", "-o", "beginning"]
    shown = await asyncio.to_thread(subprocess.run, [*read, "-c", "1", "-J"], capture_output=True, timeout=60)
    raw = await asyncio.to_thread(subprocess.run, [*read, "-f", "%k=%s;"], capture_output=True, timeout=60)

    seen = json.loads(shown.stdout)
    headers = dict(zip(seen["headers"][::2], seen["headers"][1::2], strict=True))
    assert (seen["key"], json.loads(seen["payload"])) == ("k-1", {"sku": "apple"})
    assert {key: headers[key] for key in TRACE} == TRACE
    assert all(key in TRACE or key == "content-type" or key.startswith("scoop-") for key in headers)
    assert raw.stdout == b'k-1={"sku":"apple"};k-2=' + AVRO + b";"


async def test_partitions_are_those_of_java(kafka: Trial, database_url: str) -> None:
    # From the tests of Kafka's own class.
    assert murmur2(b"21") == -973932308
    assert murmur2(b"foobar") == -790332482
    assert murmur2(b"a-little-bit-long-string") == -985981536
    assert murmur2(b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8") == -58897971
    topic = kafka.topic(7)
    service = Listener(database_url, kafka.url, name("shop"))
    keys: list[str | bytes] = [*(f"key-{number}" for number in range(60)), "übung", b"\xff\x00\x01", b"\x80", "x" * 999]

    async with service.running():
        for key in keys:
            await service.app.launch(topic, {}, key=key)
        await until(lambda: service.ask("select count(*) from outbox") == [(0,)], 30)
        found = [one for part in range(7) for one in await asyncio.to_thread(kafka.read, topic, part)]

    assert {message.key() for message in found} == {key.encode() if isinstance(key, str) else key for key in keys}
    assert len({message.partition() for message in found}) == 7
    for message in found:
        hashed = message.key()
        assert isinstance(hashed, bytes)
        assert message.partition() == (murmur2(hashed) & 0x7FFFFFFF) % 7, hashed


async def test_a_tombstone_goes_both_ways(kafka: Trial, database_url: str) -> None:
    topic = kafka.topic()
    service = Listener(database_url, kafka.url, name("shop"), topic, start="earliest")
    kafka.produce(topic, None, key=b"gone")

    async with service.running():
        (came,) = await service.sees(1)
        await service.app.launch(topic, b"", key="gone-too", headers={"kafka-tombstone": "true"})
        await service.sees(2)
        plain = await asyncio.to_thread(kafka.read, topic)

    assert (came.key, came.body, came.headers) == ("gone", b"", {"kafka-tombstone": "true"})
    assert [(message.key(), message.value()) for message in plain] == [(b"gone", None), (b"gone-too", None)]
    assert all(header.startswith("scoop-") for header in headers_of(plain[1]))
    assert service.seen[1].headers == {"kafka-tombstone": "true"}


# -- what others send -----------------------------------------------------------------------------------------------


async def test_a_plain_producer_starts_sagas(kafka: Trial, database_url: str) -> None:
    topic = kafka.topic()
    service = Listener(database_url, kafka.url, name("shop"), topic, start="earliest")
    kafka.produce(topic, b'{"sku": "apple"}', key=b"k", headers=[*TRACE.items(), ("raw", b"\xff"), ("none", None)])
    kafka.produce(topic, AVRO, b"text \xff", b"")

    async with service.running():
        # Runs of messages of several keys, or of none, keep no order.
        empty, avro, text, order = sorted(await service.sees(4), key=lambda message: message.body)

    assert (order.payload, order.body, order.key, order.topic) == (
        {"sku": "apple"},
        b'{"sku": "apple"}',
        "k",
        topic,
    )
    assert {key: order.headers[key] for key in TRACE} == TRACE
    assert order.headers["raw"].encode("utf-8", "surrogateescape") == b"\xff"
    assert (avro.payload, avro.content_type, avro.key) == (AVRO, "", None)
    assert (text.payload, empty.payload) == (b"text \xff", b"")
    assert service.ask("select distinct parent_run from run") == [(None,)]
    assert service.ask("select distinct state from run") == [("committed",)]


async def test_a_stream_processor_that_passes_our_headers_on_writes_messages_of_its_own(
    kafka: Trial, database_url: str
) -> None:
    orders, enriched = kafka.topic(), kafka.topic()
    service = Listener(database_url, kafka.url, name("shop"), orders, enriched, start="earliest")

    async with service.running():
        await service.app.launch(orders, {"sku": "apple"})
        await service.sees(1)
        (order,) = await asyncio.to_thread(kafka.read, orders)
        # Two messages made of one.
        kafka.produce(enriched, b'{"part": 1}', b'{"part": 2}', headers=order.headers())
        _, *parts = await service.sees(3)

    assert sorted((part.topic, part.body) for part in parts) == [(enriched, b'{"part": 1}'), (enriched, b'{"part": 2}')]
    assert len({message.id for message in service.seen}) == 3
    assert service.dead_letters == []


async def test_kcat_starts_sagas(kafka: Trial, database_url: str, kcat: str, tmp_path: Path) -> None:
    topic = kafka.topic()
    service = Listener(database_url, kafka.url, name("shop"), topic, start="earliest")
    write = [kcat, "-b", kafka.client["bootstrap.servers"], "-t", topic, "-P", "-k", "k-1"]
    (tmp_path / "body").write_bytes(AVRO)
    trace = [part for header, value in TRACE.items() for part in ("-H", f"{header}={value}")]
    await asyncio.to_thread(subprocess.run, [*write, *trace, str(tmp_path / "body")], check=True, timeout=60)
    await asyncio.to_thread(subprocess.run, write, input=b'{"sku": "pear"}', check=True, timeout=60)

    async with service.running():
        avro, order = sorted(await service.sees(2), key=lambda message: message.body)

    assert (avro.body, avro.key, avro.headers) == (AVRO, "k-1", TRACE)
    assert order.payload == {"sku": "pear"}


async def test_bytes_of_a_registry_reach_sagas_that_take_bytes_and_are_a_dead_letter_to_those_that_cannot(
    kafka: Trial, database_url: str
) -> None:
    topic = kafka.topic()
    untyped = Listener(database_url, kafka.url, name("bytes"), topic, start="earliest")
    typed = Listener(database_url, kafka.url, name("typed"), Topic(topic, Order), start="earliest")
    kafka.produce(topic, AVRO, b'{"sku": "apple"}')

    async with untyped.running(), typed.running():
        await untyped.sees(2)
        await typed.sees(1)

    assert [message.payload for message in sorted(untyped.seen, key=lambda message: message.body)] == [
        AVRO,
        {"sku": "apple"},
    ]
    assert [message.payload for message in typed.seen] == [Order("apple")]
    ((body, reason),) = typed.dead_letters
    assert body == AVRO
    assert "Order" in reason


# -- again and again ------------------------------------------------------------------------------------------------


async def test_a_replayed_topic_starts_nothing_twice(kafka: Trial, database_url: str) -> None:
    topic, group = kafka.topic(), name("group")
    service = Listener(database_url, kafka.url, name("shop"), topic, group=group, start="earliest")
    kafka.produce(topic, b"1", AVRO, None)
    async with service.running():
        await service.app.launch(topic, 2)
        await service.sees(4)
    await until(lambda: kafka.committed(group, topic) == 4, 30)

    kafka.commit(group, topic, 0)
    kafka.produce(topic, b'"behind"')
    async with service.running() as daemons:
        await until(lambda: b'"behind"' in service.bodies, 30)
        assert daemons.intake is not None
        again = daemons.intake.counters.taken_in

    assert again == 5
    assert len(service.seen) == 5
    assert service.runs == 5


@pytest.mark.parametrize("start, expected", [("earliest", [b"old", b"new"]), ("latest", [b"new"])])
async def test_a_topic_that_has_a_past(kafka: Trial, database_url: str, start: str, expected: list[bytes]) -> None:
    topic, group = kafka.topic(), name("group")
    service = Listener(database_url, kafka.url, name("shop"), topic, group=group, start=start)
    kafka.produce(topic, b"old")

    async with service.running():
        await until(lambda: kafka.committed(group, topic) >= 0, 30)
        await asyncio.to_thread(kafka.produce, topic, b"new")
        await service.sees(len(expected))
    # It is where it was, and the start is of no consequence any more.
    kafka.produce(topic, b"while nobody was here")
    later = Listener(database_url, kafka.url, service.app.service, topic, group=group, start="latest")
    async with later.running():
        await later.sees(1)

    assert sorted(service.bodies) == sorted(expected)
    assert later.bodies == [b"while nobody was here"]


async def test_a_group_of_others_is_undisturbed(kafka: Trial, database_url: str) -> None:
    topic, theirs = kafka.topic(4), name("theirs")
    assigned: list[list[TopicPartition]] = []
    other = Consumer({**kafka.client, "group.id": theirs, "auto.offset.reset": "earliest"})
    other.subscribe([topic], on_assign=lambda _, parts: assigned.append(parts))
    service = Listener(database_url, kafka.url, name("shop"), topic, start="earliest")
    got: list[bytes] = []

    def take(count: int) -> None:
        """Let the others take in what there is."""
        while len(got) < count:
            message = other.poll(10)
            assert message is not None, got
            assert message.error() is None
            value = message.value()
            assert isinstance(value, bytes)
            got.append(value)

    try:
        for number in range(20):
            kafka.produce(topic, b"%d" % number, key=b"k%d" % number)
        await asyncio.to_thread(take, 20)
        other.commit(asynchronous=False)
        before = [kafka.committed(theirs, topic, part) for part in range(4)]
        async with service.running():
            await service.sees(20)
            between = [kafka.committed(theirs, topic, part) for part in range(4)]
            await service.app.launch(topic, 20, key="k")
            await service.sees(21)
            await asyncio.to_thread(take, 21)
    finally:
        await asyncio.to_thread(other.close)

    assert sorted(got, key=int) == [b"%d" % number for number in range(21)]
    assert between == before
    assert len(assigned) == 1, "they were made to share anew"


async def test_a_running_service_creates_nothing(lenient_kafka: KafkaCluster, database_url: str) -> None:
    async with Trial(lenient_kafka.url) as kafka:
        topic, missing = kafka.topic(), name("missing")
        service = Listener(database_url, kafka.url, name("shop"), topic, start="earliest")
        kafka.produce(topic, b"1")
        before = topics(kafka.admin)

        async with service.running():
            await service.sees(1)
            await service.app.launch(missing, {})
            await service.app.launch(topic, 2)
            await service.sees(2)
            await until(lambda: service.dead_letters, 30)

        # Of Kafka's own: where it keeps the offsets of groups.
        assert topics(kafka.admin) - {"__consumer_offsets"} == before - {"__consumer_offsets"}
        ((_, reason),) = service.dead_letters
        assert missing in reason
        assert "topology apply" in reason


async def test_who_looks_at_the_topology_creates_nothing_and_who_applies_it_creates_what_was_said(
    lenient_kafka: KafkaCluster, database_url: str
) -> None:
    async with Trial(lenient_kafka.url) as kafka:
        topic, before = name("topic"), topics(kafka.admin)
        service = Listener(database_url, f"{kafka.url}?topology.partitions=6", name("shop"), topic, start="earliest")

        (looked,) = await service.app.topology()
        assert topics(kafka.admin) == before
        (applied,) = await service.app.apply_topology()

        assert (looked.exists, applied.exists) == (False, False)
        assert len(kafka.admin.list_topics(topic, timeout=10).topics[topic].partitions) == 6


async def test_a_header_whose_name_is_no_utf_8_makes_a_dead_letter_and_the_offset_moves_on(
    kafka: Trial, kcat: str, database_url: str
) -> None:
    topic = kafka.topic()
    service = Listener(database_url, kafka.url, name("shop"), topic, start="earliest")
    bootstrap = kafka.url.removeprefix("kafka://")
    # So many that Python has learnt how headers are asked for: then it looks less closely at what the client answers.
    kafka.produce(topic, *[b"1"] * 50)
    command = [kcat.encode(), b"-P", b"-b", bootstrap.encode(), b"-t", topic.encode(), b"-H", b"caf\xe9=1"]
    await asyncio.to_thread(subprocess.run, command, input=b"spoilt", check=True, timeout=30)
    kafka.produce(topic, b"2")

    async with service.running():
        await service.sees(51)

    # Runs of messages without a key keep no order.
    assert sorted(service.bodies) == [*[b"1"] * 50, b"2"]
    assert service.dead_letters == [(b"spoilt", "the name of one of its headers is no UTF-8")]


def topics(admin: AdminClient) -> set[str]:
    return set(admin.list_topics(timeout=10).topics)
