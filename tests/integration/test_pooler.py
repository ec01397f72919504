"""Behind a pooler that lends connections of the server's for one transaction."""

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from scoop_outbox import AsyncScope, BlockingScope, DatabaseError, DistributedError, Message, Retry, Scoop
from scoop_outbox.app import service_of
from scoop_outbox.devservers._errors import ServerNotFoundError
from tests.pgbouncer import pgbouncer
from tests.servers import skip_without
from tests.waiting import until

LONG = 30.0
SERVERS = 5
"""Connections to the server, for all: many fewer than the clients have."""

ONE_THAT_IS_GONE = """
insert into scoop_outbox.worker (id, service, sagas, versions, alive_until)
select gen_random_uuid(), service, sagas, versions, now() + interval '3 seconds' from scoop_outbox.worker
"""

Through = Callable[[str], str]


@pytest.fixture(scope="module")
def pooler(postgres_url: str) -> Iterator[str]:
    try:
        with pgbouncer(postgres_url, size=SERVERS) as url:
            yield url
    except ServerNotFoundError as error:
        skip_without(error)


@pytest.fixture
def pooled_url(pooler: str, database_url: str) -> str:
    url = make_url(pooler).set(database=make_url(database_url).database)
    return url.render_as_string(hide_password=False)


def of_all_kinds(url: str, seen: list[str]) -> Scoop:
    """A service whose sagas do what sagas do, in both colours."""
    app = Scoop("shop", database=url)
    order = app.saga("order", on="orders", ordered="key")
    payment = app.saga("payment", on="payments")

    @order.step
    async def reserve(scope: AsyncScope, message: Message) -> None:
        await scope.connection.execute("set my.mark = 'left behind'")
        await scope.session.execute(text("insert into sold values (:n, now())"), {"n": message.payload})
        scope.launch("payments", message.payload)
        scope.launch("payments", message.payload)

    @reserve.compensate
    async def release(scope: AsyncScope, message: Message, error: Exception) -> None:
        seen.append(f"released {message.payload}")

    @payment.step(retry=Retry(attempts=2, backoff=0.01))
    def book(scope: BlockingScope, message: Message) -> None:
        row = scope.connection.execute("select current_setting('my.mark', true), at from sold limit 1").fetchone()
        seen.append(f"booked {message.payload} {row and row[0]}")
        if message.payload < 0 and scope.attempt == 1:
            raise ValueError("refused")
        if message.payload < 0:
            raise LookupError("refused again")

    @order.step
    async def ship(scope: AsyncScope, message: Message) -> None:
        seen.append(f"shipped {message.payload}")

    return app


@pytest.mark.parametrize("said", ["", "?pooler=transaction"])
async def test_sagas_are_executed_and_rolled_back(
    pooled_url: str, database_url: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with psycopg.connect(database_url) as connection:
        connection.execute("create table sold (n int, at timestamptz)")
    seen: list[str] = []
    app = of_all_kinds(pooled_url + said, seen)
    async with app.running(slots=16):
        handles = [await app.launch("orders", number, key="k") for number in range(30)]
        # Not on the event loop: the steps that hold all connections could not go on meanwhile.
        handles += [await asyncio.to_thread(app.launch_sync, "orders", number) for number in range(30, 40)]
        failing = await app.launch("orders", -1)
        for handle in handles:
            await handle.wait(LONG)
        with pytest.raises(DistributedError):
            await failing.wait(LONG)
        assert service_of(app).home.pooled
        assert not service_of(app).hints.listening
    await app.close()
    assert sorted(one for one in seen if one.startswith("shipped")) == sorted(f"shipped {n}" for n in range(40))
    assert seen.count("released -1") == 1
    assert not [one for one in seen if "left behind" in one]
    assert ("database: behind a pooler" in caplog.text) is (said == "")
    warned = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [one for one in warned if not one.startswith("run: rolling back ")] == []


async def test_processes_hear_of_each_other_by_polling(pooled_url: str) -> None:
    seen: list[str] = []
    app = Scoop("shop", database=pooled_url)
    app.saga("only", on="orders").add_step("only", lambda _, message: seen.append(message.payload))
    other = Scoop("another", database=pooled_url)
    async with app.running(relay=False), other.running(worker=False):
        handle = await other.launch("orders", "from another process")
        await handle.wait(LONG)
    assert seen == ["from another process"]
    for one in (app, other):
        await one.close()


async def test_a_launch_joins_the_transaction_of_a_session_behind_it(pooled_url: str) -> None:
    seen: list[int] = []
    app = Scoop("shop", database=pooled_url)
    app.saga("only", on="orders").add_step("only", lambda _, message: seen.append(message.payload))
    engine = create_async_engine(
        make_url(pooled_url).set(drivername="postgresql+psycopg"), connect_args={"prepare_threshold": None}
    )
    async with app.running():
        async with AsyncSession(engine) as session:
            await app.launch("orders", 1, session=session)
            await session.rollback()
            for number in range(2, 12):
                await app.launch("orders", number, session=session)
                await session.commit()
        await until(lambda: len(seen) == 10, LONG)
    assert sorted(seen) == list(range(2, 12))
    await engine.dispose()
    await app.close()


async def test_a_worker_that_is_gone_is_taken_over_though_no_process_of_the_servers_stands_for_it(
    pooled_url: str, database_url: str
) -> None:
    seen: list[int] = []
    app = Scoop("shop", database=pooled_url)
    app.saga("only", on="orders").add_step("only", lambda _, message: seen.append(message.payload))
    with psycopg.connect(database_url, autocommit=True) as connection:
        async with app.running():
            (await (await app.launch("orders", 1)).wait(LONG))
            backends = connection.execute("select backend from scoop_outbox.worker").fetchall()
            connection.execute(ONE_THAT_IS_GONE)
            handles = [await app.launch("orders", number) for number in range(2, 12)]
            await asyncio.gather(*(handle.wait(LONG) for handle in handles))
    assert backends == [(None,)]
    assert sorted(seen) == list(range(1, 12))
    await app.close()


async def test_migrating_through_it_works_too(pooler: str, postgres_url: str) -> None:
    name = f"migrated_through_a_pooler_{secrets.token_hex(8)}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    try:
        app = Scoop("shop", database=make_url(pooler).set(database=name).render_as_string(hide_password=False))
        await app.migrate()
        app.saga("only", on="orders").add_step("only", lambda *_: None)
        async with app.running():
            await (await app.launch("orders", 1)).wait(LONG)
        await app.close()
    finally:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


async def test_one_that_lends_connections_for_a_session_is_no_hindrance(
    postgres_url: str, database_url: str, pooler: str
) -> None:
    with pgbouncer(postgres_url, mode="session", size=100) as through:
        url = make_url(through).set(database=make_url(database_url).database).update_query_dict({"pooler": "session"})
        app = Scoop("shop", database=url.render_as_string(hide_password=False))
        app.saga("only", on="orders").add_step("only", lambda *_: None)
        async with app.running():
            await (await app.launch("orders", 1)).wait(LONG)
            assert not service_of(app).home.pooled
            await until(lambda: service_of(app).hints.listening)
        await app.close()


def test_the_url_says_something_that_is_known() -> None:
    with pytest.raises(DatabaseError, match=r"says pooler=statement: use transaction or session"):
        Scoop("shop", database="postgresql://host/db?pooler=statement")


def test_a_connection_to_the_server_itself_is_known_as_such(database_url: str) -> None:
    home = service_of(Scoop("shop", database=database_url)).home
    with home.blocking_driver():
        assert home.pooled is False
    home.dispose_blocking()
