"""A server that all tests of the adapter share, one that they may stop, freeze and kill, and one with TLS."""

from collections.abc import AsyncIterator, Iterator

import pytest

from scoop_outbox.devservers.rabbitmq import RabbitServer, start_rabbitmq
from tests.rabbitmq.trial import Trial

MOST = 300_000
"""Bytes of a body that the server of our own takes."""


@pytest.fixture
async def trial(rabbitmq_url: str) -> AsyncIterator[Trial]:
    async with Trial(rabbitmq_url) as trial:
        yield trial


@pytest.fixture(scope="session")
def own_server(rabbitmq_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    with start_rabbitmq(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


@pytest.fixture
def server(own_server: RabbitServer) -> RabbitServer:
    own_server.start()
    return own_server


@pytest.fixture
async def own_trial(server: RabbitServer) -> AsyncIterator[Trial]:
    async with Trial(server.url) as trial:
        yield trial
