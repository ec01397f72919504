"""Creates and upgrades the tables with Alembic."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from scoop_outbox.errors import DatabaseError
from scoop_outbox.store.connect import blocking_engine, explained
from scoop_outbox.store.schema import DEFAULT_SCHEMA, checked_schema
from scoop_outbox.store.url import shown

log = logging.getLogger(__name__)

# Two migrations at the same time would trip over each other; the number is arbitrary but must never change.
_LOCK = 0x5C00_0B0C


def migrate(url: str, schema: str = DEFAULT_SCHEMA) -> None:
    """Create or upgrade the tables. Safe to run from several places at once, and again at any time.

    Args:
        url: the database, as for `Scoop`.
        schema: the Postgres schema that holds the tables; it is created if it is not there.

    Raises:
        DefinitionError: the schema's name cannot be used.
        DatabaseError: the database cannot be reached, or its user may not create tables.
    """
    checked_schema(schema)
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


def check(revision: str | None, url: str) -> None:
    """Refuse a database that is older than this code.

    One that is newer is only warned of: while a new version is deployed, migrated first, the old one goes on.

    Args:
        revision: what the database has, None if its migration has been interrupted.
        url: the database, for the message.

    Raises:
        DatabaseError: the database has to be migrated.
    """
    script = ScriptDirectory.from_config(_config(DEFAULT_SCHEMA))
    needed = script.get_current_head()
    if revision == needed:
        return
    if revision is None or revision in {known.revision for known in script.walk_revisions()}:
        raise DatabaseError(
            f"the database {shown(url)} is at revision {revision}, but this version of scoop_outbox needs {needed}: "
            "run `scoop-outbox migrate --database URL`, or `await app.migrate()`"
        )
    log.warning("the database is at revision %s, which is newer than this code; it knows %s", revision, needed)


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
