"""Publishing: what the broker says of each message, on a real one."""

import asyncio
from typing import Any

import aio_pika
import pytest
from aiormq.channel import Channel
from pamqp.commands import Basic
from scoop_outbox_rabbitmq import publisher as publisher_module

from scoop_outbox.devservers.rabbitmq import RabbitServer
from scoop_outbox.message import BYTES, Envelope, uuid7
from tests.rabbitmq.trial import ACKNOWLEDGED, FOR_GOOD, FOR_NOW, Trial, envelope, name, verdicts


async def test_a_plain_consumer_sees_an_ordinary_message(trial: Trial) -> None:
    topic = name()
    queue = await trial.queue(topic)
    sent = Envelope(
        str(uuid7()), topic, "k\u00e4se", b"\x00\xff", "application/avro", {"traceparent": "00-1", "raw": "\udcff"}
    )

    receipts = await (await trial.publisher()).publish([sent])
    message = await (await (await trial.channel()).get_queue(queue)).get(no_ack=True)

    assert verdicts(receipts) == [ACKNOWLEDGED]
    assert (message.body, message.content_type, message.message_id) == (sent.body, sent.content_type, sent.id)
    assert message.delivery_mode is aio_pika.DeliveryMode.PERSISTENT
    assert message.timestamp is not None
    assert message.headers == {
        "traceparent": "00-1",
        "raw": bytearray(b"\xff"),
        "scoop-id": sent.id,
        "scoop-topic": f"amq.topic/{topic}",
        "scoop-key": "k\u00e4se",
    }


async def test_headers_with_names_of_properties_become_properties(trial: Trial) -> None:
    topic = name()
    queue = await trial.queue(topic)
    given = {
        "amqp-correlation-id": "c",
        "amqp-reply-to": "r",
        "amqp-type": "t",
        "amqp-app-id": "a",
        "amqp-priority": "3",
        "amqp-expiration": "60000",
        "amqp-content-encoding": "gzip",
        "amqp-timestamp": "2026-01-02T03:04:05+00:00",
    }

    await (await trial.publisher()).publish([Envelope(str(uuid7()), topic, None, b"", BYTES, given)])
    message = await (await (await trial.channel()).get_queue(queue)).get(no_ack=True)

    assert (message.correlation_id, message.reply_to, message.type, message.app_id) == ("c", "r", "t", "a")
    assert (message.priority, message.expiration, message.content_encoding) == (3, 60.0, "gzip")
    assert message.timestamp is not None
    assert message.timestamp.isoformat() == "2026-01-02T03:04:05+00:00"


async def test_what_no_queue_gets_is_not_acknowledged(trial: Trial) -> None:
    topic, nowhere = name(), name("nowhere")
    await trial.queue(topic)
    publisher = await trial.publisher()

    receipts = await publisher.publish([envelope(topic), envelope(nowhere), envelope(f"/{nowhere}"), envelope(topic)])

    assert verdicts(receipts) == [ACKNOWLEDGED, FOR_GOOD, FOR_GOOD, ACKNOWLEDGED]
    assert f"no queue is bound to exchange 'amq.topic' for routing key {nowhere!r}" in receipts[1].reason
    assert f"there is no queue {nowhere!r}" in receipts[2].reason


async def test_mandatory_can_be_turned_off(trial: Trial) -> None:
    publisher = await trial.publisher(mandatory="false")

    assert verdicts(await publisher.publish([envelope(name("nowhere"))])) == [ACKNOWLEDGED]


async def test_a_missing_exchange_fails_its_own_messages_only(trial: Trial) -> None:
    topic, missing = name(), name("missing")
    queue = await trial.queue(topic)
    batch = [envelope(f"{missing}/x" if number % 3 == 0 else topic, body=b"%d" % number) for number in range(60)]
    publisher = await trial.publisher()

    for _ in range(2):
        receipts = await publisher.publish(batch)
        assert verdicts(receipts) == [FOR_GOOD if number % 3 == 0 else ACKNOWLEDGED for number in range(60)]
        assert f"there is no exchange {missing!r}" in receipts[0].reason

    assert set(await trial.bodies(queue)) == {b"%d" % number for number in range(60) if number % 3}


async def test_messages_without_a_key_keep_the_order_of_the_batch(trial: Trial) -> None:
    topic = name()
    queue = await trial.queue(topic)
    sent = [b"%d " % number + b"x" * (number * 7919 % 5000) for number in range(1500)]

    receipts = await (await trial.publisher()).publish([envelope(topic, body=body) for body in sent])

    assert set(verdicts(receipts)) == {ACKNOWLEDGED}
    assert await trial.bodies(queue) == sent


@pytest.mark.parametrize("pipeline", [False, True])
async def test_messages_of_a_key_keep_their_order(trial: Trial, pipeline: bool) -> None:
    topic = name()
    queue = await trial.queue(topic)
    batch = [envelope(topic, f"k{number % 7}", b"%d" % number) for number in range(700)]

    await (await trial.publisher(pipeline=pipeline)).publish(batch)
    came = [int(body) for body in await trial.bodies(queue)]

    assert len(came) == len(batch)
    for key in range(7):
        assert [number for number in came if number % 7 == key] == list(range(key, 700, 7))


async def test_a_full_queue_holds_back_the_key(trial: Trial) -> None:
    topic, other = name(), name()
    full = await trial.queue(topic, x_max_length=1, x_overflow="reject-publish")
    await trial.queue(other)
    publisher = await trial.publisher()
    assert verdicts(await publisher.publish([envelope(topic)])) == [ACKNOWLEDGED]

    batch = [envelope(topic, "a"), envelope(other, "a"), envelope(other, "b"), envelope(topic, "a")]
    receipts = await publisher.publish(batch)
    await trial.bodies(full)
    again = await publisher.publish(batch[:2])

    assert verdicts(receipts) == [FOR_NOW, FOR_NOW, ACKNOWLEDGED, FOR_NOW]
    assert "does not take it" in receipts[0].reason
    assert verdicts(again) == [ACKNOWLEDGED, ACKNOWLEDGED]


@pytest.mark.parametrize(
    "headers, said",
    [
        ({"x" * 129: ""}, "longer than 128 bytes"),
        ({"amqp-priority": "high"}, "from 0 to 255"),
        ({"amqp-priority": "1" * 5000}, "from 0 to 255"),
        ({"amqp-timestamp": "noon"}, "ISO 8601"),
        ({"amqp-timestamp": "1960-01-01T00:00:00+00:00"}, "cannot be written as AMQP"),
        ({"amqp-type": "x" * 256}, "maximum length of 255"),
        ({"amqp-expiration": "soon"}, "expiration"),
        ({"amqp-user-id": "somebody-else"}, "user_id"),
        ({"big": "x" * 200_000}, "frame_max"),
        ({"lone": "\udc00"}, "surrogate"),
    ],
)
async def test_a_message_that_amqp_cannot_carry_fails_alone_and_for_good(
    trial: Trial, headers: dict[str, str], said: str
) -> None:
    topic = name()
    queue = await trial.queue(topic)
    bad = Envelope(str(uuid7()), topic, "k", b"bad", BYTES, headers)
    publisher = await trial.publisher()

    for _ in range(2):
        receipts = await publisher.publish(
            [envelope(topic, "k", b"1"), bad, envelope(topic, "k", b"2"), envelope(topic)]
        )
        assert verdicts(receipts) == [ACKNOWLEDGED, FOR_GOOD, ACKNOWLEDGED, ACKNOWLEDGED]
        assert said in receipts[1].reason

    assert b"bad" not in await trial.bodies(queue)


async def test_what_nobody_has_thought_of_fails_for_now_and_costs_no_other_message(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = name()
    queue = await trial.queue(topic)
    publish = Channel.basic_publish

    async def stumble(channel: Channel, body: bytes, **options: Any) -> Basic.Ack | Basic.Nack | Basic.Reject | None:
        if body == b"odd":
            raise LookupError("nobody has thought of this")
        return await publish(channel, body, **options)

    monkeypatch.setattr(Channel, "basic_publish", stumble)
    bodies = [b"0", b"odd", b"2", b"3"]
    batch = [envelope(topic, key, body) for key, body in zip("kkkx", bodies, strict=True)]
    receipts = await (await trial.publisher()).publish(batch)

    assert verdicts(receipts) == [ACKNOWLEDGED, FOR_NOW, FOR_NOW, ACKNOWLEDGED]
    assert "LookupError: nobody has thought of this" in receipts[1].reason
    assert sorted(await trial.bodies(queue)) == [b"0", b"3"]


@pytest.mark.parametrize("exchange", ["caf\u00e9", "x" * 128])
async def test_an_exchange_that_the_client_cannot_name_costs_no_other_message(trial: Trial, exchange: str) -> None:
    topic = name()
    await trial.queue(topic)

    receipts = await (await trial.publisher()).publish([envelope(f"{exchange}/x", "k"), envelope(topic, "k")])

    assert verdicts(receipts) == [FOR_GOOD, ACKNOWLEDGED]
    assert "the client cannot name" in receipts[0].reason


async def test_there_may_be_more_exchanges_than_channels(trial: Trial) -> None:
    topic, channel = name(), await trial.channel()
    queue = await trial.queue()
    exchanges = []
    for _ in range(5):
        exchange = await channel.declare_exchange(name("exchange"), "fanout", auto_delete=True)
        await (await channel.get_queue(queue)).bind(exchange)
        exchanges.append(exchange.name)
    publisher = await trial.publisher(channel_max=3)
    batch = [envelope(f"{exchange}/{topic}", None, exchange.encode()) for exchange in exchanges]
    held = envelope(f"{exchanges[0]}/{topic}", "k", b"held")
    batch += [envelope(f"{exchanges[4]}/{topic}", "k", b"fifth"), held]

    receipts = await publisher.publish(batch)
    link = publisher._channels.link
    again = await publisher.publish(batch[3:])
    missing = await publisher.publish([envelope(f"{name('missing')}/x"), *batch[:2]])

    assert verdicts(receipts) == [ACKNOWLEDGED] * 3 + [FOR_NOW] * 4
    assert "more exchanges than channels" in receipts[3].reason
    assert verdicts(again) == [ACKNOWLEDGED] * 4
    assert verdicts(missing) == [FOR_GOOD, ACKNOWLEDGED, ACKNOWLEDGED]
    assert publisher._channels.link is link
    assert sorted(await trial.bodies(queue)) == sorted(
        [*(exchange.encode() for exchange in (*exchanges, *exchanges[:2])), b"fifth", b"held"]
    )


async def test_no_message_of_a_pipeline_overtakes_one_for_its_size(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is about the order, however long it takes.
    monkeypatch.setattr(publisher_module, "BEGIN_WITHIN", 60.0)
    monkeypatch.setattr(publisher_module, "ANSWER_WITHIN", 60.0)
    topic = name()
    queue = await trial.queue(topic)
    sizes = [70_000 if number % 3 else 10 for number in range(90)]
    sent = [b"%d " % number + b"x" * size for number, size in enumerate(sizes)]

    receipts = await (await trial.publisher(pipeline=True)).publish([envelope(topic, "k", body) for body in sent])

    assert set(verdicts(receipts)) == {ACKNOWLEDGED}
    assert [body[:4] for body in await trial.bodies(queue)] == [body[:4] for body in sent]


async def test_a_message_that_is_too_large_fails_alone_and_for_good(server: RabbitServer, own_trial: Trial) -> None:
    topic = name()
    queue = await own_trial.queue(topic)
    await asyncio.to_thread(server.ctl, "eval", "application:set_env(rabbit, max_message_size, 300000).")
    batch = [envelope(topic, body=b"%d" % number) for number in range(40)]
    batch[20] = envelope(topic, body=b"x" * 300_001)

    receipts = await (await own_trial.publisher()).publish(batch)

    assert verdicts(receipts) == [ACKNOWLEDGED] * 20 + [FOR_GOOD] + [ACKNOWLEDGED] * 19
    assert "larger than" in receipts[20].reason
    assert set(await own_trial.bodies(queue)) == {one.body for one in batch if len(one.body) < 9}


async def test_limits_of_the_user_are_those_of_the_connection(own_trial: Trial, server: RabbitServer) -> None:
    topic = name()
    queue = await own_trial.queue(topic)
    publisher = await own_trial.publisher(frame_max=8192, channel_max=7)

    receipts = await publisher.publish([envelope(topic, None, b"x" * 100_000), envelope(topic, big="x" * 9000)])

    assert verdicts(receipts) == [ACKNOWLEDGED, FOR_GOOD]
    assert "the broker takes 8192 (frame_max)" in receipts[1].reason
    assert [len(body) for body in await own_trial.bodies(queue)] == [100_000]
    limits = server.ctl("list_connections", "--quiet", "frame_max", "channel_max").splitlines()
    assert "8192\t7" in limits
