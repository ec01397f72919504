"""ProcessHints between processes are a hint: they make things quick, and nothing needs them."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import psycopg
import pytest

from scoop_outbox import Answer, Message, Retry, RollbackRequested, Scoop, Scope
from scoop_outbox.app import service_of
from scoop_outbox.daemon import hints as signals_module
from scoop_outbox.daemon.hints import ProcessHints
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
async def processes(relaying: Scoop, *working: Scoop) -> AsyncIterator[None]:
    """Run a relay without workers and workers without a relay, as processes of their own would; all of them listen."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(relaying.running(worker=False))
        for app in working:
            await stack.enter_async_context(app.running(relay=False))
        await until(lambda: all(service_of(app).hints.listening for app in (relaying, *working)))
        yield


async def test_nt_a_worker_is_woken_by_another_process(database_url: str, never_polls: None) -> None:
    publishing, working = app_of(database_url), app_of(database_url)
    async with processes(publishing, working):
        for _ in range(3):
            await (await publishing.launch("R", 1)).wait(20)


async def test_nt_the_relay_is_woken_by_another_process(database_url: str, never_polls: None) -> None:
    publishing, working = app_of(database_url), app_of(database_url)
    async with processes(publishing, working):
        await (await working.launch("R", 1)).wait(20)
        await (await asyncio.to_thread(working.launch_sync, "R", 1)).wait(20)


@pytest.mark.parametrize("schema", ["with 'quotes' and \"double\" ones", "x" * 63])
@pytest.mark.parametrize("service", ['o\'clock "🛒" \\ %', "x" * 255])
async def test_d10_names_of_any_kind_are_signalled(
    database_url: str, never_polls: None, service: str, schema: str
) -> None:
    migrate(database_url, schema)
    publishing, working = app_of(database_url, service, schema), app_of(database_url, service, schema)
    async with processes(publishing, working):
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


async def test_promise_39_nt_17_everything_works_without_signals(database_url: str, never_signals: None) -> None:
    publishing, working = app_of(database_url), app_of(database_url)
    async with processes(publishing, working):
        await until(lambda: len(connections(database_url)) == 2)
        await until(broken(database_url))
        for _ in range(2):
            await (await publishing.launch("R", 1)).wait(20)
        await (await working.launch("R", 1)).wait(20)
        assert not connections(database_url)


async def test_broken_signals_come_back(database_url: str, never_polls: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrier_module, "RECONNECT", 0.05)
    publishing, working = app_of(database_url), app_of(database_url)
    async with processes(publishing, working):
        before = connections(database_url)
        ask(database_url, BREAK)
        await until(lambda: len(connections(database_url) - before) == 2)
        await (await publishing.launch("R", 1)).wait(20)


async def test_nt_01_all_sagas_of_a_topic_are_woken(database_url: str, never_polls: None) -> None:
    handled: list[str] = []

    def service(name: str, *sagas: str) -> Scoop:
        app = Scoop(name, database=database_url)
        for saga in sagas:
            app.saga(saga, on="R").add_step("only", lambda scope, _: handled.append(scope.saga))
        return app

    publishing, shop, billing = service("publisher"), service("shop", "order", "stock"), service("billing", "invoice")
    # What workers do now and then besides, every few seconds, would be too slow for all of them.
    async with processes(publishing, shop, billing), asyncio.timeout(20):
        for _ in range(8):
            await (await publishing.launch("R", 1)).wait(20)
    assert sorted(handled) == sorted(["order", "stock", "invoice"] * 8)


async def test_nt_02_a_signal_only_wakes(database_url: str, never_polls: None, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: dict[str, threading.Thread] = {}
    on_mail = ProcessHints.on_mail

    def notes_who_wakes(hints: ProcessHints, service: str, offer: Any, wake: Callable[[], object]) -> None:
        def woken() -> object:
            threads["wake"] = threading.current_thread()
            return wake()

        on_mail(hints, service, offer, woken)

    monkeypatch.setattr(ProcessHints, "on_mail", notes_who_wakes)
    publishing, working = Scoop("shop", database=database_url), Scoop("shop", database=database_url)

    async def on_the_loop(scope: Scope, message: Message) -> None:
        threads[scope.step] = threading.current_thread()

    def beside_it(scope: Scope, message: Message) -> None:
        threads[scope.step] = threading.current_thread()

    for app in (publishing, working):
        saga = app.saga("root", on="R")
        saga.add_step("async", on_the_loop)
        saga.add_step("def", beside_it)
    async with processes(publishing, working):
        await (await publishing.launch("R", 1)).wait(20)
        assert any(isinstance(thread, carrier_module.Carrier) for thread in threading.enumerate())
    assert threads["wake"] is threads["async"] is threading.current_thread()
    assert not isinstance(threads["def"], carrier_module.Carrier)


async def test_nt_17_a_request_to_roll_back_is_signalled_like_a_launch(database_url: str, never_polls: None) -> None:
    asking, working = app_of(database_url), app_of(database_url)
    async with working.running():
        await until(lambda: service_of(working).hints.listening)
        for _ in range(3):
            handle = await asking.launch("R", 1)
            await handle.wait(20)
            assert (await asking.rollback(handle.id, reason="on request")).answer is Answer.ACCEPTED
            with pytest.raises(RollbackRequested):
                await handle.wait(20)
    await asking.close()


async def test_nt_18_who_is_ready_gets_the_next_message(database_url: str, never_polls: None) -> None:
    program = app_of(database_url)
    for _ in range(5):
        working = app_of(database_url)
        async with working.running():  # whether it listens already is its own affair
            await (await program.launch("R", 1)).wait(20)
    await program.close()


async def test_nt_19_d12_a_parent_goes_on_when_a_child_of_another_service_has_ended(
    database_url: str, never_polls: None
) -> None:
    publishing, shop, stock = (Scoop(name, database=database_url) for name in ("publisher", "shop", "stock"))
    root = shop.saga("root", on="R")

    @root.step
    def launches(scope: Scope, message: Message) -> None:
        scope.launch("C", 1)

    root.add_step("goes on", lambda *_: None)
    stock.saga("child", on="C").add_step("only", lambda *_: None)
    async with processes(publishing, shop, stock):
        for _ in range(3):
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
