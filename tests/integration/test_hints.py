"""ProcessHints between processes are a hint: they make things quick, and nothing needs them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import psycopg
import pytest

from scoop_outbox import Message, Retry, Scoop, Scope
from scoop_outbox.app import service_of
from scoop_outbox.daemon import hints as signals_module
from scoop_outbox.daemon.polling import AdaptivePolling
from scoop_outbox.daemon.relay import relay as relay_module
from scoop_outbox.daemon.worker import feeder as feeder_module
from scoop_outbox.store import carrier as carrier_module
from scoop_outbox.store.migrate import migrate
from tests.waiting import until

HOURS = 3600.0


@pytest.fixture
def never_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relays and workers look once, and then only when they are told to."""

    def polling(*args: Any, **kwargs: Any) -> AdaptivePolling:
        return AdaptivePolling(HOURS, HOURS)

    monkeypatch.setattr(relay_module, "AdaptivePolling", polling)
    monkeypatch.setattr(feeder_module, "AdaptivePolling", polling)


@pytest.fixture
def never_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection for hints that is lost is not replaced."""
    monkeypatch.setattr(carrier_module, "RECONNECT", HOURS)


def app_of(url: str, service: str = "shop", schema: str = "scoop_outbox") -> Scoop:
    app = Scoop(service, database=url, schema=schema)
    root = app.saga("root", on="R")

    @root.step
    async def launches(scope: Scope, message: Message) -> None:
        scope.launch("C", 1)
        scope.launch("C", 2)

    @root.step
    def goes_on(scope: Scope, message: Message) -> None: ...

    child = app.saga("child", on="C")

    @child.step
    async def handles(scope: Scope, message: Message) -> None: ...

    return app


def ask(url: str, question: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(question.encode()).fetchall()


CONNECTIONS = (
    "select pid from pg_stat_activity where datname = current_database() and application_name like '%:notifier'"
)
BREAK = (
    "select pg_terminate_backend(pid) from pg_stat_activity "
    "where datname = current_database() and application_name like '%:notifier'"
)


def connections(url: str) -> set[int]:
    """Return the connections for hints of all processes."""
    return {pid for (pid,) in ask(url, CONNECTIONS)}


@asynccontextmanager
async def two_processes(one: Scoop, other: Scoop, url: str) -> AsyncIterator[None]:
    """Run a relay without workers and workers without a relay, as two processes would."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(one.running(worker=False))
        await stack.enter_async_context(other.running(relay=False))
        await until(lambda: service_of(one).hints.listening and service_of(other).hints.listening)
        yield


async def test_nt_a_worker_is_woken_by_another_process(database_url: str, never_polls: None) -> None:
    publishing, working = app_of(database_url), app_of(database_url)
    async with two_processes(publishing, working, database_url):
        for _ in range(3):
            await (await publishing.launch("R", 1)).wait(20)


async def test_nt_the_relay_is_woken_by_another_process(database_url: str, never_polls: None) -> None:
    publishing, working = app_of(database_url), app_of(database_url)
    async with two_processes(publishing, working, database_url):
        await (await working.launch("R", 1)).wait(20)
        await (await asyncio.to_thread(working.launch_sync, "R", 1)).wait(20)


@pytest.mark.parametrize("schema", ["with 'quotes' and \"double\" ones", "x" * 63])
@pytest.mark.parametrize("service", ['o\'clock "🛒" \\ %', "x" * 255])
async def test_d10_names_of_any_kind_are_signalled(
    database_url: str, never_polls: None, service: str, schema: str
) -> None:
    migrate(database_url, schema)
    publishing, working = app_of(database_url, service, schema), app_of(database_url, service, schema)
    async with two_processes(publishing, working, database_url):
        await (await publishing.launch("R", 1)).wait(20)


def test_two_schemas_do_not_wake_each_other(database_url: str) -> None:
    here, there = service_of(app_of(database_url)).hints, service_of(app_of(database_url, schema="x" * 63)).hints
    channels = [hints.channel(signals_module.mail_channel("x" * 255)) for hints in (here, there)]
    assert len(set(channels)) == 2
    assert all(len(channel) < 64 for channel in channels)


def broken(url: str) -> Callable[[], bool]:
    def check() -> bool:
        ask(url, BREAK)
        return not connections(url)

    return check


async def test_promise_39_everything_works_without_signals(database_url: str, never_signals: None) -> None:
    publishing, working = app_of(database_url), app_of(database_url)
    async with two_processes(publishing, working, database_url):
        await until(lambda: len(connections(database_url)) == 2)
        await until(broken(database_url))
        for _ in range(2):
            await (await publishing.launch("R", 1)).wait(20)
        await (await working.launch("R", 1)).wait(20)
        assert not connections(database_url)


async def test_broken_signals_come_back(database_url: str, never_polls: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrier_module, "RECONNECT", 0.05)
    publishing, working = app_of(database_url), app_of(database_url)
    async with two_processes(publishing, working, database_url):
        before = connections(database_url)
        ask(database_url, BREAK)
        await until(lambda: len(connections(database_url) - before) == 2)
        await (await publishing.launch("R", 1)).wait(20)


async def test_news_that_came_before_anybody_listened_is_found(database_url: str, never_polls: None) -> None:
    app = app_of(database_url)
    handle = await app.launch("R", 1)
    async with app.running():
        await handle.wait(20)


async def test_a_wake_up_in_the_future_needs_no_signal(database_url: str, never_polls: None) -> None:
    app = Scoop("shop", database=database_url)
    saga = app.saga("root", on="R")
    attempts: list[int] = []

    @saga.step(retry=Retry(attempts=3, backoff=0.05))
    async def fails_twice(scope: Scope, message: Message) -> None:
        attempts.append(scope.attempt)
        if scope.attempt < 2:
            raise ValueError("not yet")

    async with app.running():
        await (await app.launch("R", 1)).wait(20)
    assert attempts == [0, 1, 2]
