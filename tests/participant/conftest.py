"""The participant in Node on each real broker, and a home that talks to it."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from scoop_outbox import Scoop
from tests.carriers import REAL, Carrier
from tests.participant.counterpart import Counterpart
from tests.participant.node import Courier, NodeNotFoundError, install, node_here
from tests.scenarios.shop import Journal, Shop
from tests.servers import skip_without


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, installed in a folder that may be run and not written to."""
    folder = tmp_path_factory.mktemp("node") / "node-participant"
    try:
        node_here()
        install(folder)
    except NodeNotFoundError as error:
        skip_without(error)
    return folder


@pytest.fixture(params=REAL)
def broker(request: pytest.FixtureRequest) -> str:
    """The URL of a broker; the test runs once on each."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def carrier(broker: str) -> Carrier:
    """What gives topics and groups a name of the test's own at the broker."""
    return Carrier(broker)


@pytest.fixture
def courier(example: Path, tmp_path: Path, broker: str, carrier: Carrier) -> Iterator[Courier]:
    courier = Courier(example, tmp_path, broker, carrier._prefix)
    yield courier
    courier.stop()
    print(courier.log)


@pytest_asyncio.fixture
async def orders(broker: str, carrier: Carrier, courier: Courier) -> AsyncIterator[Counterpart]:
    """A home that the courier works for: both know of each other."""
    async with Counterpart(broker, carrier._prefix) as orders:
        courier.start()
        await orders.introduce()
        yield orders


@pytest.fixture
def journal() -> Journal:
    """What sagas in Python did, in order."""
    return Journal()


@pytest_asyncio.fixture
async def shop(make_database: Callable[[], str], carrier: Carrier, journal: Journal) -> AsyncIterator[Shop]:
    """A service in Python, in a home of its own."""
    shop = Shop(carrier.carry(Scoop("shop", database=make_database(), home="shop")), journal, "mixed")
    yield shop
    await shop.app.close()
