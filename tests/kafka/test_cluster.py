"""Publishing to three nodes: a leader goes, or too few replicas are in sync; nothing is lost, and the order is kept."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from scoop_outbox.devservers._kafka_node import KafkaNode
from scoop_outbox.devservers.kafka import KafkaCluster, start_kafka
from tests.kafka.test_outages import first_seen, publish_all
from tests.kafka.trial import ACKNOWLEDGED, FOR_NOW, Trial, envelope, verdicts
from tests.waiting import until

COUNT = 20_000


@pytest.fixture(scope="module")
def three_nodes(kafka_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    with start_kafka(tmp_path_factory.mktemp("kafka"), nodes=3) as cluster:
        yield cluster
        cluster.kill()  # three that say goodbye to each other take half a minute


@pytest.fixture
async def trial(three_nodes: KafkaCluster) -> AsyncIterator[Trial]:
    await asyncio.to_thread(three_nodes.start)
    async with Trial(three_nodes.url) as trial:
        yield trial
        for node in three_nodes.nodes:
            if node.pid is not None:
                node.thaw()


def leader(trial: Trial, cluster: KafkaCluster, topic: str) -> KafkaNode:
    number = trial.admin.list_topics(topic, timeout=10).topics[topic].partitions[0].leader
    return cluster.nodes[number - 1]


@pytest.mark.parametrize("end", [KafkaNode.kill, KafkaNode.freeze], ids=["killed", "frozen"])
async def test_the_leader_goes_while_it_is_published_to(
    trial: Trial, three_nodes: KafkaCluster, end: Callable[[KafkaNode], None]
) -> None:
    topic = trial.topic(replicas=3, min_insync_replicas="2")
    publisher = await trial.publisher(publish__timeout=3)
    tried: list[int] = []
    publishing = asyncio.create_task(
        publish_all(publisher, [envelope(topic, "k", b"%d" % number) for number in range(COUNT)], tried)
    )
    await until(lambda: sum(tried) > 0, timeout=10)  # in the midst of it
    await asyncio.to_thread(end, leader(trial, three_nodes, topic))
    assert not publishing.done()
    await publishing
    assert first_seen(trial, topic) == list(range(COUNT))


async def test_too_few_replicas_are_in_sync(trial: Trial, three_nodes: KafkaCluster) -> None:
    topic = trial.topic(replicas=3, min_insync_replicas="3")
    publisher = await trial.publisher(publish__timeout=2)
    batch = [envelope(topic, "k", b"%d" % number) for number in range(10)]
    assert set(verdicts(await publisher.publish(batch[:1]))) == {ACKNOWLEDGED}
    other = next(node for node in three_nodes.nodes if node is not leader(trial, three_nodes, topic))
    await asyncio.to_thread(other.kill)
    tried: list[int] = []

    async def refused() -> bool:
        return set(verdicts(await publisher.publish(batch[1:]))) == {FOR_NOW}

    # Those that were in sync a moment ago still count, until the broker has noticed.
    await until(refused, timeout=40)
    await asyncio.to_thread(three_nodes.start)
    await publish_all(publisher, batch[1:], tried)
    assert first_seen(trial, topic) == list(range(10))
