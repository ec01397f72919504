"""Fixtures of the scenarios; what they are made of is in `tests.scenarios.shop`."""

import os
import zlib
from collections.abc import AsyncIterator, Callable, Sequence

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

ONE_HOME = {
    "test_a_world_of_its_own": "it is about what surrounds a step in one process",
    "test_dedup_keys": "keys are remembered by one database",
    "test_delivery": "it is about one service",
    "test_joining": "it is about transactions in one database",
    "test_launching": "it is about one service",
    "test_machinery_failures": "it is about connections to one database",
    "test_names": "it is about names that brokers refuse",
    "test_order_and_clocks": "it is about the clock of one database",
    "test_repeated_launches": "ids are remembered by one database",
    "test_retention": "not yet: what has ended is pruned by each home for itself",
    "test_retention_background": "not yet: what has ended is pruned by each home for itself",
    "test_retention_keeps": "not yet: what has ended is pruned by each home for itself",
    "test_seen": "it looks at what one database stores",
    "test_skip_of_parked": "it is about one service",
    "test_slow_steps": "it is about one process",
    "test_strategies": "not yet: children in other homes are not left behind",
    "test_stuck": "what is stuck is listed by one database",
    "test_stuck_alerts": "it is about one process",
    "test_stuck_otherwise": "it is about one process",
    "test_topology": "it is about what one service needs",
    "test_transactions": "it is about transactions in one database",
}
"""Modules whose scenarios do not run with a home for each saga, and why; single ones are marked `one_home`."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a scenario once in each colour on the built-in broker, and once on each real one."""
    named = [str(mark.args[0]) for mark in metafunc.definition.iter_markers("parametrize")]
    carried = "carrier" in metafunc.fixturenames and "carrier" not in named
    homes = _homes(metafunc) if carried else ()
    everywhere = metafunc.module.__name__.rpartition(".")[2] in EVERYWHERE or any(
        metafunc.definition.iter_markers("everywhere")
    )
    real = REAL if carried and (everywhere or MATRIX) and not any(metafunc.definition.iter_markers("builtin")) else ()
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


def _homes(metafunc: pytest.Metafunc) -> Sequence[str]:
    """The brokers over which a scenario runs with a home for each saga."""
    module = metafunc.module.__name__.rpartition(".")[2]
    kept = any(mark.name in ("one_home", "builtin") for mark in metafunc.definition.iter_markers())
    return () if module in ONE_HOME or kept else HOMES


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a third of the scenarios with a home for each saga, each over one of the brokers, unless all are to run."""
    if MATRIX:
        return
    scattered: dict[tuple[str, str], list[pytest.Item]] = {}
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if isinstance(item, pytest.Function) and parameters.get("carrier") in HOMES:
            scattered.setdefault((item.module.__name__, item.originalname), []).append(item)
    dropped: set[pytest.Item] = set()
    for (module, name), alike in scattered.items():
        # It depends on nothing but the name: all processes of a test run choose the same ones.
        number = zlib.crc32(f"{module}.{name}".encode())
        kept = alike[number // 3 % len(alike)] if number % 3 == 0 else None
        dropped.update(item for item in alike if item is not kept)
    items[:] = [item for item in items if item not in dropped]


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
