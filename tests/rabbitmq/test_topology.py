"""What has to exist, who may use it, and what is said when that is not so."""

import asyncio
import re
import secrets
import shlex
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiormq.channel import Channel
from aiormq.exceptions import ChannelAccessRefused
from scoop_outbox_rabbitmq.connection import Link
from scoop_outbox_rabbitmq.settings import read_settings
from scoop_outbox_rabbitmq.topology import queue_arguments

from scoop_outbox.broker.protocol import Subscription
from scoop_outbox.devservers.rabbitmq import RabbitServer
from scoop_outbox.errors import BrokerError
from tests.rabbitmq.trial import ACKNOWLEDGED, FOR_GOOD, Trial, envelope, name, received, verdicts

DOCUMENT = Path(__file__).parents[2] / "docs" / "rabbitmq.md"


async def test_everything_that_is_missing_is_created_when_asked(trial: Trial) -> None:
    exchange, group, queue = name("exchange"), name("group"), name("queue")
    topics = (f"{exchange}/a", f"{exchange}/b.*", f"/{queue}")
    broker, subscription = trial.broker(), Subscription("s", group, topics)

    before = await broker.topology(topics, subscription, create=False)
    with pytest.raises(BrokerError, match="topology apply"):
        await broker.prepare(subscription)
    created = await broker.topology(topics, subscription, create=True)
    after = await broker.topology(topics, subscription, create=False)
    await broker.prepare(subscription)
    consumer = await trial.consumer(group, *topics)
    receipts = await (await trial.publisher()).publish([envelope(one) for one in (topics[0], topics[2])])

    assert [item.text.split()[0] for item in before] == ["exchange", "queue", "queue", "binding", "binding"]
    assert not any(item.exists for item in (*before, *created))
    assert all(item.exists for item in after)
    assert verdicts(receipts) == [ACKNOWLEDGED] * 2
    assert {one.envelope.topic for one in await received(consumer, 2)} == {topics[0], topics[2]}


async def test_a_missing_exchange_is_named(trial: Trial) -> None:
    group, missing = name("group"), name("exchange")
    await trial.create(group, "some.topic")

    with pytest.raises(BrokerError, match=f"no exchange '{missing}'"):
        await trial.broker().prepare(Subscription("s", group, (f"{missing}/x",)))


async def test_a_name_that_the_client_cannot_write_is_said(trial: Trial) -> None:
    broker, unnameable = trial.broker(), Subscription("s", "caf\u00e9", ("t",))

    for attempt in (
        broker.prepare(unnameable),
        broker.topology([], unnameable, create=False),
        broker.topology(["/caf\u00e9"], None, create=False),
        broker.topology(["caf\u00e9/x"], None, create=False),
    ):
        with pytest.raises(BrokerError, match=r"the client cannot name .*caf"):
            await attempt


async def test_checking_leaves_messages_alone(trial: Trial) -> None:
    topic, group = name(), name("group")
    await trial.create(group, topic)
    await (await trial.publisher()).publish([envelope(topic)])

    for _ in range(3):
        await trial.broker().prepare(Subscription("s", group, (topic,)))

    (came,) = await received(await trial.consumer(group, topic), 1)
    assert "x-delivery-count" not in came.envelope.headers


@pytest.mark.parametrize("version, limit", [("3.10.8", None), ("4.0.0-rc.1", -1), ("4.3.7", -1), ("", None)])
def test_rabbitmq_4_is_told_not_to_drop_what_comes_often(version: str, limit: int | None) -> None:
    link = object.__new__(Link)
    link.server_properties = {"version": version}

    arguments = queue_arguments(link, read_settings("amqp://", {"queue.single-active-consumer": True}))

    assert arguments == {
        "x-queue-type": "quorum",
        "x-single-active-consumer": True,
        **({} if limit is None else {"x-delivery-limit": limit}),
    }


async def test_a_wrong_password_or_host_of_names_is_said(trial: Trial) -> None:
    server = trial.url.partition("@")[2].rstrip("/")
    for url, said in (
        (f"amqp://scoop:secret@{server}/", "refuses user 'scoop'"),
        (trial.url + "nowhere", "virtual host 'nowhere'"),
    ):
        async with Trial(url) as other:
            with pytest.raises(BrokerError, match=said) as caught:
                await other.broker().prepare(Subscription("s", "q", ("t",)))
            consumer = await other.consumer("q", "t")
            with pytest.raises(BrokerError, match=said):
                await received(consumer, 1)
            receipts = await (await other.publisher()).publish([envelope("t")])
        assert said in receipts[0].reason
        assert "secret" not in str(caught.value)


@pytest.fixture
async def stranger(server: RabbitServer) -> AsyncIterator[Trial]:
    """Somebody who may use what begins with mine, and nothing else."""
    user, password = f"stranger-{secrets.token_hex(4)}", secrets.token_hex(8)
    command = (
        f'rabbit_auth_backend_internal:add_user(<<"{user}">>, <<"{password}">>, <<"test">>), '
        f'rabbit_auth_backend_internal:set_permissions(<<"{user}">>, <<"/">>, <<"^$">>, <<"^mine">>, <<"^mine">>, '
        '<<"test">>).'
    )
    await asyncio.to_thread(server.ctl, "eval", command)
    address = server.url.partition("@")[2]
    async with Trial(f"amqp://{user}:{password}@{address}") as stranger:
        yield stranger


async def test_what_is_not_permitted_is_said(own_trial: Trial, stranger: Trial) -> None:
    topic, group, mine = name(), name("group"), name("mine")
    await own_trial.create(group, topic)
    await own_trial.create(mine, f"{name('mine')}/x")
    subscription = Subscription("s", group, (topic,))

    with pytest.raises(BrokerError, match=f"may not read queue '{group}'.*set_permissions"):
        await stranger.broker().prepare(subscription)
    with pytest.raises(BrokerError, match=f"may not read queue '{group}'.*set_permissions"):
        await received(await stranger.consumer(group, topic), 1)
    with pytest.raises(BrokerError, match=r"not permitted.*set_permissions"):
        await stranger.broker().topology([], Subscription("s", name("other"), (topic,)), create=True)
    receipts = await (await stranger.publisher()).publish([envelope(topic), envelope(topic)])

    assert verdicts(receipts) == [FOR_GOOD, FOR_GOOD]
    assert "ACCESS_REFUSED" in receipts[0].reason


async def test_who_may_not_ask_for_an_exchange_or_a_queue_may_publish_and_receive_all_the_same(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    # RabbitMQ 4.2.6 and 4.3.0 ask of a passive declare what they ask of a real one: the permission to configure.
    topic, group = name(), name("group")
    await trial.create(group, topic)

    async def refuse(channel: Channel, *_: object, passive: bool = False, **__: object) -> None:
        assert passive
        await channel.close()
        raise ChannelAccessRefused("ACCESS_REFUSED - access to it is refused")

    monkeypatch.setattr(Channel, "exchange_declare", refuse)
    monkeypatch.setattr(Channel, "queue_declare", refuse)
    subscription = Subscription("s", group, (topic,))
    await trial.broker().prepare(subscription)
    items = await trial.broker().topology((f"{name('exchange')}/a",), subscription, create=False)
    consumer = await trial.consumer(group, topic)

    assert verdicts(await (await trial.publisher()).publish([envelope(topic)])) == [ACKNOWLEDGED]
    assert len(await received(consumer, 1)) == 1
    assert [item.exists for item in items] == [None] * 3
    with pytest.raises(BrokerError, match="topology apply"):
        await trial.broker().prepare(Subscription("s", name("missing"), (topic,)))
    (receipt,) = await (await trial.publisher()).publish([envelope(f"{name('exchange')}/a")])
    assert receipt.status is FOR_GOOD
    assert "there is no exchange" in receipt.reason


async def test_the_permissions_in_the_document_are_enough(server: RabbitServer, own_trial: Trial) -> None:
    commands = re.findall(r"^rabbitmqctl (set_permissions .*)$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    granted = {words[3]: words[4:] for words in (shlex.split(line, comments=True) for line in commands)}
    group = "shop"
    for user, permissions in granted.items():
        server.ctl("add_user", user, "pass")
        server.ctl("set_permissions", "-p", "/", user, *permissions)
    try:
        relay, shop, setup = (
            Trial(f"amqp://{user}:pass@{own_trial.url.rpartition('@')[2]}") for user in ("relay", "shop", "setup")
        )
        async with relay, shop, setup:
            await setup.create(group, "orders")
            assert verdicts(await (await relay.publisher()).publish([envelope("orders")])) == [ACKNOWLEDGED]
            await shop.broker().prepare(Subscription("shop", group, ("orders",)))
            consumer = await shop.consumer(group, "orders")
            await consumer.acknowledge(await received(consumer, 1))
    finally:
        for user in granted:
            server.ctl("delete_user", user)


async def test_topics_go_to_the_exchange_that_is_set(trial: Trial) -> None:
    exchange, topic, group = name("exchange"), name(), name("group")
    await trial.create(group, topic, exchange=exchange, **{"exchange.type": "direct"})
    queue = await trial.queue(topic)

    receipts = await (await trial.publisher(exchange=exchange)).publish([envelope(topic)])

    assert verdicts(receipts) == [ACKNOWLEDGED]
    assert len(await received(await trial.consumer(group, topic, exchange=exchange), 1)) == 1
    assert await trial.bodies(queue) == [], "it is bound to the exchange that is there anyway"
