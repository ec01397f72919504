"""The contract, with Kafka."""

from collections.abc import Iterator

import pytest

from scoop_outbox.broker.protocol import Feature
from scoop_outbox.devservers.kafka import KafkaCluster, start_kafka
from scoop_outbox.testing.contract import BrokerContract, Harness, Power, ServiceContract
from tests.contract.harnesses import KafkaHarness

FEATURES = frozenset(Feature)


@pytest.fixture(scope="module")
def server(kafka_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    with start_kafka(tmp_path_factory.mktemp("kafka")) as server:
        yield server


class TestBroker(BrokerContract):
    features = FEATURES
    powers = frozenset(Power)

    @pytest.fixture
    def harness(self, server: KafkaCluster) -> Harness:
        return KafkaHarness(server)


class TestServices(ServiceContract):
    features = FEATURES
    powers = frozenset(Power)

    @pytest.fixture
    def harness(self, server: KafkaCluster) -> Harness:
        return KafkaHarness(server)
