"""Launching in transactions of the caller's, whatever their driver, their settings and the database they lead to."""

import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from scoop_outbox import ConflictingMessage, DatabaseError, Draft, Message
from tests.scenarios.conftest import MakeShop
from tests.scenarios.shop import LONG, Shop

Joins = Callable[[str, str], AbstractAsyncContextManager[Any]]
JoinsBlocking = Callable[[str, str], AbstractContextManager[Any]]

BODY = bytes(range(256))
HEADERS = {"kind": "ž", "broken": "a\\b'c"}
SETTINGS = [
    "client_encoding=latin1",
    "client_encoding=sql_ascii",
    "standard_conforming_strings=off",
    "array_nulls=off",
    "datestyle=German",
    "default_transaction_isolation=serializable",
    "plan_cache_mode=force_custom_plan",
]
SET = "select set_config(%(name)s, %(value)s, false)"
SET_BY_SQLALCHEMY = sa.text("select set_config(:name, :value, false)")


def named(setting: str) -> dict[str, str]:
    """The parameters of SET."""
    name, _, value = setting.partition("=")
    return {"name": name, "value": value}


async def change(connection: Any, setting: str) -> None:
    if setting:
        await connection.execute(SET_BY_SQLALCHEMY, named(setting))
        await connection.commit()


def async_sqlalchemy(driver: str) -> Joins:
    @asynccontextmanager
    async def joined(url: str, setting: str) -> AsyncIterator[Any]:
        engine = create_async_engine(sa.make_url(url).set(drivername=f"postgresql+{driver}"))
        async with engine.connect() as connection:
            await change(connection, setting)
            async with AsyncSession(connection) as session:
                yield session
        await engine.dispose()

    return joined


@asynccontextmanager
async def async_scoped(url: str, setting: str) -> AsyncIterator[Any]:
    engine = create_async_engine(sa.make_url(url).set(drivername="postgresql+psycopg"))
    async with engine.connect() as connection:
        await change(connection, setting)
        session = async_scoped_session(async_sessionmaker(connection), scopefunc=lambda: 1)
        yield session
        await session.remove()
    await engine.dispose()


@asynccontextmanager
async def async_psycopg(url: str, setting: str) -> AsyncIterator[Any]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        if setting:
            await connection.execute(SET, named(setting))
            await connection.commit()
        yield connection


def blocking_sqlalchemy(driver: str, *, scoped: bool = False) -> JoinsBlocking:
    @contextmanager
    def joined(url: str, setting: str) -> Iterator[Any]:
        engine = sa.create_engine(sa.make_url(url).set(drivername=f"postgresql+{driver}"))
        with engine.connect() as connection:
            if setting:
                connection.execute(SET_BY_SQLALCHEMY, named(setting))
                connection.commit()
            session: Any = scoped_session(sessionmaker(connection)) if scoped else Session(connection)
            yield session
            session.close()
        engine.dispose()

    return joined


@contextmanager
def blocking_psycopg(url: str, setting: str) -> Iterator[Any]:
    with psycopg.connect(url) as connection:
        if setting:
            connection.execute(SET, named(setting))
            connection.commit()
        yield connection


ASYNC = {
    "psycopg": async_psycopg,
    "sqlalchemy on psycopg": async_sqlalchemy("psycopg"),
    "sqlalchemy on asyncpg": async_sqlalchemy("asyncpg"),
    "async_scoped_session": async_scoped,
}
BLOCKING = {
    "psycopg": blocking_psycopg,
    "sqlalchemy on psycopg": blocking_sqlalchemy("psycopg"),
    "sqlalchemy on psycopg2": blocking_sqlalchemy("psycopg2"),
    "scoped_session": blocking_sqlalchemy("psycopg2", scoped=True),
}


def by_name(kinds: Mapping[str, object]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("join", kinds.values(), ids=kinds)


def declare(shop: Shop) -> list[Message]:
    seen: list[Message] = []
    shop.app.saga("root", on="ž").add_step("look", lambda _, message: seen.append(message))
    return seen


@pytest.mark.builtin("Kafka refuses the name of the topic")
@by_name(ASYNC)
@pytest.mark.parametrize("setting", ["", *SETTINGS])
async def test_a_launch_arrives_as_it_is(make_shop: MakeShop, database_url: str, join: Joins, setting: str) -> None:
    shop = make_shop("shop")
    seen = declare(shop)
    launch = shop.app.launch
    async with shop.running():
        async with join(database_url, setting) as session:
            gone = await launch("ž", b"gone", session=session)
            await session.rollback()
            kept = await launch(
                "ž", BODY, key="č", headers=HEADERS, session=session, require_handlers=True, handled_by=["root"]
            )
            await session.commit()
        await kept.wait(LONG)
    assert [(message.id, message.body, message.key) for message in seen] == [(kept.id, BODY, "č")]
    assert {name: seen[0].headers[name] for name in HEADERS} == HEADERS
    assert gone.id != kept.id


@pytest.mark.builtin("Kafka refuses the name of the topic")
@by_name(BLOCKING)
@pytest.mark.parametrize("setting", ["", *SETTINGS])
async def test_a_blocking_launch_arrives_as_it_is(
    make_shop: MakeShop, database_url: str, join: JoinsBlocking, setting: str
) -> None:
    shop = make_shop("shop")
    seen = declare(shop)
    async with shop.running():
        with join(database_url, setting) as session:
            shop.app.launch_sync("ž", b"gone", session=session)
            session.rollback()
            kept = shop.app.launch_sync(
                "ž", BODY, key="č", headers=HEADERS, session=session, require_handlers=True, handled_by=["root"]
            )
            session.commit()
        await kept.wait(LONG)
    assert [(message.id, message.body, message.key) for message in seen] == [(kept.id, BODY, "č")]


@by_name(ASYNC)
async def test_a_session_of_another_database_is_refused(
    make_shop: MakeShop, postgres_url: str, other_home: str, join: Joins
) -> None:
    shop = make_shop("shop")
    declare(shop)
    for url, reason in ((postgres_url, "has no tables of scoop_outbox"), (other_home, "is another home")):
        async with join(url, "") as session:
            with pytest.raises(DatabaseError, match=reason) as refused:
                await shop.app.launch("ž", None, session=session)
            assert repr(sa.make_url(url).database) in str(refused.value)
            await session.commit()  # nothing is broken


@by_name(BLOCKING)
async def test_a_blocking_session_of_another_database_is_refused(
    make_shop: MakeShop, postgres_url: str, other_home: str, join: JoinsBlocking
) -> None:
    shop = make_shop("shop")
    declare(shop)
    for url, reason in ((postgres_url, "has no tables of scoop_outbox"), (other_home, "is another home")):
        with join(url, "") as session:
            with pytest.raises(DatabaseError, match=reason):
                shop.app.launch_sync("ž", None, session=session)
            session.commit()


async def test_a_session_in_autocommit_is_refused(make_shop: MakeShop, database_url: str) -> None:
    shop = make_shop("shop")
    declare(shop)
    refused = pytest.raises(DatabaseError, match="in autocommit and in no transaction")
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        with refused:
            await shop.app.launch("ž", None, session=connection)
        async with connection.transaction():
            await shop.app.launch("ž", None, session=connection)
    for driver in ("psycopg", "psycopg2"):
        url = sa.make_url(database_url).set(drivername=f"postgresql+{driver}")
        engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connected:
            with refused:
                shop.app.launch_sync("ž", None, session=connected)
            assert not connected.in_transaction()
        engine.dispose()
    for driver in ("psycopg", "asyncpg"):
        url = sa.make_url(database_url).set(drivername=f"postgresql+{driver}")
        async_engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
        async with async_engine.connect() as joined:
            with refused:
                await shop.app.launch("ž", None, session=joined)
        await async_engine.dispose()


@by_name(ASYNC)
async def test_a_home_that_was_made_anew_is_the_services_own(
    make_shop: MakeShop, database_url: str, join: Joins
) -> None:
    shop = make_shop("shop")
    declare(shop)
    async with join(database_url, "") as session:
        await shop.app.launch("ž", 1, session=session)
        await session.commit()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("update scoop_outbox.home set id = gen_random_uuid()")
    async with join(database_url, "") as session:
        await shop.app.launch("ž", 2, session=session)
        await session.commit()


@by_name(BLOCKING)
def test_tables_and_permissions_that_are_missing_are_explained_whatever_the_driver(
    make_shop: MakeShop, database_url: str, join: JoinsBlocking
) -> None:
    shop = make_shop("shop")
    declare(shop)
    shop.app.launch_sync("ž", 0)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("alter table scoop_outbox.launched rename to gone")
    with join(database_url, "") as session:
        with pytest.raises(DatabaseError, match="lacks the tables of scoop_outbox"):
            shop.app.launch_sync("ž", 1, id=uuid.uuid4(), session=session)
        session.rollback()


async def test_a_session_of_another_kind_of_database_is_refused(make_shop: MakeShop) -> None:
    shop = make_shop("shop")
    declare(shop)
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection, pytest.raises(DatabaseError, match="the session is one of sqlite"):
        shop.app.launch_sync("ž", None, session=connection)
    engine.dispose()


@pytest.fixture
def other_home(postgres_url: str, template_database: str) -> Iterator[str]:
    """A database with tables of ours that belongs to somebody else."""
    name = f"other_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        names = (sql.Identifier(name), sql.Identifier(template_database))
        admin.execute(sql.SQL("create database {} template {}").format(*names))
        url = sa.make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
        with psycopg.connect(url) as connection:
            connection.execute("update scoop_outbox.home set id = gen_random_uuid()")
        yield url
        admin.execute(sql.SQL("drop database {} with (force)").format(names[0]))


@by_name(BLOCKING)
async def test_ids_of_the_callers_and_many_at_once_join_every_session(
    make_shop: MakeShop, database_url: str, join: JoinsBlocking
) -> None:
    shop = make_shop("shop")
    seen = declare(shop)
    drafts = [Draft("ž", number, key="č", id=uuid.uuid4()) for number in range(5)]
    async with shop.running():
        with join(database_url, "client_encoding=latin1") as session:
            first = shop.app.launch_many_sync(drafts, session=session)
            again = shop.app.launch_many_sync(drafts, session=session)
            with pytest.raises(ConflictingMessage):
                shop.app.launch_sync("ž", "another", id=drafts[0].id, session=session)
            session.commit()
        for handle in first:
            await handle.wait(LONG)
    assert [handle.id for handle in first] == [handle.id for handle in again]
    assert sorted(message.payload for message in seen) == list(range(5))
