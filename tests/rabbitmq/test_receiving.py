"""Receiving: from our own queue and from those of others, on a real broker."""

import asyncio
import json
import signal
import struct
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from aiormq.channel import Channel
from pamqp.commands import Basic

from scoop_outbox.broker.protocol import Feature, Subscription
from scoop_outbox.errors import BrokerError
from scoop_outbox.wire.headers import octets
from tests.rabbitmq.trial import Trial, envelope, name, publish_plainly, received
from tests.waiting import until


async def unheld(trial: Trial, queue: str) -> int:
    """How many messages of a queue nobody holds."""
    declared = await (await trial.channel()).declare_queue(queue, passive=True)
    return declared.declaration_result.message_count or 0


async def test_a_plain_message_is_known_again_by_its_id(trial: Trial) -> None:
    topic, group = name(), name("group")
    await trial.create(group, topic)

    for body, message_id, app in [(b"1", "m", "shop"), (b"2", "m", "shop"), (b"1", "m", "till"), (b"1", "n", "shop")]:
        await publish_plainly(
            trial, "amq.topic", topic, body, message_id=message_id, app_id=app, content_type="text/plain"
        )
    later = datetime(2026, 1, 2, tzinfo=UTC)
    await publish_plainly(trial, "amq.topic", topic, b"1", message_id="m", app_id="shop", timestamp=later)
    one, two, three, four, sent_again = await received(await trial.consumer(group, topic), 5)

    assert one.envelope.id == two.envelope.id == sent_again.envelope.id
    assert len({one.envelope.id, three.envelope.id, four.envelope.id}) == 3
    assert (one.defect, one.envelope.topic, one.envelope.key) == (None, topic, None)
    assert one.envelope.content_type == "text/plain"
    assert one.envelope.headers == {"amqp-message-id": "m", "amqp-app-id": "shop"}


@pytest.mark.parametrize("identity, ids", [("content", 3), ("delivery", 5)])
async def test_a_message_without_an_id_is_what_it_says(trial: Trial, identity: str, ids: int) -> None:
    topic, group = name(), name("group")
    await trial.create(group, topic)

    for body, headers in [(b"1", {}), (b"1", {}), (b"2", {}), (b"1", {"a": "b"}), (b"1", {})]:
        await publish_plainly(trial, "amq.topic", topic, body, headers=headers)
    came = await received(await trial.consumer(group, topic, identity=identity), 5)

    assert len({one.envelope.id for one in came}) == ids


async def test_a_redelivery_of_a_message_without_an_id_is_the_same(trial: Trial) -> None:
    topic, group = name(), name("group")
    await trial.create(group, topic)
    await publish_plainly(trial, "amq.topic", topic, b"1", timestamp=datetime(2026, 1, 2, tzinfo=UTC))

    first = await trial.consumer(group, topic)
    (one,) = await received(first, 1)
    await first.close()
    (two,) = await received(await trial.consumer(group, topic), 1)

    assert two.envelope.headers["x-delivery-count"] == "1", "it is a redelivery"
    assert one.envelope.id == two.envelope.id


@pytest.mark.parametrize("prefix", ["ce_", "cloudEvents:", "cloudEvents_"])
async def test_a_cloud_event_is_known_by_its_id_and_source(trial: Trial, prefix: str) -> None:
    topic, group = name(), name("group")
    await trial.create(group, topic)

    for body, source in [(b"1", "/a"), (b"2", "/a"), (b"3", "/b")]:
        headers = {f"{prefix}id": "7", f"{prefix}source": source}
        await publish_plainly(trial, "amq.topic", topic, body, headers=headers)
    one, two, three = await received(await trial.consumer(group, topic), 3)

    assert one.envelope.id == two.envelope.id != three.envelope.id


async def test_values_of_all_types_become_text(trial: Trial) -> None:
    topic, group = name(), name("group")
    await trial.create(group, topic)
    headers = {
        "text": "\u00e4",
        "bytes": bytearray(b"\xff\x00"),
        "whole": 7,
        "half": 0.5,
        "exact": Decimal("1.25"),
        "true": True,
        "none": None,
        "time": datetime(2026, 1, 2, tzinfo=UTC),
        "table": {"a": [1, "b"]},
    }

    await publish_plainly(trial, "amq.topic", topic, b"", headers=headers, priority=3, reply_to="r")
    (came,) = await received(await trial.consumer(group, topic), 1)

    assert came.envelope.headers == {
        "text": "\u00e4",
        "bytes": "\udcff\0",
        "whole": "7",
        "half": "0.5",
        "exact": "1.25",
        "true": "true",
        "none": "",
        "time": "2026-01-02T00:00:00+00:00",
        "table": '{"a":[1,"b"]}',
        "amqp-priority": "3",
        "amqp-reply-to": "r",
    }


async def test_bodies_keys_and_headers_come_byte_for_byte(trial: Trial) -> None:
    topic, group = name(), name("group")
    await trial.create(group, topic)
    everything = bytes(range(256)) * 2000
    sent = [
        envelope(topic, "\\xff00", everything, raw="\udcff\udc80", long="x" * 50_000, empty=""),
        envelope(topic, "", b""),
    ]
    consumer = await trial.consumer(group, topic)

    await (await trial.publisher()).publish(sent)
    came = [one.envelope for one in await received(consumer, 2)]

    assert {one.id: (one.key, one.body) for one in came} == {one.id: (one.key, one.body) for one in sent}
    (first,) = [one for one in came if one.id == sent[0].id]
    assert first.headers == {**sent[0].headers, "scoop-id": sent[0].id, "scoop-topic": f"amq.topic/{topic}"}
    assert octets(first.headers["raw"]) == b"\xff\x80"


async def test_a_message_that_no_client_can_decode_comes_with_a_defect(trial: Trial) -> None:
    topic, group = name(), name("group")
    await trial.create(group, topic)
    for headers in ({"plain": "1"}, {"\u00e4": "2"}, {"plain": "3"}):
        # The same length, and no UTF-8 any more.
        await publish_plainly(trial, "amq.topic", topic, b"x", spoil=("\u00e4".encode(), b"\xff\xff"), headers=headers)
    consumer = await trial.consumer(group, topic)

    before, bad, after = await received(consumer, 3)
    await consumer.acknowledge([before, bad, after])

    assert (before.defect, after.defect) == (None, None)
    assert bad.defect == "its AMQP properties or headers cannot be decoded"
    assert (bad.envelope.topic, bad.envelope.body) == (topic, b"x")
    assert b"\xff\xff" in octets(bad.envelope.headers["amqp-unreadable-properties"])


async def test_a_header_of_tables_within_tables_does_not_keep_a_queue_from_being_read(trial: Trial) -> None:
    topic, group = name(), name("group")
    await trial.create(group, topic)
    nested = b""
    for _ in range(5000):
        nested = b"\x01aF" + struct.pack(">I", len(nested)) + nested
    plain, table = (kind + struct.pack(">I", len(nested)) for kind in (b"S", b"F"))
    stand_in = "x" * len(nested)
    spoil = (plain + stand_in.encode(), table + nested)
    await publish_plainly(trial, "amq.topic", topic, b"deep", spoil=spoil, headers={"deep": stand_in})
    await publish_plainly(trial, "amq.topic", topic, b"after")

    deep, after = await received(await trial.consumer(group, topic), 2)

    assert (deep.envelope.body, deep.defect) == (b"deep", "its AMQP properties or headers cannot be decoded")
    assert (after.envelope.body, after.defect) == (b"after", None)


async def test_what_comes_by_a_wildcard_has_the_topic_it_was_published_on(trial: Trial) -> None:
    stem, group = name(), name("group")
    pattern, other = f"{stem}.*.eu", f"{stem}.literal"
    await trial.create(group, pattern, other)
    consumer = await trial.consumer(group, pattern, other)

    await (await trial.publisher()).publish([envelope(f"{stem}.created.eu"), envelope(other)])
    first, second = sorted(await received(consumer, 2), key=lambda one: one.envelope.topic == other)

    assert (first.envelope.topic, first.defect) == (f"{stem}.created.eu", None)
    assert (second.envelope.topic, second.defect) == (other, None)
    assert not [header for one in (first, second) for header in one.envelope.headers if header.startswith("amqp-")]


@pytest.mark.parametrize("written", ["{}.more", "amq.topic/{}.more", "{}.*"])
async def test_what_this_process_has_not_asked_for_comes_as_it_comes_to_one_that_has(
    trial: Trial, written: str
) -> None:
    topic, group, other = name(), name("group"), name("group")
    for queue in (group, other):
        await trial.create(queue, f"{topic}.#")
    for headers in ({}, {"ce_id": "1", "ce_source": "/shop", "ce_specversion": "1.0", "ce_type": "t"}):
        await publish_plainly(trial, "amq.topic", f"{topic}.more", b"1", message_id="m", headers=headers)

    strange = await received(await trial.consumer(group, f"{topic}.some"), 2)
    asked_for = await received(await trial.consumer(other, written.format(topic)), 2)

    # An old version of a service and a new one share a queue: whoever gets a message first must not give it an id
    # by which it would be handled twice.
    assert [one.envelope.id for one in strange] == [one.envelope.id for one in asked_for]
    assert {one.envelope.topic for one in strange} == {f"{topic}.more"}
    assert [(one.defect, one.envelope.headers) for one in strange] == [
        (one.defect, one.envelope.headers) for one in asked_for
    ]
    assert all(one.defect is None for one in strange)


async def test_a_topic_comes_from_an_existing_queue(trial: Trial) -> None:
    theirs = await trial.queue("whatever.comes")
    consumer = await trial.consumer(name("group"), "orders", queue__orders=theirs)
    await publish_plainly(trial, "", theirs, b"1")

    (came,) = await received(consumer, 1)
    await consumer.acknowledge([came])

    assert (came.envelope.topic, came.defect) == ("orders", None)
    assert (came.envelope.headers["amqp-exchange"], came.envelope.headers["amqp-routing-key"]) == ("", theirs)


async def test_acknowledged_in_the_order_received_and_the_rest_comes_again(trial: Trial) -> None:
    topic, group = name(), name("group")
    await trial.create(group, topic)
    sent = [envelope(topic, body=b"%d" % number) for number in range(20)]
    await (await trial.publisher()).publish(sent)

    first = await trial.consumer(group, topic)
    came = await received(first, 20)
    await first.acknowledge(came[:7])
    await first.close()
    rest = await received(await trial.consumer(group, topic), 13)

    assert [one.envelope.id for one in came] == [one.id for one in sent]
    assert [one.envelope.id for one in rest] == [one.id for one in sent[7:]]


async def test_no_more_is_held_than_prefetch_says(trial: Trial) -> None:
    topic, group = name(), name("group")
    await trial.create(group, topic)
    await (await trial.publisher()).publish([envelope(topic) for _ in range(30)])
    consumer = await trial.consumer(group, topic, prefetch=10)

    came = await received(consumer, 10)
    assert await unheld(trial, group) == 20
    assert await consumer.receive(100, 0.2) == []
    await consumer.acknowledge(came)

    assert len(await received(consumer, 10)) == 10


async def test_what_was_sent_before_a_pause_still_comes_and_nothing_else(trial: Trial) -> None:
    topic, group = name(), name("group")
    await trial.create(group, topic)
    publisher = await trial.publisher()
    await publisher.publish([envelope(topic) for _ in range(10)])
    consumer = await trial.consumer(group, topic, prefetch=100)
    came = list(await consumer.receive(4, 5))
    await until(lambda: len(consumer._queues.arrived) == 10 - len(came))

    await consumer.pause()
    await publisher.publish([envelope(topic) for _ in range(5)])
    came += await received(consumer, 10 - len(came))
    assert await consumer.receive(100, 0.2) == []
    assert await unheld(trial, group) == 5
    await consumer.acknowledge(came)
    await consumer.resume()
    later = await received(consumer, 5)

    assert all("x-delivery-count" not in one.envelope.headers for one in (*came, *later)), "nothing was requeued"


async def consumers_of(trial: Trial, queue: str) -> int:
    """How many consumers a queue has."""
    declared = await (await trial.channel()).declare_queue(queue, passive=True)
    return declared.declaration_result.consumer_count or 0


@pytest.mark.parametrize("resumed", [False, True])
async def test_a_pause_that_falls_into_the_beginning_of_a_consumer_holds(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    topic, group = name(), name("group")
    await trial.create(group, topic)
    consume = Channel.basic_consume
    begun: list[str | None] = []
    go_on = asyncio.Event()

    async def consume_slowly(channel: Channel, *arguments: Any, **options: Any) -> Basic.ConsumeOk:
        answer = await consume(channel, *arguments, **options)
        begun.append(answer.consumer_tag)
        await go_on.wait()
        return answer

    monkeypatch.setattr(Channel, "basic_consume", consume_slowly)
    consumer = await trial.consumer(group, topic)
    assert await consumer.receive(1, 0.1) == []
    await until(lambda: begun)

    async def change_its_mind() -> None:
        await consumer.pause()
        if resumed:
            await consumer.resume()

    changing = asyncio.create_task(change_its_mind())
    await until(lambda: consumer._queues._paused or len(begun) > 1 or changing.done())
    go_on.set()
    await changing
    await until(lambda: consumer.problem is None)
    await (await trial.publisher()).publish([envelope(topic) for _ in range(5)])

    assert await consumers_of(trial, group) == (1 if resumed else 0)
    if resumed:
        assert len(await received(consumer, 5)) == 5
    else:
        assert await consumer.receive(100, 0.3) == []
        assert await unheld(trial, group) == 5
        await consumer.resume()
        assert len(await received(consumer, 5)) == 5


async def test_pauses_and_outages_do_not_use_up_a_delivery_limit(trial: Trial) -> None:
    # Delivered once more, and dropped the next time.
    topic = name()
    queue = await trial.queue(topic, x_queue_type="quorum", x_delivery_limit=1)
    await (await trial.publisher()).publish([envelope(topic, body=b"%d" % number) for number in range(5)])
    consumer = await trial.consumer(queue, topic)
    await received(consumer, 5)
    for _ in range(3):  # for as long as the database is away, they are held
        await consumer.pause()
        assert await consumer.receive(10, 0.1) == []
        await consumer.resume()
    await consumer.close()

    heir = await trial.consumer(queue, topic)
    again = await received(heir, 5)
    await heir.acknowledge(again)

    assert sorted(one.envelope.body for one in again) == [b"0", b"1", b"2", b"3", b"4"]
    assert {one.envelope.headers["x-delivery-count"] for one in again} == {"1"}


@pytest.mark.parametrize("limit, comes", [({"arguments.queue.x-delivery-limit": "2"}, False), ({}, True)])
async def test_what_is_held_by_workers_that_end_is_dropped_behind_a_delivery_limit_only(
    trial: Trial, limit: dict[str, object], comes: bool
) -> None:
    topic, group = name(), name("group")
    await trial.create(group, topic, **limit)
    await (await trial.publisher()).publish([envelope(topic)])
    for _ in range(3):
        consumer = await trial.consumer(group, topic)
        assert len(await received(consumer, 1)) == 1
        await consumer.close()

    await until(lambda: unheld_is(trial, group, 1 if comes else 0))
    heir = await trial.consumer(group, topic)
    assert len(await heir.receive(1, 0.5)) == (1 if comes else 0)


async def unheld_is(trial: Trial, queue: str, count: int) -> bool:
    return await unheld(trial, queue) == count


async def test_a_consumer_has_the_arguments_that_are_given(trial: Trial) -> None:
    topic, group = name(), name("group")
    await trial.create(group, topic)
    second = await trial.consumer(group, topic)
    first = await trial.consumer(group, topic, **{"arguments.consumer.x-priority": 10})
    for consumer in (second, first):
        assert await consumer.receive(1, 0.1) == []
    await until(lambda: second.problem is None and first.problem is None)
    await (await trial.publisher()).publish([envelope(topic) for _ in range(5)])

    assert len(await received(first, 5)) == 5
    assert await second.receive(1, 0.1) == []


async def test_a_single_active_consumer_keeps_its_place_while_it_is_paused(trial: Trial) -> None:
    topic, group = name(), name("group")
    single = {"queue.single-active-consumer": "true"}
    assert Feature.ORDER_PER_KEY in trial.broker(**single).features
    assert Feature.ORDER_PER_KEY not in trial.broker().features
    await trial.create(group, topic, **single)
    publisher = await trial.publisher()
    one, two = await trial.consumer(group, topic, **single), await trial.consumer(group, topic, **single)
    await publisher.publish([envelope(topic, body=b"0")])
    await one.acknowledge(await received(one, 1))
    assert await two.receive(1, 0.2) == []

    await one.pause()
    await publisher.publish([envelope(topic, body=b"%d" % number) for number in range(1, 5)])
    assert await one.receive(10, 0.3) == []
    assert await two.receive(10, 0.3) == []
    await one.close()

    assert [delivery.envelope.body for delivery in await received(two, 4)] == [b"1", b"2", b"3", b"4"]


async def test_a_single_active_consumer_that_stands_still_is_succeeded_in_order(trial: Trial) -> None:
    topic, group = name(), name("group")
    settings: dict[str, object] = {"queue.single-active-consumer": "true", "heartbeat": "2"}
    await trial.create(group, topic, **settings)
    bodies = [b"%d" % number for number in range(10)]
    await (await trial.publisher()).publish([envelope(topic, "k", body) for body in bodies])
    facts = {
        "url": trial.url,
        "settings": settings,
        "subscription": asdict(Subscription("test", group, (topic,))),
        "receive": 10,
        "acknowledge": 4,
    }
    still = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "scoop_outbox.testing.contract.killed_consumer", json.dumps(facts)),
        stdout=subprocess.PIPE,
    )
    try:
        assert still.stdout is not None
        assert await asyncio.wait_for(still.stdout.readline(), 60) == b"received\n"
        heir = await trial.consumer(group, topic, **settings)
        assert await heir.receive(10, 0.3) == []

        still.send_signal(signal.SIGSTOP)
        came = await received(heir, 6)
        await heir.acknowledge(came)
        still.send_signal(signal.SIGCONT)

        # Whoever comes back stands behind the heir.
        await (await trial.publisher()).publish([envelope(topic, "k", b"10")])
        came += await received(heir, 1)
    finally:
        still.kill()
        await still.wait()
    assert [one.envelope.body for one in came] == [*bodies[4:], b"10"]


async def test_the_queue_is_deleted_under_a_consumer_and_comes_back(trial: Trial) -> None:
    topic, group = name(), name("group")
    await trial.create(group, topic)
    consumer = await trial.consumer(group, topic)
    assert await consumer.receive(1, 0.3) == []

    await (await trial.channel()).queue_delete(group)
    with pytest.raises(BrokerError, match=f"no queue '{group}' for {topic}.*topology apply"):
        await received(consumer, 1)
    assert consumer.problem is not None
    await trial.create(group, topic)
    await (await trial.publisher()).publish([envelope(topic)])

    await until(lambda: consumer.problem is None)
    assert len(await received(consumer, 1)) == 1


async def test_what_was_wrong_and_is_mended_is_no_error_any_more(trial: Trial) -> None:
    topic, group = name(), name("group")
    consumer = await trial.consumer(group, topic)
    # What arrives at once is nothing, so that whoever asks does not see the error when it comes.
    assert await consumer.receive(1, 0) == []
    await until(lambda: "no queue" in (consumer.problem or ""))
    await trial.create(group, topic)
    await until(lambda: consumer.problem is None)

    assert await consumer.receive(1, 0.1) == []


async def test_an_argument_that_amqp_cannot_carry_is_said_and_not_waited_for(trial: Trial) -> None:
    topic, group = name(), name("group")
    await trial.create(group, topic)
    consumer = await trial.consumer(group, topic, **{"arguments.consumer.x-priority": 10**20})

    for _ in range(2):
        with pytest.raises(BrokerError, match=r"nothing can be received.*TypeError"):
            await received(consumer, 1)
    assert "nothing can be received" in (consumer.problem or "")


async def test_whatever_ends_what_keeps_the_connection_it_begins_anew(trial: Trial) -> None:
    topic, group = name(), name("group")
    await trial.create(group, topic)
    await (await trial.publisher()).publish([envelope(topic)])
    consumer = await trial.consumer(group, topic)
    assert len(await received(consumer, 1)) == 1
    assert consumer._keeper is not None

    consumer._keeper.cancel()
    await asyncio.wait((consumer._keeper,))

    assert len(await received(consumer, 1)) == 1


async def test_a_message_that_an_operator_has_moved_back_into_the_queue_of_its_topic_is_ours_still(
    trial: Trial,
) -> None:
    topic, processed = name(), name("processed")
    pattern = topic.replace("topic.", "*.")
    copies, theirs, patterns = await trial.queue(topic), await trial.queue(processed), await trial.queue()
    sent = envelope(topic)
    await (await trial.publisher()).publish([sent])
    channel = await trial.channel()
    message = await (await channel.get_queue(copies)).get(no_ack=True)
    passed_on: dict[str, Any] = {"message_id": message.message_id, "headers": dict(message.headers)}
    of_another = {**passed_on, "headers": {**passed_on["headers"], "scoop-topic": "amq.topic/another"}}
    of_none = {**passed_on, "headers": {**passed_on["headers"], "scoop-topic": "%ff/x"}}

    for queue in (theirs, patterns):
        await publish_plainly(trial, "", queue, b"moved", **passed_on)
    await publish_plainly(trial, "", theirs, b"another", **of_another)
    await publish_plainly(trial, "", theirs, b"none", **of_none)
    # A stream processor passes on the headers of what it reads with what it writes.
    await publish_plainly(trial, "amq.topic", processed, b"processed", **passed_on)
    came = await received(await trial.consumer(name("group"), topic, **{f"queue.{topic}": theirs}), 4)
    (by_pattern,) = await received(await trial.consumer(name("group"), pattern, **{f"queue.{pattern}": patterns}), 1)

    ours = {one.envelope.body for one in came if one.envelope.id == sent.id and "scoop-id" in one.envelope.headers}
    assert ours == {b"moved"}
    assert len({one.envelope.id for one in came}) == 2
    assert by_pattern.envelope.id == sent.id


def test_who_sends_in_a_pipeline_keeps_no_order_of_a_key(rabbitmq_url: str) -> None:
    single = {"queue.single-active-consumer": "true"}

    assert Feature.ORDER_PER_KEY not in Trial(rabbitmq_url).broker(**single, pipeline=True).features
    assert Feature.ORDER_PER_KEY in Trial(rabbitmq_url).broker(**single, pipeline=False).features


async def test_a_start_that_no_queue_has_is_refused(trial: Trial) -> None:
    with pytest.raises(BrokerError, match="means nothing to RabbitMQ"):
        await trial.broker().consumer(Subscription("s", "g", ("t",), "latest"))
