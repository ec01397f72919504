"""What has to exist, who may use it, and what is said when that is not so."""

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest
from scoop_outbox_rabbitmq.connection import Link
from scoop_outbox_rabbitmq.settings import read_settings
from scoop_outbox_rabbitmq.topology import queue_arguments

from scoop_outbox.broker.protocol import Subscription
from scoop_outbox.errors import BrokerError
from scoop_outbox.testing.rabbitmq import RabbitServer
from tests.rabbitmq.trial import ACKNOWLEDGED, FOR_GOOD, Trial, envelope, name, received, verdicts


async def test_everything_that_is_missing_is_created_when_asked(trial: Trial) -> None:
    exchange, group, queue = name("exchange"), name("group"), name("queue")
    topics = (f"{exchange}/a", f"{exchange}/b.*", f"/{queue}")
    broker, subscription = trial.broker(), Subscription("s", group, topics)

    before = await broker.topology(topics, subscription, create=False)
    with pytest.raises(BrokerError, match="topology apply"):
        await broker.check(subscription)
    created = await broker.topology(topics, subscription, create=True)
    after = await broker.topology(topics, subscription, create=False)
    await broker.check(subscription)
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
        await trial.broker().check(Subscription("s", group, (f"{missing}/x",)))


async def test_checking_leaves_messages_alone(trial: Trial) -> None:
    topic, group = name(), name("group")
    await trial.create(group, topic)
    await (await trial.publisher()).publish([envelope(topic)])

    for _ in range(3):
        await trial.broker().check(Subscription("s", group, (topic,)))

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
                await other.broker().check(Subscription("s", "q", ("t",)))
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
        await stranger.broker().check(subscription)
    with pytest.raises(BrokerError, match=f"may not read queue '{group}'.*set_permissions"):
        await received(await stranger.consumer(group, topic), 1)
    with pytest.raises(BrokerError, match=r"not permitted.*set_permissions"):
        await stranger.broker().topology([], Subscription("s", name("other"), (topic,)), create=True)
    receipts = await (await stranger.publisher()).publish([envelope(topic), envelope(topic)])

    assert verdicts(receipts) == [FOR_GOOD, FOR_GOOD]
    assert "ACCESS_REFUSED" in receipts[0].reason
