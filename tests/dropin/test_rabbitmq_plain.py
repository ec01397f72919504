"""On RabbitMQ's exchanges and queues as they are: consumers and producers that know nothing of us."""

from dataclasses import dataclass
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from scoop_outbox import Message, Scope, Topic
from scoop_outbox.app import service_of
from scoop_outbox.devservers.rabbitmq import RabbitServer
from tests.dropin.listener import Listener
from tests.rabbitmq.trial import Trial, name, publish_plainly
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


def published(service: Listener) -> bool:
    """Whether the broker has everything that was launched."""
    return service.ask("select count(*) from outbox") == [(0,)]


async def messages(rabbit: Trial, queue: str, count: int) -> list[AbstractIncomingMessage]:
    """Take so many messages out of a queue, as a client that knows nothing of us; there are no more."""
    channel = await rabbit.channel()
    declared = await channel.get_queue(queue)
    found: list[AbstractIncomingMessage] = []

    async def take() -> bool:
        while (one := await declared.get(fail=False, timeout=10)) is not None:
            await one.ack()
            found.append(one)
        return len(found) >= count

    await until(take, 20)
    assert len(found) == count, [one.body for one in found]
    return found


async def publish(rabbit: Trial, topic: str, *bodies: bytes, **properties: Any) -> None:
    """Publish as aio-pika's users do."""
    exchange = await (await rabbit.channel()).get_exchange("amq.topic")
    for body in bodies:
        await exchange.publish(aio_pika.Message(body, **properties), topic, timeout=10)


def by_body(seen: list[Message]) -> list[Message]:
    # Runs of different messages keep no order.
    return sorted(seen, key=lambda message: message.body)


async def declared_service(rabbit: Trial, database_url: str, *topics: str | Topic[Any], **settings: object) -> Listener:
    """A service whose queue is declared and bound."""
    service = Listener(database_url, rabbit.url, name("shop"), *topics, settings=settings)
    await service.app.apply_topology()
    return service


# -- what others see ------------------------------------------------------------------------------------------------


async def test_a_plain_consumer_sees_ordinary_messages(rabbit: Trial, database_url: str) -> None:
    topic = name()
    queue = await rabbit.queue(topic)
    service = Listener(database_url, rabbit.url, name("shop"))
    headers = {**TRACE, "kind": "order", "empty": "", "greeting": "Grüße"}

    async with service.running():
        launched = await service.app.launch(topic, {"sku": "äpfel", "n": 1}, key="k-1", headers=headers)
        await service.app.launch(topic, AVRO, key="k-1", headers={**headers, "content-type": "application/avro"})
        await service.app.launch(topic, b"", key="k-1")
        plain = await messages(rabbit, queue, 3)

    assert [message.body for message in plain] == [b'{"sku":"\\u00e4pfel","n":1}', AVRO, b""]
    types = ["application/json", "application/avro", "application/octet-stream"]
    assert [message.content_type for message in plain] == types
    assert plain[0].message_id == str(launched.id)
    assert (plain[0].exchange, plain[0].routing_key, plain[0].delivery_mode) == ("amq.topic", topic, 2)
    for message in plain[:2]:
        assert {key: message.headers[key] for key in headers} == headers
        assert all(key in headers or key.startswith("scoop-") for key in message.headers)
    # What AMQP has a property for and nobody has set.
    for unset in ("type", "reply_to", "correlation_id", "expiration", "app_id", "user_id", "content_encoding"):
        assert getattr(plain[0], unset) is None


async def test_what_a_saga_launches_is_as_ordinary(rabbit: Trial, database_url: str) -> None:
    orders, mails = name(), name()
    queue = await rabbit.queue(mails)
    service = Listener(database_url, rabbit.url, name("shop"))

    async def send(scope: Scope, message: Message) -> None:
        passed = {header: message.headers[header] for header in TRACE}
        scope.launch(mails, AVRO, headers={**passed, "amqp-type": "mail", "amqp-correlation-id": "c-1"})

    service.app.saga("send", on=orders).add_step("send", send)
    await service.app.apply_topology()
    await publish(rabbit, orders, b"{}", headers=dict(TRACE))

    async with service.running():
        (mail,) = await messages(rabbit, queue, 1)

    assert (mail.body, mail.type, mail.correlation_id) == (AVRO, "mail", "c-1")
    assert {key: mail.headers[key] for key in TRACE} == TRACE
    assert all(key in TRACE or key.startswith("scoop-") for key in mail.headers)


async def test_a_reply_goes_straight_into_the_queue_of_whoever_asked(rabbit: Trial, database_url: str) -> None:
    requests, replies = name(), await rabbit.queue()
    service = Listener(database_url, rabbit.url, name("shop"))

    async def answer(scope: Scope, message: Message) -> None:
        correlation = {"amqp-correlation-id": message.headers["amqp-correlation-id"]}
        scope.launch(f"/{message.headers['amqp-reply-to']}", {"answer": 42}, headers=correlation)

    service.app.saga("answer", on=requests).add_step("answer", answer)
    await service.app.apply_topology()
    await publish(rabbit, requests, b"{}", reply_to=replies, correlation_id="question-7")

    async with service.running():
        (reply,) = await messages(rabbit, replies, 1)

    assert (reply.body, reply.correlation_id) == (b'{"answer":42}', "question-7")


# -- what others send -----------------------------------------------------------------------------------------------


async def test_a_plain_producer_starts_sagas(rabbit: Trial, database_url: str) -> None:
    topic = name()
    service = await declared_service(rabbit, database_url, topic)
    headers: Any = {**TRACE, "number": 7, "raw": bytearray(b"\xff"), "yes": True}
    await publish(
        rabbit, topic, b'{"sku": "apple"}', content_type="application/json", message_id="m-1", headers=headers
    )
    await publish(rabbit, topic, AVRO, b"", b"text \xff")

    async with service.running():
        empty, avro, text, order = by_body(await service.sees(4))

    assert (order.payload, order.body, order.topic) == ({"sku": "apple"}, b'{"sku": "apple"}', topic)
    assert {key: order.headers[key] for key in TRACE} == TRACE
    assert (order.headers["number"], order.headers["yes"]) == ("7", "true")
    assert order.headers["raw"].encode("utf-8", "surrogateescape") == b"\xff"
    assert order.headers["amqp-message-id"] == "m-1"
    assert (avro.payload, avro.content_type, avro.key) == (AVRO, "", None)
    assert (empty.payload, text.payload) == (b"", b"text \xff")
    assert service.ask("select distinct parent_run from run") == [(None,)]
    assert service.ask("select distinct state from run") == [("committed",)]


async def test_a_processor_that_passes_our_headers_on_writes_messages_of_its_own(
    rabbit: Trial, database_url: str
) -> None:
    orders, enriched = name(), name()
    service = await declared_service(rabbit, database_url, orders, enriched)
    copies = await rabbit.queue(orders)

    async with service.running():
        await service.app.launch(orders, {"sku": "apple"})
        await service.sees(1)
        order = await (await (await rabbit.channel()).get_queue(copies)).get(no_ack=True)
        await publish(rabbit, enriched, b'{"part": 1}', message_id=order.message_id, headers={**order.headers})
        _, part = await service.sees(2)

    assert (part.topic, part.body) == (enriched, b'{"part": 1}')
    assert part.id != service.seen[0].id
    assert service.dead_letters == []


async def test_a_producer_that_gives_no_message_id_starts_sagas(rabbit: Trial, database_url: str) -> None:
    topic = name()
    service = await declared_service(rabbit, database_url, topic)
    await publish_plainly(rabbit, "amq.topic", topic, AVRO)
    await publish_plainly(rabbit, "amq.topic", topic, b'{"sku": "pear"}', headers=dict(TRACE))
    await publish_plainly(rabbit, "amq.topic", topic, b'{"sku": "plum"}', content_type="application/json")

    async with service.running():
        avro, pear, plum = by_body(await service.sees(3))

    assert (avro.body, avro.headers, avro.content_type) == (AVRO, {}, "")
    assert (pear.payload, pear.headers) == ({"sku": "pear"}, TRACE)
    assert (plum.payload, plum.content_type) == ({"sku": "plum"}, "application/json")


async def test_bytes_of_a_registry_reach_sagas_that_take_bytes_and_are_a_dead_letter_to_those_that_cannot(
    rabbit: Trial, database_url: str
) -> None:
    topic = name()
    untyped = await declared_service(rabbit, database_url, topic)
    typed = await declared_service(rabbit, database_url, Topic(topic, Order))
    await publish(rabbit, topic, AVRO, b'{"sku": "apple"}')

    async with untyped.running(), typed.running():
        await untyped.sees(2)
        await typed.sees(1)

    assert [message.payload for message in by_body(untyped.seen)] == [AVRO, {"sku": "apple"}]
    assert [message.payload for message in typed.seen] == [Order("apple")]
    ((body, reason),) = typed.dead_letters
    assert body == AVRO
    assert "Order" in reason


# -- again and again ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("properties", [{"message_id": "m-1"}, {}], ids=["with an id", "without one"])
async def test_a_message_that_is_delivered_again_starts_nothing_twice(
    rabbit: Trial, database_url: str, properties: dict[str, Any]
) -> None:
    topic = name()
    service = await declared_service(rabbit, database_url, topic)
    await publish_plainly(rabbit, "amq.topic", topic, AVRO, **properties)
    async with service.running() as daemons:
        await service.sees(1)
        # A producer that is not sure whether it has been heard.
        await publish_plainly(rabbit, "amq.topic", topic, AVRO, **properties)
        await publish_plainly(rabbit, "amq.topic", topic, b"behind")
        await until(lambda: b"behind" in service.bodies, 30)
        assert daemons.intake is not None
        assert daemons.intake.counters.taken_in == 3

    assert service.runs == 2


async def test_a_message_that_somebody_has_put_back_starts_sagas_once(rabbit: Trial, database_url: str) -> None:
    topic = name()
    service = await declared_service(rabbit, database_url, topic)
    await publish(rabbit, topic, b"1")
    queue = await (await rabbit.channel()).get_queue(service_of(service.app).group)
    for _ in range(3):
        one = await queue.get(timeout=10)
        assert one is not None
        await one.nack(requeue=True)

    async with service.running():
        await service.sees(1)
        # A dead-letter exchange or a shovel brings back what was handled: as published, with a history.
        death: Any = {"x-death": [{"queue": "q", "count": 1}], "x-first-death-queue": "q", "x-delivery-count": 4}
        (first,) = service.seen
        again = aio_pika.Message(b"1", message_id=first.headers["amqp-message-id"], headers=death)
        exchange = await (await rabbit.channel()).get_exchange("amq.topic")
        await exchange.publish(again, topic, timeout=10)
        await publish(rabbit, topic, b"behind")
        await service.sees(2)

    assert service.runs == 2


# -- what is there already ------------------------------------------------------------------------------------------


async def test_an_existing_queue_is_consumed_by_name_and_its_bindings_stay(rabbit: Trial, database_url: str) -> None:
    channel = await rabbit.channel()
    exchange = await channel.declare_exchange(name("billing"), "fanout", durable=True)
    queue = await channel.declare_queue(name("invoices"), durable=True)
    await queue.bind(exchange, "whatever")
    copy = await channel.declare_queue(name("audit"), durable=True)
    await copy.bind(exchange)
    await exchange.publish(aio_pika.Message(b"old"), "invoice.created", timeout=10)
    topic = f"{exchange.name}/invoice.created"
    service = Listener(database_url, rabbit.url, name("shop"), topic, settings={f"queue.{topic}": queue.name})

    items = await service.app.topology()
    async with service.running():
        await service.sees(1)
        await exchange.publish(aio_pika.Message(b"new"), "another.key", timeout=10)
        await service.sees(2)

    assert [item.exists for item in items] == [True]
    assert service.bodies == [b"old", b"new"]
    assert {message.topic for message in service.seen} == {topic}
    assert service.seen[1].headers["amqp-routing-key"] == "another.key"
    assert await rabbit.bodies(copy.name) == [b"old", b"new"]
    # Nothing was declared for the service besides: its queue would have this name.
    with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
        await (await rabbit.channel()).get_queue(service_of(service.app).group)


async def test_a_consumer_of_others_gets_what_it_got_before(rabbit: Trial, database_url: str) -> None:
    topic = name()
    theirs = await rabbit.queue(topic)
    service = await declared_service(rabbit, database_url, topic)

    async with service.running():
        await publish(rabbit, topic, b"1")
        await service.app.launch(topic, 2)
        await service.sees(2)
        plain = await messages(rabbit, theirs, 2)

    assert sorted(message.body for message in plain) == [b"1", b"2"]


async def test_a_running_service_creates_nothing(own_rabbit: RabbitServer, database_url: str) -> None:
    async with Trial(own_rabbit.url) as rabbit:
        topic, missing = name(), name("missing")
        service = await declared_service(rabbit, database_url, topic)
        before = everything(own_rabbit)

        async with service.running():
            await publish(rabbit, topic, b"1")
            await service.app.launch(topic, 2)
            await service.app.launch(missing, {})
            await service.app.launch(f"{missing}/exchange", {})
            await service.app.launch(f"/{missing}", {})
            await service.sees(2)
            await until(lambda: len(service.dead_letters) == 3, 30)
            running = everything(own_rabbit)

        assert running == before == everything(own_rabbit)
        assert all(missing in reason for _, reason in service.dead_letters)
        assert service_of(service.app).group in before


def everything(server: RabbitServer) -> str:
    """What is declared at a broker."""
    asked = (
        ("list_queues", "name", "durable", "arguments"),
        ("list_exchanges", "name", "type"),
        ("list_bindings",),
        ("list_policies",),
    )
    return "\n".join(sorted("\n".join(server.ctl(*one) for one in asked).splitlines()))
