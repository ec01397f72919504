"""Fixtures: a database of its own for every test, on a real Postgres, and brokers that all tests share."""

import os
import secrets
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from psycopg import sql
from sqlalchemy import make_url

from scoop_outbox.devservers._errors import ServerNotFoundError
from scoop_outbox.devservers.kafka import KAFKA_URL, kafka_here
from scoop_outbox.devservers.postgres import DATABASE_URL, PostgresNotFoundError, postgres_for_tests
from scoop_outbox.devservers.rabbitmq import RABBITMQ_URL, rabbitmq_here
from scoop_outbox.testing import servers_required
from tests.servers import SharedServers, ask, skip_without

# It says which tests of the contract of an adapter are not run, and why.
pytest_plugins = ["scoop_outbox.testing.contract.plugin"]

# How long an example takes depends on what else the machine does, and says nothing about the code.
settings.register_profile("scoop_outbox", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("scoop_outbox")

_SERVERS: Final = {
    "postgres": {"postgres_url"},
    "kafka": {"kafka_url", "kafka_installed"},
    "rabbitmq": {"rabbitmq_url", "rabbitmq_installed"},
}
"""Who needs each server: the fixtures."""

_shared: Final = pytest.StashKey[SharedServers]()
_address: Final = pytest.StashKey[tuple[str, str]]()
_held: Final = pytest.StashKey[ExitStack]()


def pytest_configure(config: pytest.Config) -> None:
    """Make ready to run brokers, in the one process that starts the others, or in the only one there is."""
    if not hasattr(config, "workerinput"):
        shared = config.stash[_shared] = SharedServers()
        held = config.stash[_held] = ExitStack()
        held.callback(shared.stop)
        if config.getoption("numprocesses", None):
            config.stash[_address] = held.enter_context(shared.listening())


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the brokers."""
    if _held in config.stash:
        config.stash[_held].close()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: object) -> None:
    """Tell a worker process where to ask for a broker."""
    node.workerinput["servers"] = node.config.stash[_address]  # type: ignore[attr-defined]


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Mark what needs a broker, so that the rest can be run alone, and often."""
    for item in items:
        if {"kafka", "rabbitmq"} & set(_servers_of(item)):
            item.add_marker("broker")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note in a report which servers its test is about, for the summary; where nothing may be skipped, it fails."""
    report = yield
    report.servers = _servers_of(item)  # type: ignore[attr-defined]
    if report.skipped and servers_required():
        report.outcome, report.longrepr = "failed", f"skipped, where nothing may be: {_reason(report)}"
    return report


def _servers_of(item: pytest.Function) -> list[str]:
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return [
        name
        for name, fixtures in _SERVERS.items()
        if fixtures & set(item.fixturenames)
        or any(value in (name, f"{name}-homes") for value in parameters if isinstance(value, str))
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Close with a line for each server: how many tests ran on it, or why none did."""
    reports = [
        report for reports in terminalreporter.stats.values() for report in reports if hasattr(report, "servers")
    ]
    terminalreporter.section("servers")
    for name in _SERVERS:
        about = [report for report in reports if name in report.servers]
        ran = sum(report.when == "call" and report.outcome != "skipped" for report in about)
        reasons = Counter(_reason(report) for report in about if report.outcome == "skipped")
        if ran:
            skipped = "".join(f"; skipped {count}: {why}" for why, count in reasons.most_common())
            terminalreporter.line(f"{name}: ran {ran} tests{skipped}")
        elif about:
            why = reasons.most_common(1)[0][0] if reasons else "see the errors above"
            terminalreporter.line(f"{name}: did not run: {why}")
        else:
            terminalreporter.line(f"{name}: did not run: no test of it was chosen")


def _reason(report: pytest.TestReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
    return text.removeprefix("Skipped: ")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a role that may create databases; every worker process of pytest starts its own server."""
    with ExitStack() as stack:
        try:
            url = stack.enter_context(postgres_for_tests())
        except PostgresNotFoundError as error:
            skip_without(error, given=bool(os.environ.get(DATABASE_URL)))
        yield url


@pytest.fixture(scope="session")
def kafka_url(pytestconfig: pytest.Config) -> str:
    """The URL of a Kafka of one node that all tests share: a topic's name is to be random."""
    return _url_of_shared_server(pytestconfig, "kafka", KAFKA_URL)


@pytest.fixture(scope="session")
def rabbitmq_url(pytestconfig: pytest.Config) -> str:
    """The URL of a RabbitMQ that all tests share, as administrator: a queue's name is to be random."""
    return _url_of_shared_server(pytestconfig, "rabbitmq", RABBITMQ_URL)


@pytest.fixture(scope="session")
def kafka_installed() -> None:
    """Kafka can be started here; for tests that start, freeze and kill a cluster of their own."""
    _skip_unless(kafka_here)


@pytest.fixture(scope="session")
def rabbitmq_installed() -> None:
    """RabbitMQ can be started here; for tests that start, freeze and kill a server of their own."""
    _skip_unless(rabbitmq_here)


def _url_of_shared_server(config: pytest.Config, name: str, variable: str) -> str:
    try:
        if _shared in config.stash:
            return config.stash[_shared].url(name)
        address, key = config.workerinput["servers"]  # type: ignore[attr-defined]
        return ask(address, key, name)
    except ServerNotFoundError as error:
        skip_without(error, given=bool(os.environ.get(variable)))


def _skip_unless(here: Callable[[], None]) -> None:
    try:
        here()
    except ServerNotFoundError as error:
        skip_without(error)


@pytest.fixture(scope="session")
def template_database(postgres_url: str) -> Iterator[str]:
    """The name of a database that holds the current schema and nothing else; copy it, never connect to it."""
    # Not at the top: tests that need no database must not need the store either.
    from scoop_outbox.store.migrate import migrate  # noqa: PLC0415

    with _new_database(postgres_url, template="template0") as name:
        migrate(_url_of_database(postgres_url, name))
        yield name


@pytest.fixture
def database_url(postgres_url: str, template_database: str) -> Iterator[str]:
    """The URL of a fresh, migrated database; it is dropped after the test, whoever is still connected."""
    with _new_database(postgres_url, template=template_database) as name:
        yield _url_of_database(postgres_url, name)


@pytest.fixture
def make_database(postgres_url: str, template_database: str) -> Iterator[Callable[[], str]]:
    """Makes fresh, migrated databases, each a home of its own, and returns their URLs."""
    with ExitStack() as made:

        def make() -> str:
            name = made.enter_context(_new_database(postgres_url, template=template_database))
            url = _url_of_database(postgres_url, name)
            with psycopg.connect(url) as connection:
                # The copy of a database is the same home, which must not be there twice.
                connection.execute("update scoop_outbox.home set id = gen_random_uuid()")
            return url

        yield make


@contextmanager
def _new_database(admin_url: str, *, template: str) -> Iterator[str]:
    # Test runs may share a server, so the name is random.
    name = f"scoop_outbox_test_{secrets.token_hex(8)}"
    database = sql.Identifier(name)
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(database, sql.Identifier(template))
    with psycopg.connect(admin_url, autocommit=True) as connection:
        # On a server that need not be durable it is quicker to copy the files than to log what is in them.
        files = connection.info.server_version >= 150000
        connection.execute(create + sql.SQL(" STRATEGY file_copy") if files else create)
    try:
        yield name
    finally:
        with psycopg.connect(admin_url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(database))


def _url_of_database(admin_url: str, name: str) -> str:
    return make_url(admin_url).set(database=name).render_as_string(hide_password=False)
