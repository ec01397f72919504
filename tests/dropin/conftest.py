"""Brokers for whoever knows nothing of scoop_outbox, and servers of these tests' own."""

import shutil
from collections.abc import AsyncIterator, Iterator

import pytest

from scoop_outbox.devservers._errors import ServerNotFoundError
from scoop_outbox.devservers.kafka import KafkaCluster, start_kafka
from scoop_outbox.devservers.rabbitmq import RabbitServer, start_rabbitmq
from tests.kafka.trial import Trial as KafkaTrial
from tests.rabbitmq.trial import Trial as RabbitTrial
from tests.servers import skip_without


@pytest.fixture
async def kafka(kafka_url: str) -> AsyncIterator[KafkaTrial]:
    """Clients of Kafka that know nothing of us."""
    async with KafkaTrial(kafka_url) as trial:
        yield trial


@pytest.fixture
async def rabbit(rabbitmq_url: str) -> AsyncIterator[RabbitTrial]:
    """Clients of RabbitMQ that know nothing of us."""
    async with RabbitTrial(rabbitmq_url) as trial:
        yield trial


@pytest.fixture(scope="session")
def lenient_kafka(kafka_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """A Kafka that creates a topic as soon as somebody asks for it."""
    folder = tmp_path_factory.mktemp("lenient-kafka")
    with start_kafka(folder, settings={"auto.create.topics.enable": "true"}) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def guarded_kafka(kafka_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """A Kafka that demands TLS and a password, and has permissions."""
    with start_kafka(tmp_path_factory.mktemp("guarded-kafka"), security="sasl_ssl") as cluster:
        yield cluster


@pytest.fixture(scope="session")
def own_rabbit(rabbitmq_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    """A RabbitMQ that nobody else uses."""
    with start_rabbitmq(tmp_path_factory.mktemp("own-rabbitmq")) as server:
        yield server


@pytest.fixture
def kcat() -> str:
    """Another client of Kafka."""
    found = shutil.which("kcat")
    if found is None:
        skip_without(ServerNotFoundError("kcat is not installed: apt-get install kcat"))
    return found
