"""Launching from outside any saga: alone, or in a transaction of the launcher's own; and waiting for the outcome."""

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from scoop_outbox import (
    DatabaseError,
    DefinitionError,
    DistributedError,
    Handle,
    PayloadError,
    Retry,
    RunState,
    Scoop,
    UnknownMessage,
)
from tests.scenarios.conftest import MakeShop
from tests.scenarios.shop import LONG, Shop, launches, raises
from tests.waiting import until, until_blocking

DRIVER = "postgresql+psycopg"


@asynccontextmanager
async def async_session(url: str) -> AsyncIterator[Any]:
    engine = create_async_engine(sa.make_url(url).set(drivername=DRIVER))
    async with AsyncSession(engine) as session:
        yield session
    await engine.dispose()


@asynccontextmanager
async def async_connection(url: str) -> AsyncIterator[Any]:
    engine = create_async_engine(sa.make_url(url).set(drivername=DRIVER))
    async with engine.connect() as connection:
        yield connection
    await engine.dispose()


@asynccontextmanager
async def async_psycopg(url: str) -> AsyncIterator[Any]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        yield connection


@contextmanager
def blocking_session(url: str) -> Iterator[Any]:
    engine = sa.create_engine(sa.make_url(url).set(drivername=DRIVER))
    with Session(engine) as session:
        yield session
    engine.dispose()


@contextmanager
def blocking_connection(url: str) -> Iterator[Any]:
    engine = sa.create_engine(sa.make_url(url).set(drivername=DRIVER))
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@contextmanager
def blocking_psycopg(url: str) -> Iterator[Any]:
    with psycopg.connect(url) as connection:
        yield connection


ASYNC = [async_session, async_connection, async_psycopg]
BLOCKING = [blocking_session, blocking_connection, blocking_psycopg]


async def unknown(shop: Shop, handle: Handle) -> bool:
    try:
        await shop.status(handle)
    except UnknownMessage:
        return True
    return False


async def known(shop: Shop, handle: Handle) -> bool:
    return not await unknown(shop, handle)


async def probed(shop: Shop) -> None:
    """Wait until a message launched now has been handled: whatever was launched before has been as well."""
    await (await shop.app.launch("probe", None)).wait(LONG)


def declare(shop: Shop) -> None:
    shop.saga("root", "R", None)
    shop.saga("probe", "probe", None)


async def test_tx_05_launching_alone_is_durable_when_it_returns(mixed: Shop, make_shop: MakeShop) -> None:
    declare(mixed)

    handle = await mixed.app.launch("R", {"n": 1}, context={"who": "me"})
    # Another process finds it.
    other = make_shop()
    declare(other)
    async with other.running():
        await other.app.handle(handle.id).wait(LONG)

    assert await mixed.states(handle) == {"root": RunState.COMMITTED}


@pytest.mark.parametrize("kind", ASYNC)
async def test_tx_05_launching_in_a_transaction_that_commits(mixed: Shop, database_url: str, kind: Any) -> None:
    declare(mixed)

    async with mixed.running():
        async with kind(database_url) as session:
            handle = await mixed.app.launch("R", None, session=session)
            await probed(mixed)
            assert await unknown(mixed, handle)
            await session.commit()
        await handle.wait(LONG)

    assert mixed.journal.of("root") == ["root-0"]


@pytest.mark.parametrize("kind", ASYNC)
async def test_tx_05_launching_in_a_transaction_that_rolls_back(mixed: Shop, database_url: str, kind: Any) -> None:
    declare(mixed)

    async with mixed.running():
        async with kind(database_url) as session:
            handle = await mixed.app.launch("R", None, session=session)
            await session.rollback()
        await probed(mixed)
        assert await unknown(mixed, handle)

    assert mixed.journal.of("root") == []


@pytest.mark.parametrize("kind", BLOCKING)
async def test_tx_05_launch_sync_in_a_transaction_that_commits(mixed: Shop, database_url: str, kind: Any) -> None:
    declare(mixed)

    async with mixed.running():
        with kind(database_url) as session:
            handle = mixed.app.launch_sync("R", None, session=session)
            await probed(mixed)
            assert await unknown(mixed, handle)
            session.commit()
        await handle.wait(LONG)

    assert mixed.journal.of("root") == ["root-0"]


@pytest.mark.parametrize("kind", BLOCKING)
async def test_tx_05_launch_sync_in_a_transaction_that_rolls_back(mixed: Shop, database_url: str, kind: Any) -> None:
    declare(mixed)

    async with mixed.running():
        with kind(database_url) as session:
            handle = mixed.app.launch_sync("R", None, session=session)
            session.rollback()
        await probed(mixed)
        assert await unknown(mixed, handle)

    assert mixed.journal.of("root") == []


async def test_tx_05_a_launch_lives_and_dies_with_the_rows_beside_it(mixed: Shop, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("create table sold (name text primary key)")
    seen: list[str] = []

    def body(scope: Any, message: Any) -> Generator[Any, Any, None]:
        cursor = yield scope.connection.execute("select name from sold where name = %s", (message.payload,))
        (name,) = yield cursor.fetchone()
        seen.append(name)

    mixed.saga("root", "R", body)

    async with mixed.running(), async_session(database_url) as session:
        for name in ("one", "two", "one", "three"):
            try:
                await session.execute(sa.text("insert into sold values (:name)"), {"name": name})
                handle = await mixed.app.launch("R", name, session=session)
                await session.commit()
            except sa.exc.IntegrityError:
                await session.rollback()
                continue
            await handle.wait(LONG)

    assert seen == ["one", "two", "three"]


async def test_tx_05_a_savepoint_of_the_launcher_takes_the_message_with_it(mixed: Shop, database_url: str) -> None:
    declare(mixed)

    async with mixed.running(), async_session(database_url) as session:
        async with session.begin():
            kept = await mixed.app.launch("R", "kept", session=session)
            async with session.begin_nested() as savepoint:
                gone = await mixed.app.launch("R", "gone", session=session)
                await savepoint.rollback()
        await kept.wait(LONG)
        await probed(mixed)
        assert await unknown(mixed, gone)

    assert mixed.journal.of("root") == ["root-0"]


@pytest.mark.parametrize("kind", BLOCKING)
async def test_tx_05_launch_refuses_blocking_sessions(mixed: Shop, database_url: str, kind: Any) -> None:
    declare(mixed)

    with kind(database_url) as session, pytest.raises(DatabaseError, match=r"cannot join .*launch_sync\(\)"):
        await mixed.app.launch("R", None, session=session)


@pytest.mark.parametrize("kind", ASYNC)
async def test_tx_05_launch_sync_refuses_async_sessions(mixed: Shop, database_url: str, kind: Any) -> None:
    declare(mixed)

    async with kind(database_url) as session:
        with pytest.raises(DatabaseError, match=r"cannot join .*for async ones there is launch\(\)"):
            mixed.app.launch_sync("R", None, session=session)


async def test_tx_05_launch_refuses_what_is_no_session(mixed: Shop) -> None:
    session: Any = object()

    with pytest.raises(DatabaseError, match="cannot join object: pass an SQLAlchemy AsyncSession"):
        await mixed.app.launch("R", None, session=session)
    with pytest.raises(DatabaseError, match="cannot join object: pass an SQLAlchemy Session"):
        mixed.app.launch_sync("R", None, session=session)


@pytest.mark.parametrize("payload", [object(), {"x": {1, 2}}, float("nan")])
async def test_launching_refuses_what_cannot_be_encoded(mixed: Shop, payload: object) -> None:
    with pytest.raises(PayloadError, match="payload for topic 'R' cannot be encoded"):
        await mixed.app.launch("R", payload)
    with pytest.raises(PayloadError, match="payload for topic 'R' cannot be encoded"):
        mixed.app.launch_sync("R", payload)


async def test_launching_refuses_names_keys_and_headers_that_cannot_be_used(mixed: Shop) -> None:
    with pytest.raises(DefinitionError, match="topic name must not be empty"):
        await mixed.app.launch("", None)
    with pytest.raises(PayloadError, match="message key"):
        await mixed.app.launch("R", None, key="\0")
    with pytest.raises(PayloadError, match="'scoop-lineage'"):
        await mixed.app.launch("R", None, headers={"scoop-lineage": "x"})


async def test_launching_without_a_database_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCOOP_OUTBOX_DATABASE", raising=False)
    app = Scoop("shop")

    with pytest.raises(DatabaseError, match=r"pass database=.* or set SCOOP_OUTBOX_DATABASE"):
        await app.launch("R", None)


async def test_launching_without_a_server_says_what_to_do() -> None:
    app = Scoop("shop", database="postgresql://nobody:secret@127.0.0.1:1/none")

    with pytest.raises(DatabaseError, match=r"Is the server running") as caught:
        await app.launch("R", None)
    assert "secret" not in str(caught.value)
    with pytest.raises(DatabaseError, match=r"Is the server running"):
        app.launch_sync("R", None)


@pytest.mark.builtin("RabbitMQ has no queue before a worker has made it")
async def test_launching_before_the_first_worker_ever_ran(make_shop: MakeShop) -> None:
    """The launch itself makes the service's sagas known: nobody has to have run them before."""
    launcher, worker = make_shop(), make_shop()
    for shop in (launcher, worker):
        shop.saga("root", "R", launches("C"), None)
        shop.saga("child", "C", None)

    handle = await launcher.app.launch("R", None)
    # A relay of another service takes the message in; it does not know these sagas from code.
    async with make_shop(service="other").running():
        await until(lambda: known(launcher, handle))
    async with worker.running():
        await handle.wait(LONG)

    assert worker.journal == ["root-0", "child-0", "root-1"]


async def test_q48_nobody_handles_the_message(mixed: Shop) -> None:
    declare(mixed)

    async with mixed.running():
        handle = await mixed.app.launch("nobody", None)
        await handle.wait(LONG)
        await asyncio.to_thread(handle.wait_sync, LONG)

    assert (await mixed.status(handle)).runs == ()


async def test_q48_several_failures_come_as_a_group(shop: Shop) -> None:
    shop.saga("one", "R", raises("boom one"))
    shop.saga("two", "R", raises("boom two"))
    shop.saga("good", "R", None)

    async with shop.running():
        handle = await shop.app.launch("R", None)
        with pytest.raises(ExceptionGroup, match="2 sagas that handle the message failed") as caught:
            await handle.wait(LONG)
        with pytest.raises(ExceptionGroup) as caught_sync:
            await asyncio.to_thread(handle.wait_sync, LONG)

    for group in (caught.value, caught_sync.value):
        assert all(isinstance(error, DistributedError) for error in group.exceptions)
        texts = sorted(str(error) for error in group.exceptions)
        assert "boom one" in texts[0]
        assert "boom two" in texts[1]
    assert await shop.states(handle) == {
        "one": RunState.ROLLED_BACK,
        "two": RunState.ROLLED_BACK,
        "good": RunState.COMMITTED,
    }


async def test_q48_one_failure_of_several_sagas_is_raised_when_all_have_ended(shop: Shop) -> None:
    failed = threading.Event()

    def fail(*_: Any) -> None:
        failed.set()
        raise RuntimeError("boom")

    def slow(*_: Any) -> Iterator[Any]:
        yield failed.is_set

    shop.saga("bad", "R", fail)
    shop.saga("good", "R", slow, launches("C"), None)
    shop.saga("child", "C", None)

    async with shop.running():
        handle = await shop.app.launch("R", None)
        with pytest.raises(DistributedError, match="boom"):
            await handle.wait(LONG)
        assert shop.journal.entries[-1] == "good-2"


async def test_waiting_has_a_time_out(mixed: Shop) -> None:
    finish = threading.Event()

    def body(*_: Any) -> Iterator[Any]:
        yield finish.is_set

    mixed.saga("root", "R", body)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: mixed.journal.count("root-0"))
        with pytest.raises(TimeoutError, match=str(handle.id)):
            await handle.wait(0.05)
        with pytest.raises(TimeoutError, match=str(handle.id)):
            await asyncio.to_thread(handle.wait_sync, 0.05)
        finish.set()
        await handle.wait(LONG)  # it went on all the same
        await handle.wait(0)

    assert mixed.journal == ["root-0"]


async def test_waiting_while_no_worker_runs_times_out(mixed: Shop) -> None:
    declare(mixed)
    handle = await mixed.app.launch("R", None)

    with pytest.raises(TimeoutError):
        await handle.wait(0.02)
    with pytest.raises(TimeoutError):
        handle.wait_sync(0.02)


async def test_waiting_by_many_for_one(mixed: Shop) -> None:
    mixed.saga("root", "R", raises("boom"))

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        results = await asyncio.gather(*(handle.wait(LONG) for _ in range(10)), return_exceptions=True)

    assert [type(result) for result in results] == [DistributedError] * 10
    assert len({id(result) for result in results}) == 10


async def test_a_handle_is_made_again_of_a_kept_id(mixed: Shop) -> None:
    declare(mixed)
    handle = await mixed.run("R")

    kept = mixed.app.handle(uuid.UUID(str(handle.id)))

    await kept.wait(LONG)
    await asyncio.to_thread(kept.wait_sync, LONG)


def test_launching_and_waiting_without_a_loop(make_shop: MakeShop) -> None:
    """The worker has a loop in a thread of its own; the code that launches has none."""
    shop = make_shop()
    shop.saga("root", "R", launches("C"), None)
    shop.saga("child", "C", lambda _, message: None)
    shop.saga("bad", "B", raises("boom"))
    with in_a_thread(shop.running):
        handle = shop.app.launch_sync("R", {"n": 1})
        handle.wait_sync(LONG)
        assert shop.journal == ["root-0", "child-0", "root-1"]
        assert [run.state for run in shop.app.status_sync(handle.id).runs] == [RunState.COMMITTED] * 2
        bad = shop.app.launch_sync("B", None)
        with pytest.raises(DistributedError, match="boom"):
            bad.wait_sync(LONG)
    shop.app.close_sync()


def test_launching_from_a_second_loop(make_shop: MakeShop) -> None:
    """Connections belong to the loop that opened them: a worker's are not touched by somebody else's loop."""
    shop = make_shop()
    shop.saga("root", "R", None)

    async def launch_and_wait() -> None:
        await (await shop.app.launch("R", None)).wait(LONG)
        await shop.app.close()

    with in_a_thread(shop.running):
        for _ in range(3):
            asyncio.run(launch_and_wait())

    assert shop.journal == ["root-0"] * 3


@contextmanager
def in_a_thread(running: Callable[[], Any]) -> Iterator[None]:
    """Run a service in a loop in another thread."""
    started, stop, failed = threading.Event(), threading.Event(), list[BaseException]()

    async def serve() -> None:
        async with running():
            started.set()
            await until(stop.is_set, 100)

    def main() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:  # noqa: BLE001 - shown by the test
            failed.append(error)

    thread = threading.Thread(target=main)
    thread.start()
    try:
        until_blocking(lambda: started.is_set() or failed)
        yield
    finally:
        stop.set()
        thread.join()
        assert failed == []


async def test_c16_what_is_declared_while_the_service_runs_is_refused_at_once(mixed: Shop) -> None:
    app = mixed.app
    saga = app.saga("root", on="R")
    step = saga.add_step("only", lambda scope, message: None)

    def late(scope: object, message: object, error: object = None) -> None:
        raise AssertionError("it was called")

    declarations: list[Callable[[], object]] = [
        lambda: app.saga("late", on="late"),
        lambda: saga.step(late),
        lambda: saga.step("late", retry=Retry(attempts=2))(late),
        lambda: saga.add_step("late", late, compensate=late),
        lambda: step.compensate(late),
        lambda: step.on_child_failure(late),
        lambda: step.on_child_rollback_failure(late),
    ]
    async with app.running():
        for declare_late in declarations:
            with pytest.raises(DefinitionError, match=r"declared too late: .* before app.running\(\) begins"):
                declare_late()
        assert list(app.sagas) == ["root"]
        await (await app.launch("R", None)).wait(LONG)
    # Nothing was left half declared, and what runs no more can be changed.
    assert [known.name for known in saga.steps] == [step.name]
    step.compensate(late)
    other = app.saga("late", on="late")
    seen: list[object] = []
    other.add_step("late", lambda scope, message: seen.append(message.payload))
    async with app.running():
        await (await app.launch("late", 1)).wait(LONG)
    assert seen == [1]


async def test_c16_a_service_that_could_not_start_can_be_changed(make_shop: MakeShop) -> None:
    app = Scoop("nowhere", database="postgresql://nobody@127.0.0.1:1/nowhere?connect_timeout=2")
    app.saga("root", on="R").add_step("only", lambda scope, message: None)
    with pytest.raises(DatabaseError):
        async with app.running():
            pass
    app.saga("late", on="late").add_step("only", lambda scope, message: None)
    app.sagas["root"].add_step("second", lambda scope, message: None)


async def test_a_service_runs_once_in_a_process(mixed: Shop) -> None:
    declare(mixed)
    async with mixed.app.running():
        with pytest.raises(DefinitionError, match="running in this process already"):
            async with mixed.app.running():
                pass
    async with mixed.app.running():
        await (await mixed.app.launch("R", None)).wait(LONG)
