"""The participant in Node on each real broker, and a home that talks to it."""

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from scoop_outbox.testing import servers_required
from tests.carriers import REAL
from tests.participant.counterpart import Counterpart
from tests.participant.node import Courier, NodeNotFoundError, install, node_here


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, installed in a folder that may be run and not written to."""
    folder = tmp_path_factory.mktemp("node") / "node-participant"
    try:
        node_here()
        install(folder)
    except NodeNotFoundError as error:
        if servers_required():
            raise
        pytest.skip(str(error))
    return folder


@pytest.fixture(params=REAL)
def broker(request: pytest.FixtureRequest) -> str:
    """The URL of a broker; the test runs once on each."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def prefix() -> str:
    return f"t{secrets.token_hex(6)}."


@pytest.fixture
def courier(example: Path, tmp_path: Path, broker: str, prefix: str) -> Iterator[Courier]:
    courier = Courier(example, tmp_path, broker, prefix)
    yield courier
    courier.stop()
    print(courier.log)


@pytest_asyncio.fixture
async def orders(broker: str, prefix: str, courier: Courier) -> AsyncIterator[Counterpart]:
    """A home that the courier works for: both know of each other."""
    async with Counterpart(broker, prefix) as orders:
        courier.start()
        await orders.introduce()
        yield orders
