"""Migrating: no right that is not used, nobody kept waiting for long, and a word about who is in the way."""

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import LiteralString

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from psycopg import sql
from sqlalchemy import make_url

from scoop_outbox import DatabaseError, DefinitionError, Scoop
from scoop_outbox.store import migrate as migrations
from scoop_outbox.store import revisions
from scoop_outbox.store.blockers import Blocker
from scoop_outbox.store.connect import blocking_engine
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from tests.waiting import until_blocking

KNOWN = revisions.known()
DECLARED = [migrations._script().get_revision(known).module.locks for known in KNOWN]
LOCKING = max(place for place, locks in enumerate(DECLARED) if locks)
"""The last revision that locks a table."""
BEFORE, LAST, LOCKED = KNOWN[LOCKING - 1], KNOWN[-1], DECLARED[LOCKING][0]
REPORT = "nightly report"


@pytest.fixture
def empty_url(postgres_url: str) -> Iterator[str]:
    """The URL of a database that was never migrated."""
    name = f"scoop_outbox_empty_{secrets.token_hex(8)}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {} template template0").format(sql.Identifier(name)))
    yield make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def role(empty_url: str) -> Iterator[str]:
    """A role that may nothing in the database but connect."""
    name = f"limited_{secrets.token_hex(4)}"
    with psycopg.connect(empty_url, autocommit=True) as admin:
        admin.execute(sql.SQL("create role {} login password {}").format(sql.Identifier(name), name))
    yield name
    with psycopg.connect(empty_url, autocommit=True) as admin:
        admin.execute(sql.SQL("drop owned by {} cascade").format(sql.Identifier(name)))
        admin.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


def as_role(url: str, role: str) -> str:
    return make_url(url).set(username=role, password=role).render_as_string(hide_password=False)


def execute(url: str, statement: LiteralString, *names: str) -> None:
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


def revision(url: str) -> str:
    with psycopg.connect(url) as connection:
        row = connection.execute("select version_num from scoop_outbox.alembic_version").fetchone()
    assert row is not None
    return str(row[0])


@contextmanager
def connected(url: str) -> Iterator[sa.Connection]:
    engine = blocking_engine(url)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def at(connection: sa.Connection) -> Config:
    config = migrations._config(DEFAULT_SCHEMA)
    config.attributes["connection"] = connection
    return config


@pytest.fixture
def old_url(empty_url: str) -> str:
    """The URL of a database that lacks the last revision."""
    with connected(empty_url) as connection:
        connection.execute(sa.schema.CreateSchema(DEFAULT_SCHEMA))
        command.upgrade(at(connection), BEFORE)
    return empty_url


@contextmanager
def somebody_uses(url: str, table: str) -> Iterator[psycopg.Connection]:
    """Have somebody in a transaction that has used a table of ours, and does not end."""
    with psycopg.connect(url, application_name=REPORT) as connection:
        connection.execute(
            sql.SQL("select 's3cr3t' from scoop_outbox.{}").format(sql.Identifier(table)),
        )
        yield connection


# Rights ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prepared",
    [
        "create schema scoop_outbox authorization {}",
        "create schema scoop_outbox; grant usage, create on schema scoop_outbox to {}",
    ],
)
async def test_a_schema_that_is_there_takes_the_right_to_create_in_it_and_no_other(
    empty_url: str, role: str, prepared: LiteralString
) -> None:
    for statement in prepared.split("; "):
        execute(empty_url, statement, *([role] if "{}" in statement else []))
    app = Scoop("limited", database=as_role(empty_url, role))
    app.saga("one", on="ones").add_step("only", lambda scope, message: None)
    await app.migrate()
    async with app.running():
        await (await app.launch("ones", None)).wait(20)
    await app.migrate()


def test_a_run_with_nothing_to_do_takes_the_right_to_read_the_revision_and_no_other(empty_url: str, role: str) -> None:
    migrations.migrate(empty_url)
    reader = as_role(empty_url, role)
    with pytest.raises(DatabaseError, match="permission denied for schema scoop_outbox"):
        migrations.migrate(reader)
    execute(empty_url, "grant usage on schema scoop_outbox to {}", role)
    execute(empty_url, "grant select on scoop_outbox.alembic_version to {}", role)
    assert migrations.migrate(reader) == LAST


def test_who_may_not_create_the_schema_is_told_what_it_takes(empty_url: str, role: str) -> None:
    with pytest.raises(DatabaseError, match=r"permission denied for database .*create on their schema"):
        migrations.migrate(as_role(empty_url, role))


# Waiting -----------------------------------------------------------------------------------------------------------


def test_nobody_waits_behind_a_migration_that_waits(old_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with ThreadPoolExecutor(1) as pool, somebody_uses(old_url, LOCKED) as report:
        migrating = pool.submit(migrations.migrate, old_url)
        try:
            until_blocking(lambda: "migration: waiting for tables in use" in caplog.text, timeout=60)
            for _ in range(5):
                # Who comes later gets the table, although the report has it all the time.
                with psycopg.connect(old_url, options="-c statement_timeout=60s") as other:
                    other.execute(sql.SQL("select from scoop_outbox.{}").format(sql.Identifier(LOCKED)))
            assert not migrating.done()
            assert revision(old_url) == BEFORE
        finally:
            report.rollback()
        assert migrating.result(60) == LAST
    assert revision(old_url) == LAST


def test_who_is_in_the_way_is_named_and_not_what_they_execute(
    old_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "_LONGEST_PAUSE", 0.1)
    with somebody_uses(old_url, LOCKED) as report:
        with pytest.raises(DatabaseError, match="were in use for 3 s") as gave_up:
            migrations.migrate(old_url, wait=3)
        pid = report.info.backend_pid
    for text in (str(gave_up.value), caplog.text):
        assert f"pid {pid} (application 'nightly report', user 'postgres', idle in transaction" in text
        assert "in a transaction since 20" in text
        assert "s3cr3t" not in text
    assert revision(old_url) == BEFORE
    # It is said once, not at each try.
    assert caplog.text.count("migration: waiting") == 1
    migrations.migrate(old_url)


def test_who_may_not_see_more_is_told_so(old_url: str, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "_LONGEST_PAUSE", 0.1)
    execute(old_url, "alter schema scoop_outbox owner to {}", role)
    for table in (LOCKED, "alembic_version"):
        execute(old_url, "alter table scoop_outbox.{} owner to {}", table, role)
    with (
        somebody_uses(old_url, LOCKED) as report,
        pytest.raises(DatabaseError, match=f"pid {report.info.backend_pid} .*pg_read_all_stats"),
    ):
        migrations.migrate(as_role(old_url, role), wait=3)


def test_another_migration_is_waited_for_and_named(old_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "_LONGEST_PAUSE", 0.1)
    with connected(old_url) as other:
        other.execute(sa.select(sa.func.pg_advisory_xact_lock(migrations._LOCK)))
        with pytest.raises(DatabaseError, match="application 'scoop_outbox migrate'"):
            migrations.migrate(old_url, wait=3)


@pytest.mark.parametrize("wrong", [{"wait": -1.0}, {"lock_timeout": 0.0}])
def test_times_that_make_no_sense_are_refused(old_url: str, wrong: dict[str, float]) -> None:
    with pytest.raises(DefinitionError, match="lock_timeout="):
        migrations.migrate(old_url, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "blocker, says",
    [
        (Blocker(0), "a prepared transaction (see pg_prepared_xacts)"),
        (Blocker(7, "", "bob"), "pid 7 (no application name, user 'bob', our user may not see more: grant it pg_re"),
        (Blocker(7, "", None, "autovacuum worker"), "pid 7 (autovacuum worker)"),
    ],
)
def test_who_is_in_the_way_in_words(blocker: Blocker, says: str) -> None:
    assert str(blocker).startswith(says)


# Locks -------------------------------------------------------------------------------------------------------------

LOCKS = """
    select c.oid, c.relname from pg_locks l join pg_class c on c.oid = l.relation
    where l.pid = pg_backend_pid() and c.relkind = 'r' and c.relnamespace = 'scoop_outbox'::regnamespace
      and l.mode not in ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock')
"""
TABLES = "select oid, relname from pg_class where relkind = 'r' and relnamespace = 'scoop_outbox'::regnamespace"


def names(connection: sa.Connection, question: str) -> dict[int, str]:
    return {row[0]: row[1] for row in connection.exec_driver_sql(question)}


def test_every_lock_of_a_revision_is_asked_for_before_anything_is_changed(empty_url: str) -> None:
    script = migrations._script()
    with connected(empty_url) as connection:
        connection.execute(sa.schema.CreateSchema(DEFAULT_SCHEMA))
    for one in revisions.known():
        with connected(empty_url) as connection:
            there = names(connection, TABLES)
            command.upgrade(at(connection), one)
            # A table that was renamed is locked under the name that it had.
            locked = {there[oid] for oid in names(connection, LOCKS) if oid in there}
        assert locked == set(script.get_revision(one).module.locks), one
