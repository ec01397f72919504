"""Creates and upgrades the tables with Alembic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from scoop_outbox.store.connect import blocking_engine, explained
from scoop_outbox.store.schema import DEFAULT_SCHEMA

# Two migrations at the same time would trip over each other; the number is arbitrary but must never change.
_LOCK = 0x5C00_0B0C


def migrate(url: str, schema: str = DEFAULT_SCHEMA) -> None:
    """Create or upgrade the tables. Safe to run from several places at once, and again at any time.

    Args:
        url: the database, as for `Scoop`.
        schema: the Postgres schema that holds the tables; it is created if it is not there.

    Raises:
        DatabaseError: the database cannot be reached, or its user may not create tables.
    """
    with _connection(url) as connection:
        connection.execute(sa.text("select pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        connection.execute(sa.schema.CreateSchema(schema, if_not_exists=True))
        config = _config(schema)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def revisions(url: str, schema: str = DEFAULT_SCHEMA) -> tuple[str | None, str | None]:
    """Return the revision that the database has, None if it was never migrated, and the one that this code needs.

    Raises:
        DatabaseError: the database cannot be reached.
    """
    with _connection(url) as connection:
        context = MigrationContext.configure(connection, opts={"version_table_schema": schema})
        return context.get_current_revision(), head()


def head() -> str | None:
    """Return the revision that this code needs."""
    return ScriptDirectory.from_config(_config(DEFAULT_SCHEMA)).get_current_head()


@contextmanager
def _connection(url: str) -> Iterator[sa.Connection]:
    engine = blocking_engine(url)
    try:
        with explained(url), engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def _config(schema: str) -> Config:
    config = Config()
    config.set_main_option("script_location", "scoop_outbox.store:migrations")
    config.attributes["schema"] = schema
    return config
