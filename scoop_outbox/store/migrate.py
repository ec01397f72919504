"""Creates and upgrades the tables with Alembic, one revision a transaction, and keeps nobody waiting for long.

A lock that changes a table waits for everybody who uses that, and everybody who comes later waits behind it: one report
that takes an hour, and no message is launched for an hour. So all the locks of a revision are asked for before anything
is changed, and if they are not had in a moment, they are given up, and asked for again a little later.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta

import psycopg
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg import sql

from scoop_outbox._log import get_logger
from scoop_outbox.errors import DatabaseError, DefinitionError
from scoop_outbox.policy import seconds
from scoop_outbox.store import queries
from scoop_outbox.store.adaptation import ADAPTERS
from scoop_outbox.store.blockers import Blocker, Onlooker, told
from scoop_outbox.store.connect import blocking_engine, map_database_errors
from scoop_outbox.store.ddl import defining
from scoop_outbox.store.revisions import following, head, note_newer
from scoop_outbox.store.roles import grants, owner_of
from scoop_outbox.store.schema import DEFAULT_SCHEMA, checked_schema
from scoop_outbox.store.url import redact_url

log = get_logger(__name__)

# Two migrations at the same time would trip over each other; the number is arbitrary but must never change.
_LOCK = 0x5C00_0B0C

WAIT = 300.0
"""Seconds that locks are tried for, in all."""

LOCK_TIMEOUT = 2.0
"""Seconds for which others may wait behind locks that are asked for. Longer than the server waits (1 s, as a rule)
until it ends an autovacuum that is in the way."""

_FIRST = 0.5
"""Seconds of the first try. Each one is longer, up to the limit."""

_FREE = 2.0
"""The pause behind a try, in units of that try: others have their way for most of the time."""

_LONGEST_PAUSE = 5.0
_REMINDER = 30.0
"""Seconds until it is said again who is in the way."""


def migrate(
    url: str,
    schema: str = DEFAULT_SCHEMA,
    *,
    wait: float | timedelta = WAIT,
    lock_timeout: float | timedelta = LOCK_TIMEOUT,
    roles: str | None = None,
) -> str:
    """Create or upgrade the tables. Safe to run from several places at once, and again at any time.

    Each revision is a transaction: whatever happens, the tables are at a revision, and running it again goes on there.
    With nothing to do it only reads, and needs no other right.

    Args:
        url: the database, as for `Scoop`.
        schema: the Postgres schema that holds the tables; it is created if it is not there.
        wait: for how long it is tried to lock tables that others use, in seconds or as a `timedelta`. What is done once
            they are locked takes as long as it takes.
        lock_timeout: for how long at a time others may have to wait behind that.
        roles: what the names of the database's roles begin with. Everything is done as their owner, of which the user
            has to be a member, and in the end each is granted what it needs, of new tables, too.

    Returns:
        The revision that the database has now.

    Raises:
        DefinitionError: the schema's name cannot be used, or one of the times, or the name of the roles.
        DatabaseError: the database cannot be reached, its user may not create tables, or others used the tables all the
            time; it names them.
    """
    checked_schema(schema)
    attempts = _Attempts(url, seconds(wait), seconds(lock_timeout))
    engine = blocking_engine(url)
    if roles is not None:
        _become(engine, owner_of(roles))
    onlooker = Onlooker(engine, schema)
    try:
        with _explained(url), engine.connect() as connection:
            tables = _Tables(connection, schema)
            revision = _upgraded(tables, onlooker, attempts)
            if roles is not None:
                tables.grant(roles)
            return revision
    finally:
        onlooker.close()
        engine.dispose()


def _become(engine: sa.Engine, role: str) -> None:
    """Let every transaction be that of a role: behind a pooler, a session is not the same for long."""
    statement = sql.SQL("set local role {}").format(sql.Identifier(role)).as_bytes(ADAPTERS).decode().replace("%", "%%")

    @sa.event.listens_for(engine, "begin")
    def become(connection: sa.Connection) -> None:
        try:
            connection.exec_driver_sql(statement, {})
        except sa.exc.DataError as error:
            raise DatabaseError(
                f"there is no role {role}: an administrator of the database makes it with scoop-outbox roles print"
            ) from error


def _upgraded(tables: _Tables, onlooker: Onlooker, attempts: _Attempts) -> str:
    while True:
        revision = tables.revision()
        target = following(revision)
        if target is None:
            assert revision is not None  # noqa: S101 - else there is a first one to go to
            if revision != head():
                note_newer(revision)
            return revision
        began = time.monotonic()
        try:
            with tables.connection.begin():
                with onlooker.watching(tables.backend()):
                    deadline = tables.lock_migrations(attempts.limit)
                    # Somebody else may have been at it while this one waited, and a table may have another name now.
                    mine = tables.revision() == revision
                    if mine:
                        tables.lock_for(target, deadline)
                if mine:
                    tables.upgrade(target)
        except sa.exc.OperationalError as error:
            if not isinstance(error.orig, psycopg.errors.LockNotAvailable | psycopg.errors.DeadlockDetected):
                raise
            attempts.pause(time.monotonic() - began, target, onlooker.seen, error)


class _Attempts:
    """How long locks are tried for, and what is said meanwhile.

    Attributes:
        limit: how many seconds the next try may take.
    """

    def __init__(self, url: str, wait: float, lock_timeout: float) -> None:
        if wait < 0 or lock_timeout <= 0:
            raise DefinitionError(
                f"wait={wait:g}, lock_timeout={lock_timeout:g}: wait is at least 0, and lock_timeout is above 0"
            )
        self._url = url
        self._left = self._wait = wait
        self._longest = lock_timeout
        self._told: tuple[frozenset[int], float] = (frozenset(), float("inf"))
        self.limit = min(_FIRST, lock_timeout)

    def pause(self, taken: float, target: str, blockers: Sequence[Blocker], error: Exception) -> None:
        """Give others their way for a while, after a try that was in vain.

        Raises:
            DatabaseError: it has been tried for long enough.
        """
        self._left -= taken
        if self._left <= 0:
            raise DatabaseError(
                f"{redact_url(self._url)} was not migrated to revision {target}: its tables were in use for "
                f"{self._wait:g} s, by {told(blockers)}. It stays at the revision before, which works. End that "
                "transaction, or wait for its end, and repeat the migration: see docs/operations.md"
            ) from error
        self._tell(target, blockers)
        pause = min(self.limit * _FREE * random.uniform(0.75, 1.25), _LONGEST_PAUSE, self._left)
        self.limit = min(self.limit * 2, self._longest)
        time.sleep(pause)
        self._left -= pause

    def _tell(self, target: str, blockers: Sequence[Blocker]) -> None:
        who, left = self._told
        now = frozenset(blocker.pid for blocker in blockers)
        if now != who or left - self._left >= _REMINDER:
            self._told = now, self._left
            log.warning(
                "migration: waiting for tables in use (revision %s; in use by %s; trying for %.0f s more)",
                *(target, told(blockers), self._left),
                extra={"revision": target},
            )


class _Tables:
    """The tables of a schema, as one connection changes them."""

    def __init__(self, connection: sa.Connection, schema: str) -> None:
        self.connection = connection
        self._schema = schema
        self._queries = queries.load(schema)

    def backend(self) -> int:
        """Return the server process that works for the connection now; behind a pooler that is not always the same."""
        return int(str(self._ask(self._queries["read_backend"]).scalar()))

    def revision(self) -> str | None:
        """Return the revision that they have, in a transaction of its own unless one has begun."""
        with nullcontext() if self.connection.in_transaction() else self.connection.begin():
            context = MigrationContext.configure(self.connection, opts={"version_table_schema": self._schema})
            return context.get_current_revision()

    def lock_migrations(self, limit: float) -> float:
        """Take the lock of migrations; return by when all locks of this try have to be there (monotonic)."""
        deadline = time.monotonic() + limit
        self._limit(limit)
        self._ask(self._queries["lock_migrations"], lock=_LOCK)
        return deadline

    def lock_for(self, target: str, deadline: float) -> None:
        """Take all the locks on tables that a revision needs.

        In the order in which the engine's own transactions use the tables, so that it seldom comes to a deadlock.
        """
        for table in _script().get_revision(target).module.locks:
            self._limit(deadline - time.monotonic())
            statement = "lock table %(table)s in access exclusive mode"
            self.connection.execute(defining(statement, self.connection, self._schema, table))

    def upgrade(self, target: str) -> None:
        """Bring them to a revision, in the transaction that has begun."""
        if target == following(None) and not self._ask(self._queries["read_schema_exists"], name=self._schema).scalar():
            self.connection.execute(sa.schema.CreateSchema(self._schema))
        config = _config(self._schema)
        config.attributes["connection"] = self.connection
        command.upgrade(config, target)

    def grant(self, roles: str) -> None:
        """Give roles what they need of the tables, in a transaction of its own; none meanwhile has less than before."""
        with self.connection.begin():
            # Two that grant at the same time would trip over each other.
            self._ask(self._queries["lock_migrations"], lock=_LOCK)
            for statement in grants(self._schema, roles):
                self.connection.exec_driver_sql(statement.replace("%", "%%"), {})

    def _limit(self, left: float) -> None:
        # 0 would be no limit at all.
        self._ask(self._queries["limit_lock_waits"], limit=str(max(1, round(left * 1000))))

    def _ask(self, statement: bytes, **values: object) -> sa.CursorResult[tuple[object, ...]]:
        return self.connection.exec_driver_sql(statement.decode(), values)


def _script() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config(DEFAULT_SCHEMA))


def _config(schema: str) -> Config:
    config = Config()
    config.set_main_option("script_location", "scoop_outbox.store:migrations")
    config.attributes["schema"] = schema
    return config


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Do as `map_database_errors`, and say which rights are needed: other ones than those that work with the tables."""
    try:
        with map_database_errors(url):
            yield
    except DatabaseError as error:
        cause = error.__cause__
        if not isinstance(getattr(cause, "orig", None), psycopg.errors.InsufficientPrivilege):
            raise
        raise DatabaseError(
            f"{error}. A migration needs to own the tables and create on their schema; creating the schema needs "
            "create on the database: see docs/operations.md"
        ) from cause
