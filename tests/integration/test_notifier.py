"""A program that only launches or waits tells the relay, and hears of the end, on one connection that it opens late."""

import asyncio
import gc
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from scoop_outbox import Draft, Handle, Message, Scoop, Scope
from scoop_outbox.app import service_of
from scoop_outbox.client import waiters
from scoop_outbox.daemon import hints as signals_module
from scoop_outbox.daemon.hints import ProcessHints
from scoop_outbox.daemon.polling import AdaptivePolling
from scoop_outbox.daemon.relay import relay as relay_module
from scoop_outbox.daemon.worker import feeder as feeder_module
from scoop_outbox.store import carrier as carrier_module
from scoop_outbox.store.carrier import LONGEST
from scoop_outbox.store.notifier import MOST, Notifier
from scoop_outbox.store.url import parse_url
from tests.waiting import until, until_blocking

HOURS = 3600.0
LONG = 20.0


@pytest.fixture
def never_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relays, workers and those who wait look once, and then only when they are told to."""

    def polling(*args: Any, **kwargs: Any) -> AdaptivePolling:
        return AdaptivePolling(HOURS, HOURS)

    for module in (relay_module, feeder_module, waiters):
        monkeypatch.setattr(module, "AdaptivePolling", polling)
    for name in ("_SHORTEST_LOOK", "_LONGEST_LOOK", "_LONGEST_IF_TOLD"):
        monkeypatch.setattr(waiters, name, HOURS)


def app_of(url: str) -> Scoop:
    app = Scoop("shop", database=url)

    @app.saga("orders", on="orders").step
    async def takes(scope: Scope, message: Message) -> None:
        scope.set_result("taken")

    return app


@pytest.fixture
async def program(database_url: str) -> AsyncIterator[Scoop]:
    """Yield the application of a program that runs nothing, beside a worker with a relay."""
    working, program = app_of(database_url), app_of(database_url)
    async with working.running():
        await until(lambda: service_of(working).hints.listening)
        yield program
        await program.close()


def connections(url: str) -> int:
    """Return how many connections for hints there are."""
    with psycopg.connect(url) as connection:
        question = (
            "select count(*) from pg_stat_activity where datname = current_database() and application_name like %s"
        )
        row = connection.execute(question, ("%:notifier",)).fetchone()
    assert row is not None
    return int(row[0])


Launch = Callable[[Scoop, str], Any]


async def alone(app: Scoop, url: str) -> Handle:
    return await app.launch("orders", 1)


async def blocking(app: Scoop, url: str) -> Handle:
    return await asyncio.to_thread(app.launch_sync, "orders", 1)


async def joining(app: Scoop, url: str) -> Handle:
    engine = create_async_engine(parse_url(url))
    async with AsyncSession(engine) as session, session.begin():
        handle = await app.launch("orders", 1, session=session)
    await engine.dispose()
    return handle


async def joining_blocking(app: Scoop, url: str) -> Handle:
    def launch() -> Handle:
        engine = sa.create_engine(parse_url(url))
        with sa.orm.Session(engine) as session, session.begin():
            handle = app.launch_sync("orders", 1, session=session)
        engine.dispose()
        return handle

    return await asyncio.to_thread(launch)


@pytest.mark.parametrize("launch", [alone, blocking, joining, joining_blocking])
async def test_nt_the_relay_hears_a_program_that_only_launches(
    database_url: str, never_polls: None, program: Scoop, launch: Launch
) -> None:
    for _ in range(3):
        assert await (await launch(program, database_url)).wait(LONG) == "taken"


async def test_nt_who_waits_hears_of_the_end_in_another_process(never_polls: None, program: Scoop) -> None:
    for _ in range(3):
        handle = await program.launch("orders", 1)
        assert await asyncio.to_thread(handle.wait_sync, LONG) == "taken"
    handles = await program.launch_many([Draft("orders", number) for number in range(50)])
    assert await asyncio.gather(*(handle.wait(LONG) for handle in handles)) == ["taken"] * 50


async def test_nt_who_waits_for_a_message_that_nobody_handles_hears_of_it(never_polls: None, program: Scoop) -> None:
    assert await (await program.launch("nobody", 1)).wait(LONG) is None


async def test_nt_who_waits_in_two_processes_hears_twice(database_url: str, never_polls: None, program: Scoop) -> None:
    other = app_of(database_url)
    handle = await program.launch("orders", 1)
    answers = await asyncio.gather(handle.wait(LONG), other.handle(handle.id).wait(LONG))
    assert list(answers) == ["taken", "taken"]
    await other.close()


async def test_nobody_tells_of_ends_while_nobody_waits(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals_module, "SAID", 0.0)
    told: list[tuple[str, str]] = []
    notify = Notifier.notify

    def noted(hints: Notifier, channel: str, payload: str = "") -> None:
        told.append((channel, payload))
        notify(hints, channel, payload)

    monkeypatch.setattr(Notifier, "notify", noted)
    working, program = app_of(database_url), app_of(database_url)
    async with working.running():
        await until(lambda: service_of(working).hints.listening)
        for number in range(5):
            await program.launch("orders", number)
        await until(lambda: runs(database_url) == 5)
        assert {channel for channel, _ in told} == {"outbox"}
        handle = await program.launch("orders", 5)
        assert await handle.wait(LONG) == "taken"
        assert ("waiting", "") in told
        await until(lambda: service_of(working).hints._told_until > 0.0)
        handle = await program.launch("orders", 6)
        assert await handle.wait(LONG) == "taken"
        assert ("ended", handle.id.hex) in told
    await program.close()


async def test_nt_who_begins_to_wait_is_told_though_nobody_was_told_before(never_polls: None, program: Scoop) -> None:
    for working in [hints for hints in _hints() if hints._loop is not None]:
        working._told_until = 0.0
    assert await (await program.launch("orders", 1)).wait(LONG) == "taken"


def test_who_is_heard_to_wait_anew_is_had_look_once(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(Notifier, "notify", lambda _, channel, payload="": told.append(channel))
    hints = ProcessHints(service_of(app_of(database_url)).home)
    hints._heard("waiting", [""])
    assert told == ["ended"]  # what was handled a moment ago was told to nobody
    hints._heard("waiting", [""])
    assert told == ["ended"]


def _hints() -> list[ProcessHints]:
    return [one for one in gc.get_objects() if isinstance(one, ProcessHints)]


async def test_one_connection_is_opened_at_the_first_launch_and_closed_with_the_application(database_url: str) -> None:
    app = app_of(database_url)
    assert await asyncio.to_thread(connections, database_url) == 0
    for _ in range(3):
        await app.launch("orders", 1)
        await asyncio.to_thread(app.launch_sync, "orders", 1)
    await until(lambda: connections(database_url) == 1)
    await app.close()
    await until(lambda: connections(database_url) == 0)
    await app.launch("orders", 1)
    await until(lambda: connections(database_url) == 1)
    app.close_sync()
    await until(lambda: connections(database_url) == 0)


async def test_a_connection_that_nobody_needs_is_closed_after_a_while(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrier_module, "IDLE", 0.05)
    app = app_of(database_url)
    handle = await app.launch("orders", 1)
    await until(lambda: service_of(app).hints._notifier._carrier is None)
    await until(lambda: connections(database_url) == 0)
    waiting = asyncio.create_task(handle.wait())
    await until(lambda: service_of(app).hints.hears_of_ends)
    carrier = service_of(app).hints._notifier._carrier
    async with app_of(database_url).running():
        assert await waiting == "taken"
    assert service_of(app).hints._notifier._carrier in (carrier, None)  # it was kept while somebody waited
    await until(lambda: connections(database_url) == 0)
    await app.close()


def test_an_application_that_is_dropped_leaves_neither_connection_nor_thread(database_url: str) -> None:
    app = app_of(database_url)
    app.launch_sync("orders", 1)
    carrier = service_of(app).hints._notifier._carrier
    assert carrier is not None
    service_of(app).home.dispose_blocking()
    del app
    gc.collect()
    until_blocking(lambda: not carrier.is_alive())
    until_blocking(lambda: connections(database_url) == 0)


def test_payloads_are_told_together_as_long_as_they_fit() -> None:
    payloads = [f"{number:032x}" for number in range(1_000)]
    joined = list(carrier_module._joined(payloads))
    assert ",".join(joined).split(",") == payloads
    assert all(len(one) <= LONGEST for one in joined)
    assert len(joined) == 5
    assert list(carrier_module._joined([""])) == [""]


def test_of_too_many_payloads_it_is_told_that_there_were_some(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hints = ProcessHints(service_of(app_of(database_url)).home)
    monkeypatch.setattr(Notifier, "_wake", lambda _: None)
    for number in range(MOST + 1):
        hints._notifier.notify("ended", f"{number:032x}")
    assert hints._notifier.take() == {"ended": {"": None}}


def test_a_failure_that_nobody_thought_of_is_said_and_does_not_end_the_thread(
    database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(carrier_module, "RECONNECT", 0.01)
    app = app_of(database_url)
    connect = service_of(app).home.connect_bare
    tries = threading.Event()

    def fails(application: str) -> Any:
        if tries.is_set():
            return connect(application)
        raise RuntimeError("out of luck")

    monkeypatch.setattr(service_of(app).home, "connect_bare", fails)
    app.launch_sync("orders", 1)
    until_blocking(lambda: "RuntimeError" in caplog.text)
    tries.set()
    until_blocking(lambda: connections(database_url) == 1)
    app.close_sync()
    assert caplog.text.count("notifier: not connected") == 1


# What a hostile reader found --------------------------------------------------------------------------------------


async def test_closing_elsewhere_leaves_those_who_need_to_hear_alone(database_url: str, never_polls: None) -> None:
    app, other = app_of(database_url), app_of(database_url)
    async with app.running():
        await until(lambda: service_of(app).hints.listening)
        await asyncio.to_thread(lambda: asyncio.run(app.close()))
        await asyncio.to_thread(app.close_sync)
        assert service_of(app).hints.listening
        for _ in range(3):
            assert await (await other.launch("orders", 1)).wait(LONG) == "taken"
    await other.close()


def test_a_hint_that_cannot_be_carried_fails_no_launch(
    database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    app = app_of(database_url)
    with monkeypatch.context() as patched:
        patched.setattr(carrier_module.Carrier, "start", fails)
        for number in range(3):
            app.launch_sync("orders", number)
        app.close_sync()
    assert caplog.text.count("can't start new thread") == 1
    assert service_of(app).hints._notifier._carrier is None
    app.launch_sync("orders", 4)
    until_blocking(lambda: service_of(app).hints._notifier._pending == {})
    app.close_sync()


def test_a_thread_that_has_ended_by_a_surprise_is_replaced(
    database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(carrier_module, "RECONNECT", 0.01)
    serve = carrier_module.Carrier._serve
    surprises = iter([ZeroDivisionError()])

    def serves(carrier: carrier_module.Carrier) -> None:
        for surprise in surprises:
            raise surprise
        serve(carrier)

    monkeypatch.setattr(carrier_module.Carrier, "_serve", serves)
    app = app_of(database_url)
    app.launch_sync("orders", 1)
    until_blocking(lambda: service_of(app).hints._notifier._pending == {} and connections(database_url) == 1)
    assert "ZeroDivisionError" in caplog.text
    app.close_sync()


def test_what_is_told_while_the_last_was_just_sent_does_not_wait_for_the_next(database_url: str) -> None:
    app = app_of(database_url)
    hints = service_of(app).hints._notifier
    for number in range(300):
        hints.notify("ended", f"{number:032x}")
        until_blocking(lambda: hints._pending == {}, interval=0.0007)
    app.close_sync()


def test_who_waited_in_a_loop_that_is_closed_harms_nobody(database_url: str) -> None:
    app = app_of(database_url)
    message_id = asyncio.run(launched(app))

    async def lookout() -> waiters._Lookout:
        return waiters._Lookout(service_of(app).home, service_of(app).hints)

    async def run() -> Any:
        async with app.running():
            return await app.handle(message_id).wait(LONG)

    loop = asyncio.new_event_loop()
    left = loop.run_until_complete(lookout())
    loop.close()
    with service_of(app).hints.awaiting(message_id, left.wake):
        assert asyncio.run(run()) == "taken"
    assert not service_of(app).servers.outcomes._lookouts


async def launched(app: Scoop) -> Any:
    return (await app.launch("orders", 1)).id


def test_the_last_reference_may_be_dropped_by_the_thread_itself(database_url: str) -> None:
    app = app_of(database_url)
    app.launch_sync("orders", 1)
    hints = service_of(app).hints._notifier
    carrier = hints._carrier
    assert carrier is not None
    with hints._lock:
        hints.close_blocking()  # what a collection does that begins while somebody holds the lock
    until_blocking(lambda: not carrier.is_alive())
    app.close_sync()


def test_an_application_is_dropped_without_waiting_for_its_server(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_of(database_url)
    entered, go_on = threading.Event(), threading.Event()

    def hangs(application: str) -> Any:
        entered.set()
        go_on.wait(LONG)
        raise psycopg.OperationalError("gone")

    monkeypatch.setattr(service_of(app).home, "connect_bare", hangs)
    app.launch_sync("orders", 1)
    assert entered.wait(LONG)
    service_of(app).home.dispose_blocking()
    joined: list[object] = []
    monkeypatch.setattr(carrier_module.Carrier, "join", lambda *_: joined.append(1))
    del app
    gc.collect()
    assert joined == []
    go_on.set()


async def test_closing_does_not_wait_for_the_threads_of_the_loop(database_url: str) -> None:
    app = app_of(database_url)
    await app.launch("orders", 1)
    await until(lambda: connections(database_url) == 1)
    go_on = threading.Event()
    jobs = [asyncio.create_task(asyncio.to_thread(go_on.wait, LONG)) for _ in range(60)]
    await asyncio.wait_for(app.close(), LONG / 2)
    assert not any(job.done() for job in jobs)
    go_on.set()
    await asyncio.gather(*jobs)


def test_too_many_stay_too_many_until_they_are_told(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hints = ProcessHints(service_of(app_of(database_url)).home)._notifier
    monkeypatch.setattr(Notifier, "_wake", lambda _: None)
    for number in range(MOST + 10):
        hints.notify("ended", f"{number:032x}")
    pending = hints.take()
    assert pending == {"ended": {"": None}}
    hints.notify("ended", "a")
    hints.give_back(pending, hints._carrier)  # type: ignore[arg-type]
    assert hints.take() == {"ended": {"": None}}


async def test_what_somebody_else_notifies_is_no_harm(database_url: str, program: Scoop, never_polls: None) -> None:
    handle = await program.launch("orders", 1)
    await handle.wait(LONG)
    carrier = service_of(program).hints._notifier._carrier
    with psycopg.connect(database_url, autocommit=True) as other:
        for payload in ("hello", "", ",,", "é" * 100):
            other.execute("select pg_notify(%s, %s)", (service_of(program).hints.channel("ended"), payload))
    assert await (await program.launch("orders", 1)).wait(LONG) == "taken"
    assert service_of(program).hints._notifier._carrier is carrier


async def test_limits_of_the_role_do_not_end_it(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as other:
        name = sql.Identifier(other.info.dbname)
        for limit in ("statement_timeout", "lock_timeout", "idle_session_timeout"):
            other.execute(sql.SQL("alter database {} set {} = '1s'").format(name, sql.Identifier(limit)))
        app = app_of(database_url)
        waiting = asyncio.create_task((await app.launch("orders", 1)).wait())
        await until(lambda: service_of(app).hints.hears_of_ends)

        def idle_for_longer_than_the_limit() -> bool:
            other.execute("select 1")  # this one's limit is as short
            row = other.execute(
                "select now() - state_change > '1.5 s' from pg_stat_activity "
                "where datname = current_database() and application_name like '%:notifier'"
            ).fetchone()
            return row is not None and row[0]

        await until(idle_for_longer_than_the_limit)
        assert service_of(app).hints.hears_of_ends
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await app.close()


def test_a_program_that_ends_tells_what_it_has_launched_last(database_url: str, never_polls: None) -> None:
    program = "import sys; from scoop_outbox import Scoop; Scoop('shop', database=sys.argv[1]).launch_sync('orders', 1)"

    async def main() -> None:
        app = app_of(database_url)
        async with app.running():
            await until(lambda: service_of(app).hints.listening)
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, database_url)
            assert await process.wait() == 0
            await until(lambda: runs(database_url) == 1)

    asyncio.run(main())


def runs(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("select count(*) from scoop_outbox.run where state = 'committed'").fetchone()
    assert row is not None
    return int(row[0])


def test_many_loops_may_connect_first_at_the_same_moment(database_url: str) -> None:
    app = app_of(database_url)
    together = threading.Barrier(6)
    launched_ids: list[Any] = []

    def launch() -> None:
        together.wait(LONG)
        launched_ids.append(asyncio.run(launched(app)))

    threads = [threading.Thread(target=launch, daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert len(launched_ids) == 6
    app.close_sync()
