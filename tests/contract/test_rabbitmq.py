"""The contract, with RabbitMQ."""

from collections.abc import Iterator

import pytest

from scoop_outbox.broker.protocol import Feature
from scoop_outbox.devservers.rabbitmq import RabbitServer, start_rabbitmq
from scoop_outbox.testing.contract import BrokerContract, Harness, Power, ServiceContract
from tests.contract.harnesses import RabbitHarness

FEATURES = frozenset({Feature.KNOWS_TOPICS, Feature.LIMITS_SIZE})


@pytest.fixture(scope="module")
def server(rabbitmq_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    with start_rabbitmq(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


class TestBroker(BrokerContract):
    features = FEATURES
    powers = frozenset(Power)

    @pytest.fixture
    def harness(self, server: RabbitServer) -> Harness:
        return RabbitHarness(server)


class TestServices(ServiceContract):
    features = FEATURES
    powers = frozenset(Power)

    @pytest.fixture
    def harness(self, server: RabbitServer) -> Harness:
        return RabbitHarness(server)


class FreezableHarness(RabbitHarness):
    """Leaves out what `TestBroker` has shown and takes time."""

    stop = Harness.stop
    start = Harness.start
    publish_foreign = Harness.publish_foreign


class TestSingleActiveConsumer(BrokerContract):
    features = FEATURES | {Feature.ORDER_PER_KEY}
    powers = frozenset({Power.FREEZE})

    @pytest.fixture
    def harness(self, server: RabbitServer) -> Harness:
        return FreezableHarness(server, {"queue.single-active-consumer": True})
