"""Fixtures of the scenarios; what they are made of is in `tests.scenarios.shop`."""

from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from scoop_outbox import Scoop
from tests.scenarios.shop import COLOURS, Journal, Shop

MakeShop = Callable[..., Shop]


@pytest.fixture(params=COLOURS)
def colour(request: pytest.FixtureRequest) -> str:
    """The colour of a saga's callbacks: a test that asks for it runs once for each."""
    value: str = request.param
    return value


@pytest.fixture
def journal() -> Journal:
    """What sagas did, in order."""
    return Journal()


@pytest_asyncio.fixture
async def make_shop(database_url: str, journal: Journal) -> AsyncIterator[MakeShop]:
    """Makes services on one database; all write into the test's journal."""
    made: list[Shop] = []

    def make(colour: str = "mixed", service: str = "shop") -> Shop:
        made.append(Shop(Scoop(service, database=database_url), journal, colour))
        return made[-1]

    yield make
    for shop in made:
        # What was asked after running() opened a pool again.
        await shop.app.close()


@pytest.fixture
def shop(make_shop: MakeShop, colour: str) -> Shop:
    """A service, once in each colour."""
    return make_shop(colour)


@pytest.fixture
def mixed(make_shop: MakeShop) -> Shop:
    """A service whose callbacks are async and blocking in turn, for scenarios to which the colour hardly matters."""
    return make_shop("mixed")
