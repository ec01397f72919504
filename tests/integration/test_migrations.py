"""Migrations: what they make is what the code declares, wherever, whenever and by however many they are run."""

import asyncio
import logging
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from psycopg import sql
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from scoop_outbox import DatabaseError, DefinitionError, RunState, Scoop
from scoop_outbox.app import service_of
from scoop_outbox.failure import Failure, Frame
from scoop_outbox.store import migrate as migrations
from scoop_outbox.store import revisions
from scoop_outbox.store.connect import blocking_engine
from scoop_outbox.store.schema import DEFAULT_SCHEMA, SHARDS, tables
from scoop_outbox.store.url import parse_url

HEAD = revisions.head()
OLD = ("message", "run", "step", "child")

SCHEMAS = [DEFAULT_SCHEMA, "Odd Name", "o'clock", 'say "hi"', "select", "größe", "50% %(off)s", "x" * 63]


@pytest.fixture
def empty_url(postgres_url: str) -> Iterator[str]:
    """The URL of a database that was never migrated."""
    name = f"scoop_outbox_empty_{secrets.token_hex(8)}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {} template template0").format(sql.Identifier(name)))
    yield make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@contextmanager
def connected(url: str) -> Iterator[sa.Connection]:
    engine = blocking_engine(url)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def ask(url: str, question: str, *values: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(question.encode(), values).fetchall()


# Everything that the server knows about the tables of a schema, except the name of the schema itself.
CATALOGUE = {
    "options": "select relname, relkind, reloptions from pg_class where relnamespace = %s::regnamespace",
    "columns that the planner is told of": "select c.relname, a.attname, a.attoptions from pg_attribute a "
    "join pg_class c on c.oid = a.attrelid where c.relnamespace = %s::regnamespace and a.attoptions is not null",
    "columns": """
        select c.relname, a.attname, a.attnum, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
               pg_get_expr(d.adbin, d.adrelid)
        from pg_attribute a join pg_class c on c.oid = a.attrelid
        left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
        where c.relnamespace = %s::regnamespace and c.relkind = 'r' and a.attnum > 0""",
    "indexes": """
        select c.relname, replace(pg_get_indexdef(c.oid), i.indrelid::regclass::text, 't'), i.indisunique,
               i.indisprimary
        from pg_class c join pg_index i on i.indexrelid = c.oid where c.relnamespace = %s::regnamespace""",
    "constraints": """
        select c.relname, x.conname, pg_get_constraintdef(x.oid)
        from pg_constraint x join pg_class c on c.oid = x.conrelid where c.relnamespace = %s::regnamespace""",
    "sequences": """
        select c.relname, s.seqtypid::regtype::text, s.seqstart, s.seqincrement, s.seqcache, s.seqcycle
        from pg_sequence s join pg_class c on c.oid = s.seqrelid where c.relnamespace = %s::regnamespace""",
}


def catalogue(url: str, schema: str) -> dict[str, list[str]]:
    quoted = '"' + schema.replace('"', '""') + '"'
    return {
        what: sorted(str(row) for row in ask(url, question, quoted) if not row[0].startswith("alembic_version"))
        for what, question in CATALOGUE.items()
    }


def test_the_migrated_database_is_what_the_code_declares(database_url: str) -> None:
    with connected(database_url) as connection:
        connection.execute(sa.schema.CreateSchema("declared"))
        tables("declared").create_all(connection)
    migrated, declared = catalogue(database_url, DEFAULT_SCHEMA), catalogue(database_url, "declared")
    for what, rows in declared.items():
        assert migrated[what] == rows, what
    assert len(declared["columns"]) > 50


def test_alembic_finds_nothing_to_change(database_url: str) -> None:
    def ours(name: str | None, kind: str, parents: Any) -> bool:
        return kind != "schema" or name == DEFAULT_SCHEMA

    options = {
        "include_schemas": True,
        "include_name": ours,
        "version_table_schema": DEFAULT_SCHEMA,
        "compare_type": True,
        "compare_server_default": True,
    }
    with connected(database_url) as connection:
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, tables(DEFAULT_SCHEMA)) == []


def test_how_the_tables_are_stored(database_url: str) -> None:
    rows = ask(
        database_url,
        "select relname, reloptions from pg_class where relnamespace = %s::regnamespace and reloptions is not null",
        DEFAULT_SCHEMA,
    )
    queue = {
        "vacuum_truncate=false",
        "autovacuum_vacuum_scale_factor=0",
        "autovacuum_vacuum_threshold=5000",
        "autovacuum_vacuum_cost_delay=0",
    }
    assert {name: set(options) for name, options in rows} == {
        "outbox": queue,
        "mailbox": queue,
        "lane_entry": queue,
        "run": {"fillfactor=80"},
        "child": {"fillfactor=80"},
    }
    # A sequence that hands out numbers in advance would break the order of the outbox.
    sequences = ask(
        database_url, "select sequencename, cache_size from pg_sequences where schemaname = %s", DEFAULT_SCHEMA
    )
    numbered = (
        "outbox_seq_seq",
        "mailbox_id_seq",
        "dead_letter_id_seq",
        "saga_version_number_seq",
        "lane_entry_seq_seq",
        "request_id_seq",
    )
    assert dict(sequences) == dict.fromkeys(numbered, 1)


def test_a_new_database_has_an_identity_and_free_shards(database_url: str) -> None:
    assert len(ask(database_url, "select id from scoop_outbox.home")) == 1
    shards = ask(database_url, "select shard, owner, epoch from scoop_outbox.outbox_shard order by shard")
    assert shards == [(number, None, 0) for number in range(SHARDS)]


def test_migrating_again_changes_nothing(database_url: str) -> None:
    before = catalogue(database_url, DEFAULT_SCHEMA), ask(database_url, "select id from scoop_outbox.home")
    assert migrations.migrate(database_url) == HEAD
    assert (catalogue(database_url, DEFAULT_SCHEMA), ask(database_url, "select id from scoop_outbox.home")) == before
    assert ask(database_url, "select version_num from scoop_outbox.alembic_version") == [(HEAD,)]


def test_the_code_knows_the_revisions_that_alembic_does() -> None:
    script = migrations._script()
    assert list(revisions.known()) == [one.revision for one in script.walk_revisions()][::-1]
    assert script.get_current_head() == HEAD


def test_several_may_migrate_at_once(empty_url: str) -> None:
    errors: list[BaseException] = []
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        try:
            migrations.migrate(empty_url)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test shows it
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(ask(empty_url, "select id from scoop_outbox.home")) == 1


@pytest.mark.parametrize("schema", SCHEMAS)
async def test_another_schema_works_from_launch_to_end(empty_url: str, schema: str) -> None:
    app = Scoop("shop", database=empty_url, schema=schema)
    saga = app.saga("place-order", on="orders")

    @saga.step
    async def first(scope: Any, message: Any) -> None:
        scope.launch("child", 1)

    child = app.saga("child", on="child")

    @child.step
    def only(scope: Any, message: Any) -> None: ...

    await app.migrate()
    await app.migrate()
    async with app.running():
        handle = await app.launch("orders", 1)
        await handle.wait(20)
    assert {run.state for run in (await app.status(handle.id)).runs} == {RunState.COMMITTED}
    await app.close()


@pytest.mark.parametrize("schema", ["x" * 64, "🛒" * 16, "", "a\0b", "\ud800"])
def test_a_schema_that_postgres_would_not_take_as_it_is_is_refused(database_url: str, schema: str) -> None:
    with pytest.raises(DefinitionError, match="schema name"):
        Scoop("shop", database=database_url, schema=schema)
    with pytest.raises(DefinitionError, match="schema name"):
        migrations.migrate(database_url, schema)


def test_two_schemas_in_one_database_do_not_meet(database_url: str) -> None:
    migrations.migrate(database_url, "other")
    one, other = Scoop("shop", database=database_url), Scoop("shop", database=database_url, schema="other")
    one.launch_sync("orders", 1)
    assert len(ask(database_url, "select from scoop_outbox.outbox")) == 1
    assert len(ask(database_url, "select from other.outbox")) == 0
    for app in (one, other):
        app.close_sync()


def an_app(url: str, *, sagas: bool) -> Scoop:
    app = Scoop("shop", database=url)
    if sagas:
        app.saga("place-order", on="orders").add_step("first", lambda scope, message: None)
    return app


UNMIGRATED = r"lacks the tables of scoop_outbox: run `scoop-outbox migrate --database URL`"


@pytest.mark.parametrize("sagas", [True, False])
async def test_an_unmigrated_database_says_what_to_do(empty_url: str, sagas: bool) -> None:
    app = an_app(empty_url, sagas=sagas)
    with pytest.raises(DatabaseError, match=UNMIGRATED):
        await app.launch("orders", 1)
    with pytest.raises(DatabaseError, match=UNMIGRATED):
        await asyncio.to_thread(app.launch_sync, "orders", 1)
    with pytest.raises(DatabaseError, match=UNMIGRATED):
        async with app.running():
            pass
    with pytest.raises(DatabaseError, match=UNMIGRATED):
        await app.status(service_of(app).home.process_id)
    with pytest.raises(DatabaseError, match=UNMIGRATED):
        await app.handle(service_of(app).home.process_id).wait(1)
    await app.close()


@pytest.mark.parametrize("sagas", [True, False])
async def test_an_unmigrated_database_says_what_to_do_when_a_transaction_is_joined(empty_url: str, sagas: bool) -> None:
    app = an_app(empty_url, sagas=sagas)
    engine = create_async_engine(parse_url(empty_url))
    async with engine.connect() as connection:
        with pytest.raises(DatabaseError, match=UNMIGRATED):
            await app.launch("orders", 1, session=connection)
    await engine.dispose()
    with connected(empty_url) as blocking, pytest.raises(DatabaseError, match=UNMIGRATED):
        app.launch_sync("orders", 1, session=blocking)
    await app.close()


def set_revision(url: str, revision: str | None) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("delete from scoop_outbox.alembic_version")
        if revision is not None:
            connection.execute("insert into scoop_outbox.alembic_version values (%s)", (revision,))


async def test_a_database_that_is_older_than_the_code_is_refused(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = an_app(database_url, sagas=True)
    set_revision(database_url, None)
    with pytest.raises(DatabaseError, match=rf"at revision None, but .* needs {HEAD}: run `scoop-outbox migrate"):
        async with app.running():
            pass
    set_revision(database_url, HEAD)
    with monkeypatch.context() as patched:
        patched.setattr(revisions, "known", lambda: (HEAD, "9999"))
        with pytest.raises(DatabaseError, match=rf"at revision {HEAD}, but .* needs 9999: run `scoop-outbox migrate"):
            async with app.running():
                pass
    async with app.running():
        pass
    await app.close()


async def test_a_database_that_is_newer_than_the_code_is_warned_of(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    set_revision(database_url, "9999")
    app = an_app(database_url, sagas=True)
    with caplog.at_level(logging.WARNING):
        async with app.running():
            await (await app.launch("orders", 1)).wait(20)
    assert "database: newer than this code (revision 9999; " in caplog.text
    await app.close()
    caplog.clear()
    assert migrations.migrate(database_url) == "9999"
    assert "database: newer than this code (revision 9999; " in caplog.text


def test_a_user_who_may_not_create_tables_is_told(empty_url: str) -> None:
    role = password = f"reader_{secrets.token_hex(4)}"
    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute(sql.SQL("create role {} login password {}").format(sql.Identifier(role), password))
    url = make_url(empty_url).set(username=role, password=password).render_as_string(hide_password=False)
    try:
        with pytest.raises(DatabaseError, match="permission denied") as error:
            migrations.migrate(url)
        assert f":{password}@" not in str(error.value)
    finally:
        with psycopg.connect(empty_url, autocommit=True) as connection:
            connection.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


@pytest.mark.parametrize("schema", [DEFAULT_SCHEMA, "50% %(off)s"])
async def test_failures_that_were_documents_become_rows_and_stay_what_they_were(empty_url: str, schema: str) -> None:
    below = Failure("Below", None, "child[1]", (Frame("f.py", 1, "m", "f"),))
    texts = ["plain", 'nul \0, lone \ud800, "quoted", \\ and "message": "no"', "x" * 5000, None]
    failures = [Failure("shop.Odd", text, "root[1]", causes=(below,)) for text in texts]
    with connected(empty_url) as connection:
        connection.execute(sa.schema.CreateSchema(schema))
        config = migrations._config(schema)
        config.attributes["connection"] = connection
        command.upgrade(config, "0005")
        rows = {name: sa.Table(name, sa.MetaData(), schema=schema, autoload_with=connection) for name in OLD}
        for number, failure in enumerate(failures):
            one = uuid4()
            document = failure.to_json()
            known = {"service": "shop", "saga": "root", "message_id": one}
            connection.execute(rows["message"].insert().values(
                id=one, topic="t", body=b"1", content_type="x", headers={}))  # fmt: skip
            connection.execute(rows["run"].insert().values(
                **known, id=one, lineage=[one], state="rolled_back", failure=document))  # fmt: skip
            connection.execute(rows["step"].insert().values(
                run_id=one, seq=number, step="s", kind="step", iteration=0, attempt=0, state="failed", failure=document,
                started_at=sa.func.now(), ended_at=sa.func.now(), worker="w"))  # fmt: skip
            connection.execute(rows["child"].insert().values(
                **known, run_id=uuid4(), seq=1, ordinal=1, state="rolled_back", failure=document))  # fmt: skip
        messages = list(connection.execute(sa.select(rows["run"].c.id)).scalars())
    migrations.migrate(empty_url, schema)

    app = Scoop("shop", database=empty_url, schema=schema)
    statuses = [await app.status(message) for message in messages]
    await app.close()
    assert [status.runs[0].failure for status in statuses] == failures
    assert [status.runs[0].steps[0].failure for status in statuses] == failures
    assert all(failure.causes == (below,) for failure in failures)
    quoted = '"' + schema.replace("%", "%%") + '"'
    found = ask(empty_url, f"select type, source, message from {quoted}.failure where %s", True)  # noqa: S608
    assert {row[:2] for row in found} == {("shop.Odd", "root[1]")}
    assert len(found) == 12
    assert {len(row[2]) for row in found if row[2] is not None and row[2].startswith("x")} == {200}
    assert sum(row[2] is None for row in found) == 3
