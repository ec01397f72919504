"""The two contracts: of publishers and consumers, and of services."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from scoop_outbox.testing.contract.groups import Groups
from scoop_outbox.testing.contract.harness import Harness
from scoop_outbox.testing.contract.outages import Outages
from scoop_outbox.testing.contract.preparing import Preparing
from scoop_outbox.testing.contract.publishing import Publishing
from scoop_outbox.testing.contract.receiving import Receiving
from scoop_outbox.testing.contract.service_outages import Storms
from scoop_outbox.testing.contract.services import Services
from scoop_outbox.testing.contract.system import System
from scoop_outbox.testing.contract.trial import Trial


@pytest.mark.asyncio
class BrokerContract(Publishing, Receiving, Preparing, Groups, Outages):
    """What publishers and consumers of every broker do.

    Attributes:
        features: what the broker declares; has to be said once more, so that no test is left out by accident.
        powers: what the harness can do.
        left_out: the tests that are not run, with what is missing.
    """

    @pytest_asyncio.fixture
    async def trial(self, harness: Harness) -> AsyncIterator[Trial]:
        """The topics, groups, publishers and consumers of one test."""
        async with Trial(harness, self.features) as trial:
            yield trial


@pytest.mark.asyncio
class ServiceContract(Services, Storms):
    """What services do over every broker, the built-in one included; takes a fixture `database_url` besides.

    Attributes:
        features: what the broker declares.
        powers: what the harness can do.
        left_out: the tests that are not run, with what is missing.
    """

    @pytest_asyncio.fixture
    async def system(self, harness: Harness, database_url: str) -> AsyncIterator[System]:
        """The services of one test, on a database of its own."""
        async with System(harness, self.features, database_url) as system:
            yield system
