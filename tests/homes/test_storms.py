"""Networks fail and processes die between homes, and every hierarchy ends as if nothing had happened.

There are three services, one of which has two homes: they share its group or queue, and pass messages on. Each home has
a Postgres of its own, a worker and a relay, and links of its own to both servers. Over Kafka a broker tells its clients
where to connect: the one here has a listener for each home, whose advertised address is that home's link.
"""

from __future__ import annotations

import contextlib
import functools
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url

from scoop_outbox import Scoop
from scoop_outbox.devservers._server import free_ports
from scoop_outbox.devservers.kafka import start_kafka
from scoop_outbox.devservers.postgres import PostgresNotFoundError, start_postgres
from tests.carriers import RABBITMQ, REAL
from tests.crash.processes import START, Fleet
from tests.homes.accounts import assert_all_agree, assert_shared
from tests.homes.proxy import DOWN, UP, Link, Network, network
from tests.homes.sites import BEGUN, SITES, Site, create_topics_now, know_each_other, new_prefix, site
from tests.scenarios.conftest import MATRIX
from tests.servers import skip_without
from tests.waiting import until_blocking

ORDERS = 300 if MATRIX else 60
FAULTS = 60 if MATRIX else 12
# A member of a group that was killed keeps its partitions until it has been missed.
KAFKA_SETTINGS = "?topology.partitions=4&session.timeout.ms=2000&heartbeat.interval.ms=300"
HOST = "127.0.0.1"


@pytest.fixture
def wires() -> Iterator[Network]:
    """Links between homes and servers."""
    with network() as wires:
        yield wires


@pytest.fixture(params=REAL)
def links(
    request: pytest.FixtureRequest, wires: Network, tmp_path: Path
) -> Iterator[tuple[str, list[Link], list[str]]]:
    """The address of a broker, and for each home a link to it and the address of that."""
    if request.param == RABBITMQ:
        url = str(request.getfixturevalue("rabbitmq_url"))
        host, port = make_url(url).host, make_url(url).port
        assert host is not None
        found = [wires.link(host, port or 5672) for _ in SITES]
        urls = [make_url(url).set(port=one.port).render_as_string(hide_password=False) for one in found]
        yield url, found, urls
        return
    request.getfixturevalue("kafka_installed")
    names = [f"HOME{number}" for number in range(len(SITES))]
    client, internal, controller, *ports = free_ports(3 + len(names))
    found = [wires.link(HOST, port) for port in ports]
    own = {"CLIENT": client, "INTERNAL": internal, **dict(zip(names, ports, strict=True))}
    told = {**own, **{name: link.port for name, link in zip(names, found, strict=True)}}
    settings = {
        "listeners": ",".join(f"{name}://{HOST}:{port}" for name, port in {**own, "CONTROLLER": controller}.items()),
        "advertised.listeners": ",".join(f"{name}://{HOST}:{port}" for name, port in told.items()),
        "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in (*own, "CONTROLLER")),
        "controller.quorum.voters": f"1@{HOST}:{controller}",
    }
    with start_kafka(tmp_path / "kafka", settings=settings):
        urls = [f"kafka://{HOST}:{link.port}{KAFKA_SETTINGS}" for link in found]
        yield f"kafka://{HOST}:{client}{KAFKA_SETTINGS}", found, urls


@pytest.fixture
def sites(links: tuple[str, list[Link], list[str]], wires: Network, tmp_path: Path) -> Iterator[list[Site]]:
    """A home for each service, and a second one for one of them, with topics at the broker; nothing runs yet."""
    broker, to_broker, urls = links
    prefix = new_prefix()
    create_topics_now(broker, prefix)
    with contextlib.ExitStack() as stack:
        made: list[Site] = []
        for name, link, url in zip(SITES, to_broker, urls, strict=True):
            try:
                server = start_postgres(tmp_path / f"postgres-{name}")
            except PostgresNotFoundError as error:
                skip_without(error)
            stack.callback(server.stop)
            made.append(site(name, server, wires, link, url, prefix))
        yield made


@pytest.fixture
def fleet(sites: list[Site], tmp_path: Path) -> Iterator[Fleet]:
    """A worker and a relay in each home, which know of each other."""
    fleet = Fleet("", tmp_path)
    try:
        for one in sites:
            one.start(fleet, "worker")
            one.start(fleet, "relay")
        for one in sites:
            for process in one.processes.values():
                process.wait_until_ready()
        until_blocking(lambda: know_each_other(sites), START)
        yield fleet
    finally:
        fleet.stop()


Fault = Callable[[Site, random.Random, Fleet], None]


def cut_for_a_while(link: Callable[[Site], Link], *ways: str) -> Fault:
    """A link passes nothing on, and goes on, or its connections are broken."""

    def fault(one: Site, chance: random.Random, _: Fleet) -> None:
        link(one).cut(*ways)
        _last(chance.uniform(0.2, 3.0))
        if chance.random() < 0.5:
            link(one).reset()
        link(one).heal()

    return fault


def slow_down(link: Callable[[Site], Link]) -> Fault:
    def fault(one: Site, chance: random.Random, _: Fleet) -> None:
        link(one).slow(chance.uniform(0.01, 0.1))
        _last(chance.uniform(0.5, 2.0))
        link(one).heal()

    return fault


def reset(link: Callable[[Site], Link]) -> Fault:
    return lambda one, _, __: link(one).reset()


def kill(kind: str) -> Fault:
    def fault(one: Site, _: random.Random, fleet: Fleet) -> None:
        until_blocking(lambda: _is_ready(one, kind, fleet), 2 * START)
        one.processes[kind].kill()
        one.start(fleet, kind)

    return fault


def _is_ready(one: Site, kind: str, fleet: Fleet) -> bool:
    one.tend(fleet)
    return "process: ready" in one.processes[kind].log


def kill_postgres(one: Site, _: random.Random, __: Fleet) -> None:
    one.server.kill()
    one.server.start()


def to_broker(one: Site) -> Link:
    return one.broker


def to_postgres(one: Site) -> Link:
    return one.postgres


STORMS: dict[str, dict[str, Fault]] = {
    "the network fails": {
        f"{what} {name}": fault
        for name, link in (("its broker", to_broker), ("its Postgres", to_postgres))
        for what, fault in {
            "cuts a home from": cut_for_a_while(link, UP, DOWN),
            "loses what a home says to": cut_for_a_while(link, UP),
            "loses what a home hears from": cut_for_a_while(link, DOWN),
            "slows down": slow_down(link),
            "resets": reset(link),
        }.items()
    },
    "processes die": {"worker": kill("worker"), "relay": kill("relay"), "Postgres": kill_postgres},
}
STORMS["everything fails"] = {what: fault for storm in STORMS.values() for what, fault in storm.items()}


@pytest.mark.timeout(900 if MATRIX else 300)
@pytest.mark.parametrize("storm", STORMS if MATRIX else ["everything fails"])
def test_hierarchies_across_homes_outlast(storm: str, sites: list[Site], fleet: Fleet) -> None:
    seed = random.randrange(1_000_000)
    chance = random.Random(seed)
    faults = STORMS[storm]
    chosen = [*faults, *chance.choices(list(faults), k=max(0, FAULTS - len(faults)))]
    chance.shuffle(chosen)
    victims = [chance.choice(sites) for _ in chosen]
    print(f"seed {seed}", *(f"{what}: {one.name}" for what, one in zip(chosen, victims, strict=True)), sep="\n")
    orders = sites[0]
    launcher = Scoop("launcher", database=orders.server.url, broker=orders.environment["SCOOP_OUTBOX_BROKER"])
    topic = f"{orders.environment['SCOOP_TEST_PREFIX']}order.placed"
    launched = 0
    for number, (what, victim) in enumerate(zip(chosen, victims, strict=True), 1):
        steps = sum(one.count(BEGUN) for one in sites)
        while launched < ORDERS * number // len(chosen):
            launched += 1
            launcher.launch_sync(topic, {"n": launched}, key=str(launched % 16))
        # In the midst of work: otherwise nothing is interrupted.
        until_blocking(functools.partial(_have_done, sites, steps + 10, fleet), 90, 0.02)
        faults[what](victim, chance, fleet)
    launcher.close_sync()
    for one in sites:
        one.broker.heal()
        one.postgres.heal()
    began = time.monotonic()
    taken_in = "select count(*) from scoop_outbox.message where topic = %s"
    until_blocking(lambda: _have_done(sites, None, fleet) and orders.count(taken_in, topic) == ORDERS, 200, 0.2)
    print(f"quiet after {time.monotonic() - began:.1f} s")
    _stop_receiving(sites, fleet)
    assert_all_agree(sites, ORDERS)
    assert_shared(sites)
    assert all(link.connections > 0 for one in sites for link in (one.broker, one.postgres))


def _have_done(sites: list[Site], steps: int | None, fleet: Fleet) -> bool:
    """Tell whether so many steps have been done, or all that is left."""
    for one in sites:
        one.tend(fleet)
    if steps is not None and sum(one.count(BEGUN) for one in sites) >= steps:
        return True
    return all(one.is_quiet for one in sites)


def _stop_receiving(sites: list[Site], fleet: Fleet) -> None:
    """Let what comes twice come, and have it passed on: accounts are looked at when nothing moves any more."""
    for one in sites:
        until_blocking(functools.partial(_is_ready, one, "worker", fleet), 2 * START)
    workers = [one.processes.pop("worker") for one in sites]
    for worker in workers:
        worker.send(signal.SIGTERM)
    for worker in workers:
        assert worker.wait(START) == 0, f"{worker} was not to fail:\n{worker.log}"
    until_blocking(lambda: _have_done(sites, None, fleet), 60, 0.2)


def _last(seconds: float) -> None:
    """A fault lasts; what happens meanwhile is not looked at."""
    end = time.monotonic() + seconds
    until_blocking(lambda: time.monotonic() >= end, seconds + 5)
