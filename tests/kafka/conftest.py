"""A broker that all tests of the adapter share, one that they may freeze and kill, and one that asks who is there."""

from collections.abc import AsyncIterator, Iterator

import pytest

from scoop_outbox.devservers.kafka import KafkaCluster, start_kafka
from tests.kafka.trial import Trial


@pytest.fixture
async def trial(kafka_url: str) -> AsyncIterator[Trial]:
    async with Trial(kafka_url) as trial:
        yield trial


@pytest.fixture(scope="session")
def own_cluster(kafka_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    with start_kafka(tmp_path_factory.mktemp("kafka")) as cluster:
        yield cluster


@pytest.fixture
def cluster(own_cluster: KafkaCluster) -> KafkaCluster:
    own_cluster.start()
    return own_cluster


@pytest.fixture
async def own_trial(cluster: KafkaCluster) -> AsyncIterator[Trial]:
    async with Trial(cluster.url) as trial:
        yield trial
        # Whoever says goodbye wants an answer.
        for node in cluster.nodes:
            if node.pid is not None:
                node.thaw()
