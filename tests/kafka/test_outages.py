"""A broker that freezes, is killed, or was never there: nothing is lost, and the order within a key is kept."""

import asyncio
import sys
import time

import pytest
from scoop_outbox_kafka import topology
from scoop_outbox_kafka.publisher import KafkaPublisher

from scoop_outbox.broker.protocol import Subscription
from scoop_outbox.devservers.kafka import KafkaCluster
from scoop_outbox.message import Envelope
from tests.kafka.trial import ACKNOWLEDGED, FOR_NOW, Trial, bodies, envelope, joined, name, received, verdicts
from tests.waiting import until


async def publish_all(publisher: KafkaPublisher, batch: list[Envelope], tried: list[int]) -> None:
    """Publish as a relay does: again and again, what failed for now and all that is behind it.

    How many messages each attempt got acknowledged is appended to `tried`.
    """
    async with asyncio.timeout(60):
        while batch:
            receipts = await publisher.publish(batch[:100])
            tried.append(verdicts(receipts).count(ACKNOWLEDGED))
            failed = [one for one, receipt in zip(batch, receipts, strict=False) if receipt.status is FOR_NOW]
            batch = failed + batch[100:]


def first_seen(trial: Trial, topic: str) -> list[int]:
    """The numbers in the order in which somebody sees each for the first time."""
    return list(dict.fromkeys(int(message.value() or b"") for message in trial.read(topic)))


async def test_a_frozen_broker_ends_our_patience_and_the_order_is_kept(own_trial: Trial, cluster: KafkaCluster) -> None:
    topic = own_trial.topic()
    (node,) = cluster.nodes
    publisher = await own_trial.publisher(publish__timeout=1)
    batch = [envelope(topic, "k", b"%d" % number) for number in range(300)]
    await publish_all(publisher, batch[:50], [])  # on a busy machine a new topic may take longer than publish.timeout
    node.freeze()
    for _ in range(2):
        started = time.monotonic()
        receipts = await publisher.publish(batch[50:150])
        assert time.monotonic() - started < 3
        assert set(verdicts(receipts)) == {FOR_NOW}
        assert receipts[0].reason
    tried: list[int] = []
    publishing = asyncio.create_task(publish_all(publisher, batch[50:], tried))
    await until(lambda: tried[:1] == [0], timeout=10)  # the time was up once more
    node.thaw()
    await publishing
    assert first_seen(own_trial, topic) == list(range(300))


async def test_a_broker_that_is_killed_while_it_is_published_to(own_trial: Trial, cluster: KafkaCluster) -> None:
    topic = own_trial.topic()
    publisher = await own_trial.publisher(publish__timeout=2)
    tried: list[int] = []
    publishing = asyncio.create_task(
        publish_all(publisher, [envelope(topic, "k", b"%d" % number) for number in range(20_000)], tried)
    )
    await until(lambda: sum(tried) > 0, timeout=10)  # in the midst of it
    (node,) = cluster.nodes
    await asyncio.to_thread(node.kill)
    assert not publishing.done()
    await asyncio.to_thread(node.start)
    await publishing
    assert first_seen(own_trial, topic) == list(range(20_000))


async def test_a_consumer_says_that_no_broker_can_be_reached_until_one_can(
    own_trial: Trial, cluster: KafkaCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topology, "_ANSWER", 1.0)
    topic, group = own_trial.topic(), name("g")
    consumer = await own_trial.consumer(group, topic)
    await joined(consumer)
    assert consumer.problem is None
    (node,) = cluster.nodes
    await asyncio.to_thread(node.kill)

    async def troubled() -> bool:
        await consumer.receive(1, 0.1)
        return consumer.problem is not None

    await until(troubled)
    assert "no broker can be reached since " in str(consumer.problem)
    # What was acknowledged meanwhile is committed when it is back, and checks say nothing of a broker that is down.
    await own_trial.broker().prepare(Subscription("test", group, (topic,), "latest"))
    await asyncio.to_thread(node.start)

    async def well() -> bool:
        return not await troubled()

    await until(well, timeout=20)
    own_trial.produce(topic, b"1")
    assert bodies(await received(consumer, 1)) == [b"1"]


async def test_a_broker_that_is_down_at_the_start_is_waited_for(own_trial: Trial, cluster: KafkaCluster) -> None:
    topic, group = own_trial.topic(), name("g")
    own_trial.produce(topic, b"1")
    (node,) = cluster.nodes
    await asyncio.to_thread(node.kill)
    publisher = await own_trial.publisher(publish__timeout=1)
    consumer = await own_trial.consumer(group, topic)
    assert verdicts(await publisher.publish([envelope(topic)])) == [FOR_NOW]
    assert await consumer.receive(1, 0.1) == []
    assert consumer.problem is not None
    await asyncio.to_thread(node.start)
    assert bodies(await received(consumer, 1)) == [b"1"]
    assert str(consumer.problem) == "None"
    await publish_all(publisher, [envelope(topic, None, b"2")], [])
    assert bodies(await received(consumer, 1)) == [b"2"]


async def test_offsets_that_could_not_be_committed_are_committed_later(own_trial: Trial, cluster: KafkaCluster) -> None:
    topic, group = own_trial.topic(), name("g")
    own_trial.produce(topic, b"1")
    consumer = await own_trial.consumer(group, topic)
    found = await received(consumer, 1, acknowledge=False)
    (node,) = cluster.nodes
    await asyncio.to_thread(node.kill)
    await consumer.acknowledge(found)
    await asyncio.to_thread(node.start)

    async def committed() -> bool:
        # A member that was missed for too long gets it once more: its partition was lost, and with it what it had said.
        await consumer.acknowledge(await consumer.receive(1, 0.1))
        return await asyncio.to_thread(own_trial.committed, group, topic) == 1

    await until(committed, timeout=30)


async def test_closing_does_not_hang_on_a_frozen_broker(own_trial: Trial, cluster: KafkaCluster) -> None:
    topic = own_trial.topic()
    own_trial.produce(topic, b"1")
    publisher = await own_trial.publisher()
    consumer = await own_trial.consumer(name("g"), topic)
    assert verdicts(await publisher.publish([envelope(topic)])) == [ACKNOWLEDGED]
    await received(consumer, 2, acknowledge=False)
    (node,) = cluster.nodes
    node.freeze()
    async with asyncio.timeout(12):
        await publisher.close()
        await consumer.close()
    node.thaw()


CONSUMING = """
import asyncio, sys
from scoop_outbox.broker.protocol import Subscription
from scoop_outbox_kafka.broker import open_broker


async def main(url, topic):
    consumer = await open_broker(url, {}).consumer(Subscription("test", topic, (topic,), "earliest"))
    found = []
    while not found:
        found += await consumer.receive(10, 0.5)
    print("received", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await consumer.acknowledge(found)
    await consumer.close()
    print("closed", flush=True)


asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_program_that_has_closed_its_consumer_can_end_beside_a_frozen_broker(
    own_trial: Trial, cluster: KafkaCluster
) -> None:
    topic = own_trial.topic()
    own_trial.produce(topic, b"1")
    command = [sys.executable, "-c", CONSUMING, own_trial.url, topic]
    pipe = asyncio.subprocess.PIPE
    program = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert program.stdout is not None
    assert await program.stdout.readline() == b"received\n"
    (node,) = cluster.nodes
    node.freeze()
    try:
        async with asyncio.timeout(30):
            said, _ = await program.communicate(b"go on\n")
    finally:
        node.thaw()
        if program.returncode is None:
            program.kill()
    assert (said, program.returncode) == (b"closed\n", 0)
