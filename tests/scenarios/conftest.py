"""Fixtures of the scenarios; what they are made of is in `tests.scenarios.shop`."""

import os
import zlib
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from scoop_outbox import Scoop
from tests.carriers import BUILTIN, HOMES, RABBITMQ, REAL, Carrier, carrier_of
from tests.scenarios.scattered import Scattered, World
from tests.scenarios.shop import COLOURS, Journal, Shop

MakeShop = Callable[..., Shop]

MATRIX = os.environ.get("SCOOP_OUTBOX_MATRIX", "") not in {"", "0"}
"""Whether all scenarios run on every broker, in every colour: `make matrix`."""
EVERYWHERE = {"test_happy_path", "test_seed", "test_ordered"}
"""Modules whose scenarios run on every broker, as do those that are marked `everywhere`. Messages of the others take
the same way through a broker as one of these do; what they are about happens inside a database."""

ONE_HOME: dict[str, str] = {}
"""Modules whose scenarios do not run with a home for each saga, and why."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a scenario once in each colour on the built-in broker, and once on each real one."""
    named = [str(mark.args[0]) for mark in metafunc.definition.iter_markers("parametrize")]
    carried = "carrier" in metafunc.fixturenames and "carrier" not in named
    homes = _homes(metafunc) if carried else []
    everywhere = metafunc.module.__name__.rpartition(".")[2] in EVERYWHERE or any(
        metafunc.definition.iter_markers("everywhere")
    )
    real = REAL if carried and (everywhere or MATRIX) else ()
    chosen = any("colour" in one for one in named)
    if "colour" in metafunc.fixturenames and not chosen:
        if carried:
            # The broker does not know of colours: one mix of them is enough there.
            there = COLOURS if MATRIX else ["mixed"]
            pairs = [(BUILTIN, colour) for colour in COLOURS] + [(name, colour) for name in real for colour in there]
            pairs += [(name, "mixed") for name in homes]
            metafunc.parametrize("carrier, colour", pairs, indirect=True)
        else:
            metafunc.parametrize("colour", COLOURS, indirect=True)
    elif carried:
        metafunc.parametrize("carrier", [BUILTIN, *real, *homes], indirect=True)


def _homes(metafunc: pytest.Metafunc) -> list[str]:
    """The brokers over which a scenario runs with a home for each saga: all of them, or here and there one."""
    test = f"{metafunc.module.__name__.rpartition('.')[2]}.{metafunc.function.__name__}"
    if test.partition(".")[0] in ONE_HOME or any(metafunc.definition.iter_markers("one_home")):
        return []
    return [name for name in HOMES if MATRIX or zlib.crc32(f"{test} {name}".encode()) % 3 == 0]


@pytest.fixture
def colour(request: pytest.FixtureRequest) -> str:
    """The colour of a saga's callbacks: a test that asks for it runs once for each."""
    value: str = request.param
    return value


@pytest.fixture
def carrier(request: pytest.FixtureRequest) -> Carrier:
    """What carries the messages of the test's services."""
    # Competing consumers of one queue take messages in whatever order they come to be stored.
    ordered = request.param.startswith(RABBITMQ) and request.module.__name__.endswith("test_ordered")
    return carrier_of(request.param, request, {"queue.single-active-consumer": "true"} if ordered else {})


@pytest.fixture
def journal() -> Journal:
    """What sagas did, in order."""
    return Journal()


@pytest_asyncio.fixture
async def make_shop(
    database_url: str, make_database: Callable[[], str], carrier: Carrier, journal: Journal
) -> AsyncIterator[MakeShop]:
    """Makes services on one database, or scatters them over several; all write into the test's journal."""
    made: list[Shop] = []
    world = World(database_url, make_database, carrier)

    def make(colour: str = "mixed", service: str = "shop") -> Shop:
        app = Scattered(world, service) if carrier.scatters else carrier.carry(Scoop(service, database=database_url))
        made.append(Shop(app, journal, colour))
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
