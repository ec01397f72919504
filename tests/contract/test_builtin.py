"""The contract of services, with the built-in broker."""

import pytest

from scoop_outbox.broker.protocol import Feature
from scoop_outbox.testing.contract import Harness, ServiceContract


class TestServices(ServiceContract):
    features = frozenset({Feature.ORDER_PER_KEY})

    @pytest.fixture
    def harness(self) -> Harness:
        return Harness()
