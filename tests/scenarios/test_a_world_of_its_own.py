"""A step has its own world: context variables, a connection as if just opened, and nobody to talk to but its scope."""

import asyncio
import contextvars
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from scoop_outbox import DistributedError, RunState, Scoop, StepError
from scoop_outbox.store.url import parse_url
from tests.scenarios.shop import LONG, Shop, raises
from tests.waiting import until

TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


async def test_q70_context_variables_of_a_step_are_seen_by_no_other(shop: Shop) -> None:
    seen: list[str] = []

    def body(_: Any, message: Any) -> None:
        seen.append(TENANT.get())
        TENANT.set(f"tenant {message.payload}")

    shop.saga("root", "R", body, body, None)
    saga = shop.app.saga("undone", on="U")
    shop.step(saga, "0", body, compensate=lambda _, __, ___: seen.append(TENANT.get()))
    shop.step(saga, "1", raises())

    async with shop.running(slots=2):
        handles = [await shop.app.launch("R", number) for number in range(10)]
        undone = await shop.app.launch("U", None)
        for handle in handles:
            await handle.wait(LONG)
        with pytest.raises(DistributedError):
            await undone.wait(LONG)

    assert seen == ["nobody"] * 22


async def test_q70_a_step_finds_the_variables_of_the_workers_start_whoever_launches(shop: Shop) -> None:
    seen: list[str] = []
    shop.saga("root", "R", lambda *_: seen.append(TENANT.get()))

    token = TENANT.set("the worker's")
    async with shop.running(slots=1):
        TENANT.reset(token)
        for number in range(3):
            TENANT.set(f"request {number}")
            await (await shop.app.launch("R", number)).wait(LONG)

    assert seen == ["the worker's"] * 3


@pytest.mark.parametrize("setting", ["set role {}", "set local role {}", "set session authorization {}"])
async def test_q70_a_step_may_take_on_a_role_that_may_not_write_what_we_write(
    shop: Shop, database_url: str, setting: str
) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("create table sold (who text default current_user)")
        connection.execute("do $$ begin create role tenant_of_ours; exception when duplicate_object then end $$")
        connection.execute("grant all on sold to tenant_of_ours")

    def body(scope: Any, _: Any) -> Iterator[Any]:
        yield scope.connection.execute(setting.format("tenant_of_ours"))
        yield scope.connection.execute("insert into sold default values")
        scope.launch("C", None)

    def plain(scope: Any, _: Any) -> Iterator[Any]:
        yield scope.session.execute(sa.text("insert into sold default values"))

    shop.saga("root", "R", body, plain)
    shop.saga("child", "C", None)

    async with shop.running(slots=1):
        await (await shop.app.launch("R", None)).wait(LONG)

    with psycopg.connect(database_url) as connection:
        tenant, other = connection.execute("select who from sold").fetchall()
    assert tenant == ("tenant_of_ours",)
    assert other != tenant


async def test_q70_a_launch_that_demands_a_handler_changes_nothing_of_that(shop: Shop, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("do $$ begin create role tenant_of_ours; exception when duplicate_object then end $$")
    seen: list[Any] = []

    def body(scope: Any, message: Any) -> Iterator[Any]:
        yield scope.connection.execute("set my.tenant = 'acme'")
        yield scope.connection.execute("create temporary table scratch (n int)")
        yield scope.connection.execute("select pg_advisory_lock(4711)")
        yield scope.connection.execute("set role tenant_of_ours")
        scope.launch(message.payload, None, require_handlers=True)

    def look(scope: Any, _: Any) -> Generator[Any, Any, None]:
        cursor = yield scope.connection.execute(
            "select coalesce(current_setting('my.tenant', true), ''), to_regclass('scratch')::text, "
            "(select count(*) from pg_locks where locktype = 'advisory' and objid = 4711), current_user = session_user"
        )
        seen.append((yield cursor.fetchone()))

    shop.saga("root", "R", body)
    shop.saga("child", "C", None)
    shop.saga("other", "O", look)

    async with shop.running(slots=1, max_interruptions=1):
        await (await shop.app.launch("R", "C")).wait(LONG)
        await (await shop.app.launch("O", None)).wait(LONG)
        with pytest.raises(DistributedError, match="no saga is subscribed"):
            await (await shop.app.launch("R", "nowhere")).wait(LONG)
        await (await shop.app.launch("O", None)).wait(LONG)

    assert seen == [("", None, 0, True)] * 2


async def test_a05_time_outs_around_a_blocked_query_leave_no_backends_behind(mixed: Shop, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("create table sold (name text)")

    async def by_session(scope: Any, _: Any) -> None:
        async with asyncio.timeout(0.05):
            await scope.session.execute(sa.text("insert into sold values ('x')"))

    async def by_connection(scope: Any, _: Any) -> None:
        await asyncio.wait_for(scope.connection.execute("insert into sold values ('x')"), 0.05)

    async def left_behind(scope: Any, _: Any) -> None:
        task = asyncio.create_task(scope.connection.execute("insert into sold values ('x')"))
        await asyncio.wait([task], timeout=0.05)
        task.add_done_callback(lambda done: done.exception())

    def thread_left_behind(scope: Any, _: Any) -> None:
        def work() -> None:
            with pytest.raises(Exception):  # noqa: B017, PT011 - whatever it is told
                scope.connection.execute("insert into sold values ('x')")

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(0.05)

    steps: list[Any] = [by_session, by_connection, left_behind, thread_left_behind]
    for number, step in enumerate(steps):
        mixed.app.saga(f"saga {number}", on=f"topic {number}").add_step("0", step)

    def waiting() -> int:
        with psycopg.connect(database_url, autocommit=True) as connection:
            found = (
                "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
            )
            ((count,),) = connection.execute(found).fetchall()
            return int(count)

    async with mixed.running(slots=4):
        with psycopg.connect(database_url) as holder:
            holder.execute("lock table sold")
            handles = [await mixed.app.launch(f"topic {number % 4}", None) for number in range(20)]
            for handle in handles:
                with pytest.raises(DistributedError):
                    await handle.wait(LONG)
            await until(lambda: waiting() == 0)
    assert waiting() == 0


# Talking to oneself (Q72) ---------------------------------------------------------------------------------------


async def coroutine(app: Scoop, **options: Any) -> Any:
    return await app.launch("O", None, **options)


def blocking(app: Scoop, **options: Any) -> Any:
    return app.launch_sync("O", None, **options)


async def in_a_task(app: Scoop, **options: Any) -> Any:
    return await asyncio.gather(app.launch("O", None, **options))


async def in_a_thread(app: Scoop, **options: Any) -> Any:
    return await asyncio.to_thread(lambda: app.launch_sync("O", None, **options))


WAYS: list[Callable[..., Any]] = [coroutine, blocking, in_a_task, in_a_thread]


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("way", WAYS)
async def test_q72_to_launch_from_outside_inside_a_step_is_refused(
    mixed: Shop, way: Callable[..., Any], detached: bool
) -> None:
    async def step(scope: Any, _: Any) -> None:
        result = way(mixed.app, **({"detached": True} if detached else {}))
        if asyncio.iscoroutine(result):
            await result
        raise RuntimeError("the step fails all the same")

    def plain(scope: Any, _: Any) -> None:
        blocking(mixed.app, **({"detached": True} if detached else {}))
        raise RuntimeError("the step fails all the same")

    mixed.app.saga("root", on="R").add_step("0", plain if way is blocking else step)
    mixed.saga("other", "O", None)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        with pytest.raises(DistributedError) as failed:
            await handle.wait(LONG)
        if detached:
            await until(lambda: mixed.journal == ["other-0"], LONG)
            assert "the step fails all the same" in str(failed.value)
        else:
            assert failed.value.type.endswith(StepError.__qualname__)
            assert "Use scope.launch()" in str(failed.value)
            assert "detached=True" in str(failed.value)
            assert mixed.journal == []


JOINED: dict[str, Callable[[Any], Any]] = {
    "session": lambda scope: scope.session,
    "connection": lambda scope: scope.connection,
    "the session's connection": lambda scope: scope.session.connection(),
}


@pytest.mark.parametrize("joined", JOINED.values(), ids=JOINED.keys())
async def test_q72_to_launch_in_the_steps_own_transaction_is_allowed(shop: Shop, joined: Callable[[Any], Any]) -> None:
    def launch(scope: Any, asynchronous: bool) -> Iterator[Any]:
        session = yield joined(scope)
        yield (shop.app.launch if asynchronous else shop.app.launch_sync)("O", None, session=session)

    def body(scope: Any, message: Any) -> Iterator[Any]:
        asynchronous = asyncio.iscoroutinefunction(scope.connection.execute)
        yield from launch(scope, asynchronous)
        if message.payload == "fails":
            raise RuntimeError("boom")

    shop.saga("root", "R", body)
    shop.saga("other", "O", None)

    async with shop.running(slots=1):
        bad = await shop.app.launch("R", "fails")
        with pytest.raises(DistributedError, match="boom"):
            await bad.wait(LONG)
        await (await shop.app.launch("R", None)).wait(LONG)
        await until(lambda: "other-0" in shop.journal.entries, LONG)

    assert shop.journal == ["root-0", "root-0", "other-0"]


async def test_q72_a_session_of_ones_own_is_none_of_the_step(mixed: Shop, database_url: str) -> None:
    url = parse_url(database_url)
    refused: list[str] = []

    async def step(scope: Any, _: Any) -> None:
        engine = create_async_engine(url)
        async with AsyncSession(engine) as session:
            with pytest.raises(StepError) as error:
                await mixed.app.launch("O", None, session=session)
            refused.append(str(error.value))
            await mixed.app.launch("O", 1, session=session, detached=True)
            await session.commit()
        await engine.dispose()

    def plain(scope: Any, _: Any) -> None:
        engine = sa.create_engine(url)
        with Session(engine) as session:
            with pytest.raises(StepError) as error:
                mixed.app.launch_sync("O", None, session=session)
            refused.append(str(error.value))
        engine.dispose()

    saga = mixed.app.saga("root", on="R")
    saga.add_step("0", step)
    saga.add_step("1", plain)
    mixed.saga("other", "O", None)
    async with mixed.running():
        await (await mixed.app.launch("R", None)).wait(LONG)
        await until(lambda: mixed.journal == ["other-0"], LONG)

    assert len(refused) == 2


async def test_q72_to_wait_inside_a_step_is_refused(mixed: Shop) -> None:
    async def step(scope: Any, _: Any) -> None:
        with pytest.raises(StepError, match="the next step starts when all of it has ended"):
            await mixed.app.handle(scope.run_id).wait(0)

    def plain(scope: Any, _: Any) -> None:
        with pytest.raises(StepError, match="the next step starts when all of it has ended"):
            mixed.app.handle(scope.run_id).wait_sync(0)

    saga = mixed.app.saga("root", on="R")
    saga.add_step("0", step)
    saga.add_step("1", plain)

    handle = await mixed.run("R")

    assert await mixed.states(handle) == {"root": RunState.COMMITTED}
