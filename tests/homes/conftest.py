"""Fixtures of cooperation across homes: a database for each service, over each real broker."""

from collections.abc import AsyncIterator, Callable, Generator
from typing import Any

import pytest
import pytest_asyncio

from scoop_outbox import Scoop
from scoop_outbox.app import service_of
from tests.carriers import REAL, Carrier, carrier_of
from tests.crash.processes import with_tails
from tests.homes.ear import Ear, Peer
from tests.scenarios.shop import Journal, Shop

MakeHome = Callable[..., Shop]


@pytest.fixture(params=REAL)
def carrier(request: pytest.FixtureRequest) -> Carrier:
    """What carries the messages of the test's services, and what their homes say to each other."""
    return carrier_of(request.param, request, {})


@pytest.fixture
def journal() -> Journal:
    """What sagas did, in order, in whatever home."""
    return Journal()


@pytest_asyncio.fixture
async def make_home(make_database: Callable[[], str], carrier: Carrier, journal: Journal) -> AsyncIterator[MakeHome]:
    """Makes services, each in a home of its own, called as the service or otherwise, or in that of another one."""
    made: list[Shop] = []

    def make(service: str, *, beside: Shop | None = None, **options: Any) -> Shop:
        if beside is None:
            app = Scoop(service, database=make_database(), **{"home": service} | options)
        else:
            app = Scoop(service, database=service_of(beside.app).home.url, **{"home": beside.app.service} | options)
        made.append(Shop(carrier.carry(app), journal, "mixed"))
        return made[-1]

    yield make
    for shop in made:
        await shop.app.close()


@pytest_asyncio.fixture
async def ear(database_url: str) -> AsyncIterator[Ear]:
    """A home that hears."""
    ear = Ear(database_url)
    yield ear
    await ear.close()


@pytest.fixture
def there() -> Peer:
    """The home at the other end."""
    return Peer()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the logs of the processes of a test that fails."""
    return with_tails(item, (yield))
