"""What the machinery does to a run never rolls a saga back: connections lost, deadlocks, a database that is down."""

import asyncio
import itertools
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from scoop_outbox import DatabaseError, DistributedError, Handle, Retry, RunState, Scoop, TransientError
from scoop_outbox.devservers.postgres import start_postgres
from tests.scenarios.shop import LONG, Journal, Shop, events, raises
from tests.waiting import until

COMMITTED = RunState.COMMITTED
INSERT = "insert into done (run, step) values (%s, %s)"


def create_table(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("create table done (run uuid, step text)")


def done(url: str) -> list[str]:
    """The steps whose writes have been committed."""
    with psycopg.connect(url, autocommit=True) as connection:
        return [step for (step,) in connection.execute("select step from done order by step")]


def terminate(url: str, pid: int | None = None) -> int:
    """End one connection, or all that others have to the database; return how many."""
    database = conninfo_to_dict(url)["dbname"]
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(
            """
            select pg_terminate_backend(pid, 5000) from pg_stat_activity
            where datname = %s and pid <> pg_backend_pid() and pid = coalesce(%s, pid) and backend_type like 'client%%'
            """,
            (database, pid),
        )
        return len(cursor.fetchall())


def failing(times: int, error: Callable[[], BaseException], failed: list[BaseException]) -> Any:
    """The body of a callback that fails for its first calls."""

    def body(scope: Any, *_: Any) -> Iterator[Any]:
        yield scope.connection.execute(INSERT, (scope.run_id, scope.step))
        if len(failed) < times:
            failed.append(error())
            raise failed[-1]

    return body


async def test_if_01_a_transient_error_is_tried_again_and_never_rolls_back(shop: Shop, database_url: str) -> None:
    create_table(database_url)
    shop.saga("root", "R", None, failing(2, lambda: TransientError("not now"), []))

    handle = await shop.run("R")

    assert shop.journal == ["root-0", "root-1", "root-1", "root-1"]
    assert done(database_url) == ["1"]
    assert await events(shop.app, handle) == ["root 0 step committed", "root 1 step committed"]
    run = await shop.only(handle, "root")
    assert (run.state, run.failure) == (COMMITTED, None)
    assert [step.attempt for step in run.steps] == [0, 0]


async def test_if_05_q35_running_out_of_memory_is_no_failure_of_the_saga(shop: Shop, database_url: str) -> None:
    create_table(database_url)
    shop.saga("root", "R", failing(1, MemoryError, []))

    handle = await shop.run("R")

    assert shop.journal == ["root-0", "root-0"]
    assert done(database_url) == ["0"]
    assert await shop.states(handle) == {"root": COMMITTED}


async def test_if_02_an_ordinary_error_is_a_failure_at_once(shop: Shop, database_url: str) -> None:
    create_table(database_url)
    shop.saga("root", "R", failing(2, lambda: RuntimeError("boom"), []))

    handle, _ = await shop.fail("R")

    assert shop.journal == ["root-0"]
    assert done(database_url) == []
    assert await shop.states(handle) == {"root": RunState.ROLLED_BACK}


def wrapped_by_the_user(error: BaseException) -> BaseException:
    wrapped = RuntimeError("the repository failed")
    wrapped.__cause__ = error
    return wrapped


STATES = {
    "serialization failure": "40001",
    "deadlock": "40P01",
    "admin shutdown": "57P01",
    "connection exception": "08006",
    "disk full": "53100",
}
Wrap = Callable[[BaseException], BaseException]
WAYS: dict[str, Wrap] = {"psycopg": lambda error: error, "wrapped": wrapped_by_the_user}
FOREIGN = [
    psycopg.errors.DeadlockDetected("not ours"),
    psycopg.OperationalError("gone"),
    sa.exc.OperationalError("select", {}, OSError()),
]


@pytest.mark.parametrize("wrap", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("state", STATES.values(), ids=STATES.keys())
async def test_q33_failures_of_the_machinery_are_told_by_their_kind(
    mixed: Shop, database_url: str, state: str, wrap: Wrap
) -> None:
    create_table(database_url)

    def refused(times: int) -> Any:
        failed: list[None] = []
        block = sql.SQL("begin raise 'x' using errcode = {}; end").format(sql.Literal(state))
        refuse = sql.SQL("do {}").format(sql.Literal(block.as_string()))

        def body(scope: Any, _: Any) -> Iterator[Any]:
            yield scope.connection.execute(INSERT, (scope.run_id, scope.step))
            if len(failed) < times:
                failed.append(None)
                try:
                    yield scope.connection.execute(refuse)
                except psycopg.Error as error:
                    raise wrap(error) from error.__cause__

        return body

    mixed.saga("root", "R", refused(1), refused(2))

    handle = await mixed.run("R")

    assert mixed.journal == ["root-0", "root-0", "root-1", "root-1", "root-1"]
    assert done(database_url) == ["0", "1"]
    assert await events(mixed.app, handle) == ["root 0 step committed", "root 1 step committed"]


@pytest.mark.parametrize("error", FOREIGN, ids=repr)
async def test_q61_an_error_that_did_not_happen_on_our_connection_is_a_failure(shop: Shop, error: Exception) -> None:
    shop.saga("root", "R", raises_this(error))

    handle, _ = await shop.fail("R")

    assert shop.journal == ["root-0"]
    assert await shop.states(handle) == {"root": RunState.ROLLED_BACK}


def raises_this(error: BaseException) -> Any:
    def body(*_: Any) -> None:
        raise error

    return body


@pytest.mark.parametrize(
    "statement", ["select 1 / 0", "insert into nowhere values (1)", "select 'x'::int", "insert into done values ('x')"]
)
async def test_q33_what_the_database_refuses_for_good_is_a_failure(
    mixed: Shop, database_url: str, statement: str
) -> None:
    create_table(database_url)

    def body(scope: Any, _: Any) -> Iterator[Any]:
        yield scope.connection.execute(statement)

    mixed.saga("root", "R", body)

    handle, _ = await mixed.fail("R")

    assert mixed.journal == ["root-0"]
    assert await mixed.states(handle) == {"root": RunState.ROLLED_BACK}


async def test_if_01_a_transient_error_in_a_compensation_uses_up_no_attempt(shop: Shop, database_url: str) -> None:
    create_table(database_url)
    saga = shop.app.saga("root", on="R")
    undo = failing(2, lambda: TransientError("not now"), [])
    shop.step(saga, "0", compensate=undo, compensate_retry=Retry(attempts=1))
    shop.step(saga, "1", raises())

    handle, _ = await shop.fail("R")

    assert shop.journal == ["root-0", "root-1", "root-rb0", "root-rb0", "root-rb0"]
    assert done(database_url) == ["0"]
    assert await shop.states(handle) == {"root": RunState.ROLLED_BACK}


async def test_if_01_a_transient_error_in_a_failure_handler_is_not_its_answer(shop: Shop, database_url: str) -> None:
    create_table(database_url)
    saga = shop.app.saga("root", on="R")
    handle_failure = failing(2, lambda: TransientError("not now"), [])
    shop.step(saga, "0", lambda scope, _: scope.launch("C", None) and None, on_child_failure=handle_failure)
    shop.step(saga, "1")
    shop.saga("child", "C", raises())

    handle = await shop.run("R")

    assert shop.journal.of("root") == ["root-0", "root-hcf0", "root-hcf0", "root-hcf0", "root-1"]
    assert await shop.states(handle) == {"root": COMMITTED, "child": RunState.ROLLED_BACK}


async def test_if_01_if_04_attempts_come_with_growing_pauses(mixed: Shop) -> None:
    at: list[float] = []

    def body(*_: Any) -> None:
        at.append(time.monotonic())
        if len(at) < 5:
            raise TransientError("not now")

    mixed.saga("root", "R", body)

    await mixed.run("R")

    pauses = [later - earlier for earlier, later in itertools.pairwise(at)]
    # At least half of 0.04 s * 1.4 ** n; how much more it is depends on the machine.
    assert [pause >= 0.02 * 1.4**number for number, pause in enumerate(pauses)] == [True] * 4


async def test_if_01_a_real_deadlock_between_two_runs(shop: Shop, database_url: str) -> None:
    create_table(database_url)
    with psycopg.connect(database_url) as connection:
        connection.execute("create table account (id int primary key, balance int)")
        connection.execute("insert into account values (1, 0), (2, 0)")
    locked: set[int] = set()
    deadlocks: list[str] = []

    def body(scope: Any, message: Any) -> Iterator[Any]:
        mine, other = message.payload
        update = "update account set balance = balance + 1 where id = %s"
        yield scope.connection.execute("set local deadlock_timeout = '20ms'")
        yield scope.connection.execute(update, (mine,))
        locked.add(mine)
        yield lambda: len(locked) == 2
        try:
            yield scope.connection.execute(update, (other,))
        except psycopg.errors.DeadlockDetected as error:
            deadlocks.append(str(error))
            raise
        yield scope.connection.execute(INSERT, (scope.run_id, f"{mine}"))

    shop.saga("root", "R", None, body)

    async with shop.running():
        handles = [await shop.app.launch("R", payload) for payload in ([1, 2], [2, 1])]
        for handle in handles:
            await handle.wait(LONG)

    assert deadlocks
    assert done(database_url) == ["1", "2"]
    with psycopg.connect(database_url) as connection:
        assert connection.execute("select balance from account").fetchall() == [(2,), (2,)]
    for handle in handles:
        assert await events(shop.app, handle) == ["root 0 step committed", "root 1 step committed"]


@pytest.mark.parametrize("goes_on", [True, False], ids=["and uses it again", "and returns"])
async def test_if_01_if_03_the_connection_of_a_step_is_lost(shop: Shop, database_url: str, goes_on: bool) -> None:
    create_table(database_url)

    def body(scope: Any, _: Any) -> Generator[Any, Any, None]:
        yield scope.connection.execute(INSERT, (scope.run_id, scope.step))
        if shop.journal.count("root-1") <= 2:
            assert terminate(database_url, scope.connection.info.backend_pid) == 1
        if goes_on:
            yield scope.connection.execute("select 1")

    shop.saga("root", "R", None, body)

    handle = await shop.run("R")

    assert shop.journal == ["root-0", "root-1", "root-1", "root-1"]
    assert done(database_url) == ["1"]
    assert await events(shop.app, handle) == ["root 0 step committed", "root 1 step committed"]


async def test_if_01_if_03_the_connection_of_a_session_is_lost(shop: Shop, database_url: str) -> None:
    create_table(database_url)

    def body(scope: Any, _: Any) -> Generator[Any, Any, None]:
        yield scope.session.execute(sa.text("insert into done (step) values (:step)"), {"step": scope.step})
        if shop.journal.count("root-0") <= 2:
            terminate(database_url, scope.connection.info.backend_pid)
        yield scope.session.execute(sa.text("select 1"))

    shop.saga("root", "R", body, None)

    handle = await shop.run("R")

    assert shop.journal == ["root-0", "root-0", "root-0", "root-1"]
    assert done(database_url) == ["0"]
    assert await shop.states(handle) == {"root": COMMITTED}


async def test_if_01_the_connection_of_a_compensation_is_lost(shop: Shop, database_url: str) -> None:
    create_table(database_url)

    def undo(scope: Any, *_: Any) -> Iterator[Any]:
        yield scope.connection.execute(INSERT, (scope.run_id, scope.step))
        if shop.journal.count("root-rb0") <= 2:
            terminate(database_url, scope.connection.info.backend_pid)

    saga = shop.app.saga("root", on="R")
    shop.step(saga, "0", compensate=undo)
    shop.step(saga, "1", raises())

    handle, _ = await shop.fail("R")

    assert shop.journal == ["root-0", "root-1", "root-rb0", "root-rb0", "root-rb0"]
    assert done(database_url) == ["0"]
    assert await shop.states(handle) == {"root": RunState.ROLLED_BACK}


def hierarchies(shop: Shop) -> None:
    """Sagas that write down each step: good roots of payload 0, and roots that roll back."""

    def write(scope: Any, kind: str) -> Any:
        return scope.connection.execute(INSERT, (scope.run_id, f"{scope.saga} {kind}{scope.step}"))

    def launch(scope: Any, message: Any) -> Iterator[Any]:
        yield write(scope, "")
        scope.launch("C", message.payload)

    def plain(scope: Any, _: Any) -> Iterator[Any]:
        yield write(scope, "")

    def last(scope: Any, message: Any) -> Iterator[Any]:
        yield write(scope, "")
        if message.payload % 5 == 4:
            raise RuntimeError("boom")

    def undo(scope: Any, *_: Any) -> Iterator[Any]:
        yield write(scope, "rb")

    root, child = shop.app.saga("root", on="R"), shop.app.saga("child", on="C")
    for saga, bodies in ((root, [launch, launch, last]), (child, [plain, plain])):
        for number, body in enumerate(bodies):
            shop.step(saga, str(number), body, compensate=undo)


def expected(count: int) -> list[str]:
    """What is written by `count` hierarchies, whatever happens to the machinery: each step once, and each undone."""
    bad = count // 5
    good = count - bad
    steps = ["root 0", "root 1", *["child 0", "child 1"] * 2]
    undone = ["root rb0", "root rb1", *["child rb0", "child rb1"] * 2]
    return sorted([*(steps * count), *(undone * bad), *(["root 2"] * good)])


async def ended(app: Scoop, handles: list[Handle]) -> None:
    """Wait until the hierarchies have ended, also while nobody can be asked."""

    async def all_ended() -> bool:
        try:
            return all([(await app.status(handle.id)).ended for handle in handles])
        except Exception:  # noqa: BLE001 - the database is away: that is what is being tested
            return False

    await until(all_ended, 3 * LONG, 0.05)


async def check(shop: Shop, url: str, handles: list[Handle]) -> None:
    assert done(url) == expected(len(handles))
    for number, handle in enumerate(handles):
        state = RunState.ROLLED_BACK if number % 5 == 4 else COMMITTED
        assert (await shop.only(handle, "root")).state is state


async def test_all_connections_are_lost_while_fifty_hierarchies_are_under_way(mixed: Shop, database_url: str) -> None:
    create_table(database_url)
    hierarchies(mixed)

    handles = [await mixed.app.launch("R", number) for number in range(50)]
    async with mixed.running(slots=8):
        for most in (20, 60, 120):
            await until(lambda most=most: len(mixed.journal.entries) >= most, LONG, 0.001)  # type: ignore[misc]
            await until(lambda: asyncio.to_thread(terminate, database_url))  # they may be on their way back
        await ended(mixed.app, handles)

    await check(mixed, database_url, handles)


async def test_postgres_is_killed_and_started_again_while_hierarchies_are_under_way(tmp_path: Path) -> None:
    server = start_postgres(tmp_path / "data")
    try:
        shop = Shop(Scoop("shop", database=server.url), Journal(), "mixed")
        await shop.app.migrate()
        create_table(server.url)
        hierarchies(shop)
        handles = [await shop.app.launch("R", number) for number in range(20)]
        async with shop.running(slots=8):
            await until(lambda: len(shop.journal.entries) >= 20, LONG, 0.001)
            await asyncio.to_thread(server.kill)
            with pytest.raises(DatabaseError):
                await shop.app.launch("R", 0)
            await asyncio.to_thread(server.start)
            await ended(shop.app, handles)
            await check(shop, server.url, handles)
            # Everything works as before, also what needs relay and hints.
            after = await shop.app.launch("R", 1)
            await after.wait(LONG)
    finally:
        await shop.app.close()
        server.stop()


EXITS = [asyncio.CancelledError, SystemExit, GeneratorExit]


@pytest.mark.parametrize("exit_", EXITS)
async def test_q61_an_exit_of_python_is_a_failure_with_attempts(
    shop: Shop, database_url: str, exit_: type[BaseException]
) -> None:
    create_table(database_url)
    saga = shop.app.saga("root", on="R")
    shop.step(saga, "0")
    shop.step(saga, "1", failing(9, exit_, []), retry=Retry(attempts=2, backoff=0.01))

    handle, error = await shop.fail("R")

    assert shop.journal == ["root-0", "root-1", "root-1", "root-rb0"]
    assert error.type.rpartition(".")[2] == exit_.__name__
    assert done(database_url) == []
    assert await shop.states(handle) == {"root": RunState.ROLLED_BACK}


async def test_q61_a_retry_that_names_exceptions_does_not_cover_exits(shop: Shop) -> None:
    saga = shop.app.saga("root", on="R")
    shop.step(saga, "0", raises_this(SystemExit("no")), retry=Retry(attempts=5, backoff=0.01, on=(ValueError,)))

    await shop.fail("R")

    assert shop.journal == ["root-0"]


async def test_q61_a_worker_survives_callbacks_that_exit(shop: Shop) -> None:
    def body(_: Any, message: Any) -> None:
        if message.payload != "fine":
            raise EXITS[message.payload]

    shop.saga("root", "R", body)

    async with shop.running(slots=2):
        bad = [await shop.app.launch("R", number) for number in range(len(EXITS)) for _ in range(2)]
        for _ in range(10):
            await (await shop.app.launch("R", "fine")).wait(LONG)
        for handle in bad:
            with pytest.raises(DistributedError):
                await handle.wait(LONG)


async def gathered() -> None:
    async def exits() -> None:
        await asyncio.sleep(0)
        sys.exit("of a task")

    await asyncio.gather(exits(), asyncio.sleep(0))


async def grouped() -> None:
    async def exits() -> None:
        sys.exit("of a task")

    async with asyncio.TaskGroup() as group:
        group.create_task(exits())
        group.create_task(asyncio.Event().wait())


async def threaded() -> None:
    await asyncio.gather(asyncio.to_thread(sys.exit, "of a thread"))


async def cancels_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def awaits_what_was_cancelled() -> None:
    task = asyncio.create_task(asyncio.Event().wait())
    task.cancel()
    await task


@pytest.mark.parametrize("way", [gathered, grouped, threaded, cancels_itself, awaits_what_was_cancelled])
async def test_q61_what_tasks_of_a_step_do_is_its_failure(mixed: Shop, way: Callable[[], Any]) -> None:
    async def step(scope: Any, _: Any) -> None:
        mixed.journal("called")
        await way()

    mixed.app.saga("root", on="R").add_step("0", step, retry=Retry(attempts=2, backoff=0.01))
    mixed.saga("other", "O", None)
    async with mixed.running(slots=1):
        bad = await mixed.app.launch("R", None)
        with pytest.raises(DistributedError):
            await bad.wait(LONG)
        await (await mixed.app.launch("O", None)).wait(LONG)

    assert mixed.journal == ["called", "called", "other-0"]
    assert asyncio.get_running_loop().get_task_factory() is None


async def test_if_09_a_step_that_is_cut_off_is_executed_again(shop: Shop, database_url: str) -> None:
    """The worker is stopped without grace in mid step: nothing of the step stays, and the next worker repeats it."""
    create_table(database_url)
    stuck: list[bool] = [True]

    def body(scope: Any, _: Any) -> Iterator[Any]:
        yield scope.connection.execute(INSERT, (scope.run_id, scope.step))
        if shop.journal.count("root-0") == 1:
            yield lambda: not stuck

    shop.saga("root", "R", body)

    async with shop.running(grace=0.01):
        handle = await shop.app.launch("R", None)
        await until(lambda: shop.journal.count("root-0"))
    assert done(database_url) == []
    async with shop.running():
        await handle.wait(LONG)
    stuck.clear()

    assert shop.journal == ["root-0", "root-0"]
    assert done(database_url) == ["0"]


async def test_failures_are_told_apart_within_one_saga(shop: Shop) -> None:
    """A run that the machinery has interrupted may still fail of its own later, and is rolled back then."""
    shop.saga("root", "R", None, once_transient_then("boom"))

    await shop.fail("R")

    assert shop.journal == ["root-0", "root-1", "root-1", "root-rb0"]


def once_transient_then(text: str) -> Any:
    calls: list[int] = []

    def body(*_: Any) -> None:
        calls.append(1)
        raise TransientError("not now") if len(calls) == 1 else RuntimeError(text)

    return body
