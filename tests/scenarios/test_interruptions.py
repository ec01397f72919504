"""Runs that cannot be executed: counted in the database, delayed, so that others come first, and parked in the end."""

import asyncio
import contextlib
import itertools
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from scoop_outbox import (
    Answer,
    DistributedError,
    Handle,
    Repeat,
    RunState,
    RunStatus,
    Saga,
    Scoop,
    TransientError,
    UnknownMessage,
)
from scoop_outbox.core.plans.execute import STEPS_IN_A_ROW
from scoop_outbox.daemon.worker import dispatcher
from scoop_outbox.daemon.worker.interruptions import DIED, MACHINERY, OF_DEATH, WANTED
from scoop_outbox.daemon.worker.run_queue import RunQueue
from tests.waiting import until, until_blocking

COLOURS = ["async", "def"]
LONG = 30.0


@pytest_asyncio.fixture
async def app(database_url: str) -> AsyncIterator[Scoop]:
    """A service; what is asked after it has run opens connections anew."""
    service = Scoop("shop", database=database_url)
    yield service
    await service.close()


def add_step(saga: Saga, colour: str, name: str, body: Callable[[Any], None]) -> None:
    async def coroutine(scope: Any, message: Any) -> None:
        body(scope)

    def thread(scope: Any, message: Any) -> None:
        body(scope)

    saga.add_step(name, coroutine if colour == "async" else thread)


async def root(app: Scoop, handle: Handle) -> RunStatus:
    found: list[RunStatus] = []

    async def is_taken_in() -> bool:
        with contextlib.suppress(UnknownMessage):
            found.extend((await app.status(handle.id)).runs)
        return bool(found)

    await until(is_taken_in)
    return found[0]


def ask(url: str, text: str, *params: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(text.encode(), params or None)
        return cursor.fetchall() if cursor.description else []


def not_now(scope: Any) -> None:
    raise TransientError("the other system is down")


def nothing(scope: Any) -> None: ...


def lose_connection(url: str) -> Callable[[Any], None]:
    """What ends the connection of a step whose colour it does not know: from outside, as a DBA does."""

    def body(scope: Any) -> None:
        pid = scope.connection.info.backend_pid
        ask(url, "select pg_terminate_backend(%s, 5000)", pid)

    return body


@pytest.mark.parametrize("colour", COLOURS)
async def test_q32_runs_that_say_not_now_do_not_keep_another_saga_waiting(
    app: Scoop, monkeypatch: pytest.MonkeyPatch, colour: str
) -> None:
    needy, healthy = app.saga("needy", on="needy"), app.saga("healthy", on="healthy")
    entered: list[int] = []
    known = threading.Event()
    taken: list[str] = []

    class Watched(RunQueue):
        """Tells when the worker knows of the healthy run, and which sagas' runs it takes from then on."""

        def put(self, run_id: uuid.UUID, saga: str) -> None:
            super().put(run_id, saga)
            if saga == "healthy":
                known.set()

        def take(self) -> tuple[uuid.UUID, str]:
            run = super().take()
            if known.is_set():
                taken.append(run[1])
            return run

    async def slow(scope: Any, message: Any) -> None:
        entered.append(message.payload)
        await until(lambda: len(entered) <= 8 or known.is_set(), LONG)
        raise TransientError("the other system is down")

    def slow_thread(scope: Any, message: Any) -> None:
        entered.append(message.payload)
        until_blocking(lambda: len(entered) <= 8 or known.is_set(), LONG)
        raise TransientError("the other system is down")

    needy.add_step("call", slow if colour == "async" else slow_thread)
    add_step(healthy, colour, "work", nothing)
    monkeypatch.setattr(dispatcher, "RunQueue", Watched)
    async with app.running(slots=4, grace=1):
        for number in range(300):
            await app.launch("needy", number)
        await until(lambda: len(entered) >= 12)  # they have all slots, and keep them
        handle = await app.launch("healthy", {})
        await handle.wait(LONG)
    # By order and not by the clock: at most two rounds of the four slots came before it.
    assert taken.index("healthy") <= 8


@pytest.mark.parametrize("colour", COLOURS)
async def test_q65_what_says_not_now_is_counted_and_delayed_and_never_parked(app: Scoop, colour: str) -> None:
    entered: list[int] = []
    open_again = asyncio.Event()

    def call(scope: Any) -> None:
        entered.append(scope.attempt)
        if not open_again.is_set():
            raise TransientError("the other system is down")

    saga = app.saga("needy", on="needy")
    add_step(saga, colour, "call", call)
    add_step(saga, "def", "and then", nothing)
    async with app.running(max_interruptions=2, grace=1) as daemons:
        handle = await app.launch("needy", {})
        await until(lambda: len(entered) >= 5)
        run = await root(app, handle)
        assert (run.state, run.steps) == (RunState.RUNNING, ())
        assert run.interruptions >= 4
        assert "the other system is down" not in (run.interruption or "")  # a text of the user's
        assert "TransientError" in (run.interruption or "")
        assert daemons.worker is not None
        assert daemons.worker.interruptions.counted["needy", WANTED] >= 4
        open_again.set()
        await handle.wait(LONG)
    assert set(entered) == {0}
    run = await root(app, handle)
    assert (run.interruptions, run.interruption) == (0, None)


@pytest.mark.parametrize("colour", COLOURS)
async def test_q65_what_costs_its_connection_each_time_is_parked_and_can_be_retried(
    app: Scoop, database_url: str, colour: str, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []
    mended = asyncio.Event()
    lose = lose_connection(database_url)

    def crash(scope: Any) -> None:
        calls.append(1)
        if not mended.is_set():
            lose(scope)

    saga = app.saga("order", on="orders")
    add_step(saga, colour, "before", nothing)
    add_step(saga, colour, "crash", crash)
    async with app.running(max_interruptions=4, grace=1) as daemons:
        handle = await app.launch("orders", {})
        await until(lambda: len(calls) == 4)

        async def is_parked() -> bool:
            return (await root(app, handle)).state is RunState.PARKED

        await until(is_parked)
        run = await root(app, handle)
        assert run.reason is not None
        assert "interrupted 4 times in a row without progress" in run.reason
        assert run.interruptions == 4
        assert daemons.worker is not None
        assert daemons.worker.interruptions.counted["order", MACHINERY] == 4
        assert daemons.worker.reports.counters.counts["order", RunState.PARKED] == 1
        assert f"run: parked (service shop, saga order, run {run.id}" in caplog.text
        with pytest.raises(TimeoutError):
            await handle.wait(0)

        mended.set()
        assert await app.retry(run.id) is Answer.ACCEPTED
        await handle.wait(LONG)
        assert await app.retry(run.id) is Answer.NOTHING_TO_DO
        assert await app.retry(uuid.uuid4()) is Answer.UNKNOWN
    assert len(calls) == 5
    run = await root(app, handle)
    assert (run.state, run.reason, run.interruptions) == (RunState.COMMITTED, None, 0)


async def test_if_04_q65_progress_begins_the_count_anew(app: Scoop, database_url: str) -> None:
    lose = lose_connection(database_url)
    calls: list[tuple[str, int]] = []

    def twice(scope: Any) -> None:
        # How long a run is delayed depends on this count, and on nothing else.
        ((count,),) = ask(database_url, "select interruptions from scoop_outbox.run")
        calls.append((scope.step, count))
        if count < 2:
            lose(scope)

    saga = app.saga("order", on="orders")
    for name in ("one", "two", "three"):
        add_step(saga, "def", name, twice)
    async with app.running(max_interruptions=3, grace=1):
        await (await app.launch("orders", {})).wait(LONG)
    assert calls == [(name, count) for name in ("one", "two", "three") for count in range(3)]


async def test_q65_the_count_survives_the_process(database_url: str) -> None:
    lose = lose_connection(database_url)
    calls: list[int] = []

    def crash(scope: Any) -> None:
        calls.append(1)
        lose(scope)

    def service() -> Scoop:
        app = Scoop("shop", database=database_url)
        add_step(app.saga("order", on="orders"), "async", "crash", crash)
        return app

    watcher = Scoop("watcher", database=database_url)
    handle = await watcher.launch("orders", {})
    counted = 0
    while counted < 3:
        app = service()
        async with app.running(max_interruptions=3, grace=1):

            async def is_counted(counted: int = counted) -> bool:
                return (await root(watcher, handle)).interruptions > counted

            await until(is_counted)
        counted = (await root(watcher, handle)).interruptions
    assert (await root(watcher, handle)).state is RunState.PARKED
    assert len(calls) == 3
    await watcher.close()


async def test_a_run_whose_process_died_twice_waits_and_is_parked(app: Scoop, database_url: str) -> None:
    # What a killed process leaves: mail that is old, and the mark of whoever had begun. See tests/crash for real ones.
    calls: list[int] = []
    add_step(app.saga("order", on="orders"), "async", "work", lambda _: calls.append(1))
    async with app.running(worker=False):
        handle = await app.launch("orders", {})
        await until(lambda: ask(database_url, "select 1 from scoop_outbox.mailbox"))
    ask(database_url, "update scoop_outbox.run set taken_by = %s, interruptions = 1, unwanted = 1", uuid.uuid4())
    async with app.running(max_interruptions=2) as daemons:

        async def is_parked() -> bool:
            return (await root(app, handle)).state is RunState.PARKED

        await until(is_parked)
        run = await root(app, handle)
        assert run.reason is not None
        assert OF_DEATH in run.reason
        assert calls == []
        assert daemons.worker is not None
        assert daemons.worker.interruptions.counted["order", DIED] == 1
        await app.retry(run.id)
        await handle.wait(LONG)
    assert calls == [1]


async def test_mail_that_lay_there_before_is_marked_and_the_mark_goes_with_progress(
    app: Scoop, database_url: str
) -> None:
    seen: list[list[tuple[Any, ...]]] = []
    marks = "select taken_by is not null, interruptions from scoop_outbox.run"
    add_step(app.saga("order", on="orders"), "def", "work", lambda _: seen.append(ask(database_url, marks)))
    async with app.running(worker=False):
        old = await app.launch("orders", {})
        await until(lambda: ask(database_url, "select 1 from scoop_outbox.mailbox"))
    async with app.running():
        await old.wait(LONG)
        await (await app.launch("orders", {})).wait(LONG)
    assert seen[0] == [(True, 0)]
    assert ask(database_url, marks) == [(False, 0), (False, 0)]


async def test_q65_interruptions_are_seen_from_outside(app: Scoop, database_url: str) -> None:
    add_step(app.saga("needy", on="needy"), "async", "call", not_now)
    async with app.running(grace=1):
        handle = await app.launch("needy", {})

        async def is_seen() -> bool:
            return (await root(app, handle)).interruptions > 1

        await until(is_seen)
        counted = "select count(*) from scoop_outbox.run where service = 'shop' and interruptions > 0"
        assert ask(database_url, counted) == [(1,)]


async def test_q65_what_a_run_asked_for_itself_does_not_count_towards_its_parking(
    app: Scoop, database_url: str
) -> None:
    calls: list[int] = []
    lose = lose_connection(database_url)

    def call(scope: Any) -> None:
        calls.append(1)
        if len(calls) <= 5:
            raise TransientError("the other system is down")
        if len(calls) == 6:
            lose(scope)

    add_step(app.saga("order", on="orders"), "async", "call", call)
    async with app.running(max_interruptions=2, grace=1):
        await (await app.launch("orders", {})).wait(LONG)
    assert len(calls) == 7


async def test_q65_a_worker_that_lives_or_leaves_in_good_order_is_not_taken_for_dead(database_url: str) -> None:
    begun, allowed = itertools.count(), 4

    def service() -> Scoop:
        one = Scoop("shop", database=database_url)

        async def work(scope: Any, message: Any) -> None:
            number = next(begun)
            await until(lambda: number < allowed, LONG)

        one.saga("order", on="orders").add_step("work", work)
        return one

    apps = [service() for _ in range(3)]
    for number in range(40):
        await apps[0].launch("orders", number)
    async with apps[0].running(worker=False):
        await until(lambda: ask(database_url, "select count(*) from scoop_outbox.run") == [(40,)])

    def done() -> int:
        return int(ask(database_url, "select count(*) from scoop_outbox.step")[0][0])

    deaths = 0
    async with apps[0].running(slots=2, relay=False) as first:
        await until(lambda: done() >= 4)
        async with apps[1].running(slots=2, relay=False) as second:
            allowed = 12
            await until(lambda: done() >= 12)
            allowed = 40
    async with apps[2].running(slots=2, relay=False) as third:
        await until(lambda: done() == 40, LONG)
    for daemons in (first, second, third):
        assert daemons.worker is not None
        deaths += daemons.worker.interruptions.counted["order", DIED]
    assert deaths == 0
    for one in apps:
        await one.close()


async def test_mail_of_runs_that_have_ended_is_dropped_by_a_worker_that_comes_later(
    app: Scoop, database_url: str
) -> None:
    # What is left when a child ends after its parent, or when a process dies between two commits.
    late = """
        insert into scoop_outbox.mailbox (service, saga, run_id, due)
        select service, saga, id, now() - interval '1 minute' from scoop_outbox.run
    """
    add_step(app.saga("order", on="orders"), "async", "work", nothing)
    async with app.running():
        for handle in [await app.launch("orders", number) for number in range(20)]:
            await handle.wait(LONG)
    ask(database_url, late)
    async with app.running(slots=2):
        await (await app.launch("orders", {})).wait(LONG)
        await until(lambda: ask(database_url, "select count(*) from scoop_outbox.mailbox") == [(0,)])


async def test_if_06_q65_what_the_database_refuses_when_a_failure_is_written_is_counted_and_parks(
    app: Scoop, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    refuse = """
        create function refuse() returns trigger language plpgsql as $$
        begin raise exception 'not this one' using errcode = '22000'; end $$;
        create trigger refuse before update on scoop_outbox.run for each row when (new.state = 'rolling_back')
        execute function refuse()
    """
    ask(database_url, refuse)

    def fail(scope: Any) -> None:
        raise ValueError

    add_step(app.saga("order", on="orders"), "async", "fail", fail)
    async with app.running(max_interruptions=2):
        handle = await app.launch("orders", {})

        async def is_parked() -> bool:
            return (await root(app, handle)).state is RunState.PARKED

        await until(is_parked)
    run = await root(app, handle)
    assert "DataException 22000;" in (run.reason or "")  # what the server says of values stays out of it
    assert "run: waiting for a connection" not in caplog.text


async def test_q61_a_failure_in_the_last_turn_of_a_slot_leaves_no_transaction_open(
    app: Scoop, database_url: str
) -> None:
    ask(
        database_url,
        "create table sold (name text unique deferrable initially deferred); insert into sold values ('taken')",
    )
    begun = "select state from scoop_outbox.run where saga = 'order' and state <> 'running'"

    async def repeat(scope: Any, message: Any) -> Any:
        if scope.iteration < STEPS_IN_A_ROW - 1:
            return Repeat()
        await scope.connection.execute("insert into sold values ('taken')")
        return None

    async def beside(scope: Any, message: Any) -> None:
        # Its connection is the next one to be lent then, and not the one that the failure was written on.
        await until(lambda: ask(database_url, begun), LONG)

    app.saga("order", on="orders").add_step("repeat", repeat)
    app.saga("other", on="others").add_step("beside", beside)
    async with app.running(slots=2):
        other = await app.launch("others", {})
        await until(lambda: ask(database_url, "select 1 from scoop_outbox.run where saga = 'other'"))
        with pytest.raises(DistributedError, match="UniqueViolation"):
            await (await app.launch("orders", {})).wait(LONG)
        await other.wait(LONG)
        open_ones = (
            "select 1 from pg_stat_activity where state like 'idle in transaction%' and datname = current_database()"
        )
        await until(lambda: not ask(database_url, open_ones))
