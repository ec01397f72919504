"""Fixtures that give every test a database of its own, on a real Postgres."""

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from psycopg import sql
from sqlalchemy import make_url

from scoop_outbox.testing import servers_required
from scoop_outbox.testing.postgres import DATABASE_URL, PostgresNotFoundError, postgres_for_tests

# How long an example takes depends on what else the machine does, and says nothing about the code.
settings.register_profile("scoop_outbox", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("scoop_outbox")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a role that may create databases; every worker process of pytest starts its own server."""
    with ExitStack() as stack:
        try:
            url = stack.enter_context(postgres_for_tests())
        except PostgresNotFoundError as error:
            if servers_required() or os.environ.get(DATABASE_URL):
                raise
            pytest.skip(str(error))
        yield url


@pytest.fixture(scope="session")
def template_database(postgres_url: str) -> Iterator[str]:
    """The name of a database that holds the current schema and nothing else; copy it, never connect to it."""
    # Not at the top: tests that need no database must not need the store either.
    from scoop_outbox.store.migrate import migrate  # noqa: PLC0415

    with _new_database(postgres_url, template="template0") as name:
        migrate(_url_of_database(postgres_url, name))
        yield name


@pytest.fixture
def database_url(postgres_url: str, template_database: str) -> Iterator[str]:
    """The URL of a fresh, migrated database; it is dropped after the test, whoever is still connected."""
    with _new_database(postgres_url, template=template_database) as name:
        yield _url_of_database(postgres_url, name)


@contextmanager
def _new_database(admin_url: str, *, template: str) -> Iterator[str]:
    # Test runs may share a server, so the name is random.
    name = f"scoop_outbox_test_{secrets.token_hex(8)}"
    database = sql.Identifier(name)
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(database, sql.Identifier(template))
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute(create)
    try:
        yield name
    finally:
        with psycopg.connect(admin_url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(database))


def _url_of_database(admin_url: str, name: str) -> str:
    return make_url(admin_url).set(database=name).render_as_string(hide_password=False)
