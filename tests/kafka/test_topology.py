"""Topics: what is there, what is created when somebody asks for it, and what a subscription lacks."""

import asyncio

import pytest
from scoop_outbox_kafka import preparing, topology

from scoop_outbox.broker.protocol import Resource, Subscription
from scoop_outbox.errors import BrokerError
from tests.kafka.trial import Trial, name


async def test_topics_are_created_only_when_asked_for(trial: Trial) -> None:
    topic, other = trial.topic(), name()
    broker = trial.broker(topology__partitions=3, topology__replication__factor=1)
    subscription = Subscription("test", name("g"), (other, topic), "earliest")
    items = [
        Resource(f"topic {topic} (3 partitions, 1 replicas)", exists=True),
        Resource(f"topic {other} (3 partitions, 1 replicas)", exists=False),
    ]
    assert await broker.topology([topic], subscription, create=False) == items
    assert other not in trial.admin.list_topics(timeout=10).topics
    assert await broker.topology([topic], subscription, create=True) == items
    assert len(trial.admin.list_topics(other, timeout=10).topics[other].partitions) == 3
    # It has one partition, and is left alone.
    assert len(trial.admin.list_topics(topic, timeout=10).topics[topic].partitions) == 1
    assert [item.exists for item in await broker.topology([topic], subscription, create=True)] == [True, True]


async def test_the_broker_s_own_numbers_are_taken_unless_others_are_given(trial: Trial) -> None:
    topic = name()
    await trial.broker().topology([topic], None, create=True)
    assert len(trial.admin.list_topics(topic, timeout=10).topics[topic].partitions) == 1


async def test_a_name_that_no_topic_can_have(trial: Trial) -> None:
    with pytest.raises(BrokerError, match="cannot be the name of a topic"):
        await trial.broker().topology(["no such/topic"], None, create=True)


async def test_too_many_copies(trial: Trial) -> None:
    with pytest.raises(BrokerError, match=r"cannot be created: .*[Rr]eplication factor"):
        await trial.broker(topology__replication__factor=7).topology([name()], None, create=True)


async def test_a_broker_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "_ANSWER", 1.0)
    monkeypatch.setattr(preparing, "_ANSWER", 0.5)
    async with Trial("kafka://127.0.0.1:1") as trial:
        with pytest.raises(BrokerError, match=r"Kafka at 127\.0\.0\.1:1 has not answered"):
            await trial.broker().topology(["x"], None, create=True)
        await trial.broker().prepare(Subscription("test", "g", ("x",), "earliest"))


async def test_a_topic_that_is_missing_is_told_with_what_to_do(trial: Trial) -> None:
    topic, missing, group = trial.topic(), name("missing"), name("g")
    subscription = Subscription("test", group, (topic, missing), "earliest")
    with pytest.raises(BrokerError, match=f"there is no topic {missing}: .*scoop-outbox topology apply.*kafka-topics"):
        await trial.broker().prepare(subscription)
    consumer = await trial.consumer(group, topic, missing)
    with pytest.raises(BrokerError, match=f"there is no topic {missing}"):
        await consumer.receive(1, 0.1)
    assert missing not in trial.admin.list_topics(timeout=10).topics
    trial.create(missing)
    await trial.broker().prepare(subscription)
    assert await consumer.receive(1, 0.1) == []


async def test_a_topic_that_is_deleted_is_told_until_it_is_there_again(trial: Trial) -> None:
    topic, other = trial.topic(), trial.topic()
    consumer = await trial.consumer(name("g"), topic, other, topic__metadata__refresh__interval__ms=300)
    trial.produce(topic, b"1")
    trial.produce(other, b"2")
    came = 0
    async with asyncio.timeout(20):
        while came < 2:
            came += len(await consumer.receive(10, 0.2))
        trial.admin.delete_topics([other], operation_timeout=10)[other].result(10)
        while consumer.problem is None:
            await consumer.receive(10, 0.2)
        assert f"there is no topic {other}" in str(consumer.problem)
        # The others go on.
        trial.produce(topic, b"3")
        while not await consumer.receive(10, 0.2):
            pass
        trial.create(other)
        while consumer.problem is not None:
            await consumer.receive(10, 0.2)
