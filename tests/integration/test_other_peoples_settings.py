"""Settings of a database or a role are other people's: they decide neither whether sagas run nor what arrives."""

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url

from scoop_outbox import AsyncScope, DatabaseError, DistributedError, Message, Scoop
from scoop_outbox.app import service_of
from scoop_outbox.store import carrier as carrier_module
from tests.waiting import until

LONG = 30.0
BODY = bytes(range(256))
SETTINGS = [
    ("datestyle", "SQL, DMY"),
    ("datestyle", "German"),
    ("intervalstyle", "sql_standard"),
    ("bytea_output", "escape"),
    ("standard_conforming_strings", "off"),
    ("array_nulls", "off"),
    ("client_encoding", "latin1"),
    ("default_transaction_isolation", "serializable"),
    ("default_transaction_read_only", "on"),
    ("default_transaction_deferrable", "on"),
    ("timezone", "Asia/Kathmandu"),
    ("extra_float_digits", "-15"),
    ("search_path", ""),
    ("plan_cache_mode", "force_custom_plan"),
    ("transform_null_equals", "on"),
]

Database = Callable[..., str]


@pytest.fixture
def new_database(postgres_url: str) -> Iterator[Database]:
    """Makes databases that are not migrated, in the encoding that is asked for."""
    made: list[str] = []
    with psycopg.connect(postgres_url, autocommit=True) as admin:

        def make(encoding: str = "UTF8") -> str:
            made.append(f"scoop_outbox_test_{secrets.token_hex(8)}")
            create = sql.SQL("create database {} encoding {} template template0 locale 'C'")
            admin.execute(create.format(sql.Identifier(made[-1]), sql.Literal(encoding)))
            return make_url(postgres_url).set(database=made[-1]).render_as_string(hide_password=False)

        yield make
        for name in made:
            admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def set_for_all(connection: psycopg.Connection[Any], name: str, value: str) -> None:
    """Set what every new connection to this database begins with."""
    database = sql.Identifier(connection.info.dbname)
    change = sql.SQL("alter database {} set {} = {}").format(database, sql.Identifier(name), sql.Literal(value))
    connection.execute(change)


def service(url: str, seen: list[Any]) -> Scoop:
    app = Scoop("shop", database=url)
    order = app.saga("bestellung ž", on="orders")
    child = app.saga("child", on="children")

    @order.step
    async def one(scope: AsyncScope, message: Message) -> None:
        seen.append((message.body, message.key))
        scope.launch("children", {"name": "ž"}, key="č")

    @one.compensate
    async def undo(scope: AsyncScope, message: Message, error: Exception) -> None:
        seen.append("undone")

    @child.step
    def two(scope: Any, message: Message) -> None:
        seen.append((message.payload, message.key))

    @order.step
    async def three(scope: AsyncScope, message: Message) -> None:
        raise ValueError("to be rolled back → ž")

    return app


async def works(url: str) -> None:
    seen: list[Any] = []
    app = service(url, seen)
    async with app.running():
        handle = await app.launch("orders", BODY, key="č", headers={"h": "ž"})
        with pytest.raises(DistributedError, match="to be rolled back → ž"):
            await handle.wait(LONG)
        assert (await app.status(handle.id)) is not None
    await app.close()
    assert seen == [(BODY, "č"), ({"name": "ž"}, "č"), "undone"]


@pytest.mark.parametrize("name, value", SETTINGS)
async def test_bug_07_settings_of_a_database_are_no_hindrance(database_url: str, name: str, value: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        set_for_all(connection, name, value)
    await works(database_url)


async def test_bug_07_migrating_is_not_disturbed_by_settings_either(new_database: Database) -> None:
    url = new_database()
    with psycopg.connect(url, autocommit=True) as connection:
        for name, value in SETTINGS:
            if connection.info.server_version < 190000:
                set_for_all(connection, name, value)
    await Scoop("shop", database=url).migrate()
    await works(url)


async def test_limits_of_a_role_are_not_those_of_the_machinery(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        for limit in ("statement_timeout", "lock_timeout"):
            set_for_all(connection, limit, "100ms")
    app = Scoop("shop", database=database_url)
    show = "select current_setting('statement_timeout'), current_setting('lock_timeout')"
    async with service_of(app).home.driver() as driver:
        assert await (await driver.raw.execute(show)).fetchone() == ("50s", "20s")
    with service_of(app).home.blocking_driver() as blocking:
        assert blocking.raw.execute(show).fetchone() == ("50s", "20s")
    driver = await service_of(app).home.connect_for_steps()
    assert await (await driver.raw.execute(show)).fetchone() == ("100ms", "100ms")  # meant for the user's statements
    await driver.close()
    await app.close()


async def test_bug_07_a_database_in_sql_ascii_takes_utf_8_as_it_is(new_database: Database) -> None:
    url = new_database("SQL_ASCII")
    await Scoop("shop", database=url).migrate()
    await works(url)


async def test_bug_19_a_database_in_latin_1_is_refused_in_words(new_database: Database) -> None:
    url = new_database("LATIN1")
    app = Scoop("shop", database=url)
    with pytest.raises(
        DatabaseError, match="has the encoding LATIN1, which cannot store every text: use a database in UTF8"
    ):
        await app.migrate()
    with pytest.raises(DatabaseError, match="has the encoding LATIN1"):
        await app.launch("orders", 1)
    with pytest.raises(DatabaseError, match="has the encoding LATIN1"):
        app.launch_sync("orders", 1)


@contextmanager
def said_by(form: str, database_url: str) -> Iterator[str]:
    url = make_url(database_url)
    host, port = url.host, url.port
    if form == "libpq":
        text = url.set(host="several").render_as_string(hide_password=False)
        yield text.replace(f"several:{port}", f"127.0.0.1:1,{host}:{port}") + "?target_session_attrs=read-write"
    else:
        several = url.set(host=None, port=None).update_query_dict({"host": ["127.0.0.1:1", f"{host}:{port}"]})
        yield several.render_as_string(hide_password=False)


@pytest.mark.parametrize("form", ["libpq", "sqlalchemy"])
async def test_bug_09_several_hosts_serve_everything(database_url: str, form: str) -> None:
    with said_by(form, database_url) as url:
        app = Scoop("shop", database=url)
        app.saga("only", on="orders").add_step("only", lambda *_: None)
        await app.migrate()
        async with app.running():
            await (await app.launch("orders", 1)).wait(LONG)
            await asyncio.to_thread(app.launch_sync, "orders", 2)
            await until(lambda: service_of(app).hints.listening)
        await app.close()


async def test_a_connection_for_signals_that_cannot_be_had_is_a_warning(
    database_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "scoop_outbox.store.carrier")
    monkeypatch.setattr(carrier_module, "RECONNECT", 0.05)
    app = Scoop("shop", database=database_url)
    app.saga("only", on="orders").add_step("only", lambda *_: None)
    bare = service_of(app).home.connect_bare
    refused = psycopg.OperationalError("FATAL: too many connections")

    refusals = 0

    def connect(application: str) -> Any:
        nonlocal refusals
        refusals += 1
        raise refused

    monkeypatch.setattr(service_of(app).home, "connect_bare", connect)
    async with app.running():
        await (await app.launch("orders", 1)).wait(LONG)  # found by polling, or told directly
        await until(lambda: "notifier: not connected" in caplog.text)
        tried = refusals
        await until(lambda: refusals >= tried + 4)
        monkeypatch.setattr(service_of(app).home, "connect_bare", bare)
        await until(lambda: "notifier: connected again" in caplog.text)
    await app.close()
    said = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1  # once, not every time that it is tried
    assert "too many connections" in said[0].getMessage()
