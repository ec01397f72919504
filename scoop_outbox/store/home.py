"""A home: one Postgres database that holds runs, and how this process reaches it."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from scoop_outbox._forks import begins_anew
from scoop_outbox.core.plans.home import read_home
from scoop_outbox.core.statement import ask
from scoop_outbox.errors import DatabaseError
from scoop_outbox.message import uuid7
from scoop_outbox.store import queries
from scoop_outbox.store.async_driver import AsyncDriver
from scoop_outbox.store.blocking_driver import BlockingDriver
from scoop_outbox.store.connect import (
    CLAIMS_WAIT,
    async_driver_engine,
    bare_connection,
    driver_engine,
    map_database_errors,
)
from scoop_outbox.store.cooperation import Cooperation
from scoop_outbox.store.disconnect import disinherit, is_severed
from scoop_outbox.store.failure_cache import KnownFailures
from scoop_outbox.store.mode import Mode, Modes
from scoop_outbox.store.pooler import Pooler
from scoop_outbox.store.pools import Pools
from scoop_outbox.store.same_home import Whose
from scoop_outbox.store.time_limit import TimeLimitedDriver
from scoop_outbox.store.url import parse_url, redact_url
from scoop_outbox.wire.limits import Limits

CLAIM_TIMEOUT = 20.0
"""Seconds for which a launch under an id of the caller's waits for its turn; then, as long at most, for another
transaction that launches it."""


class Home:
    """The database of a process: connections in both colours, and the statements.

    Creating one opens nothing. Async connections belong to the event loop that opened them, so there is a pool for
    each loop. A forked child has connections of its own.

    Args:
        url: a PostgreSQL URL.
        schema: the schema of the tables.
        application: what the server's list of connections shows.
        limits: how large what goes in may be.

    Raises:
        DatabaseError: the URL is not usable.
    """

    def __init__(self, url: str, schema: str, application: str, limits: Limits | None = None) -> None:
        """Check the URL and load the statements."""
        parse_url(url)
        self.url = url
        self.schema = schema
        self.application = application
        self.limits = limits or Limits()
        self.queries = queries.load(schema)
        self._pooler = Pooler(url)
        self._modes = Modes(queries.compiled(schema), self._pooler)
        self._begin()
        begins_anew(self)

    def _begin(self) -> None:
        self.process_id = uuid7()
        self.failures = KnownFailures()
        self.cooperation = Cooperation()
        self.whose = Whose(self._read_id, self._read_id_blocking, self.url, self.schema)
        self._pools = Pools(self._async_engine)

    async def _read_id(self) -> uuid.UUID:
        async with self.driver() as driver:
            return await driver.run(read_home())

    def _read_id_blocking(self) -> uuid.UUID:
        with self.blocking_driver() as driver:
            return driver.run(read_home())

    def begin_anew(self) -> None:
        """Leave all connections to the process that has opened them, and open others when they are needed."""
        for connection in list(self._pools.opened):
            disinherit(connection)
        self.__dict__.pop("_engine", None)  # it has locks, too
        self._begin()

    def __repr__(self) -> str:
        """Show the URL without its password."""
        return f"<home {redact_url(self.url)} schema {self.schema!r}>"

    @property
    def pooled(self) -> bool:
        """Whether connections of the server's are lent for one transaction only, as far as is known."""
        return bool(self._pooler.present)

    @property
    def worker_id(self) -> str:
        """What names this process in failures and step records."""
        return str(self.process_id)

    @functools.cached_property
    def _engine(self) -> sa.Engine:
        engine = driver_engine(self.url, self.application, self._pooler)
        sa.event.listen(engine, "connect", self._note)
        return engine

    def _async_engine(self) -> AsyncEngine:
        """Return a new engine, for one event loop."""
        engine = async_driver_engine(self.url, self.application, self._pooler)
        sa.event.listen(engine.sync_engine, "connect", self._note)
        return engine

    def _note(self, opened: Any, _: object) -> None:
        """Remember a connection, also one that a driver opens in place of another: it is not a forked child's."""
        self._pools.opened.add(getattr(opened, "driver_connection", opened))

    async def connect(self) -> TimeLimitedDriver:
        """Open an async driver on which no step ever runs; the caller keeps it, and closes it."""
        return await self._connect_time_limited(self._modes.machinery)

    async def connect_to_queues(self) -> TimeLimitedDriver:
        """Open an async driver that reads queues in order, and on which no step ever runs; the caller closes it."""
        return await self._connect_time_limited(self._modes.queues)

    async def connect_for_steps(self, context: contextvars.Context | None = None) -> AsyncDriver:
        """Open an async driver whose connection is as users expect theirs to be; the caller keeps and closes it.

        Args:
            context: the context variables that callbacks find; those of the caller unless given.
        """
        return await AsyncDriver.connect(self._pools.of_loop.engine, self._modes.steps(self.limits), context)

    async def _connect_time_limited(self, mode: Mode) -> TimeLimitedDriver:
        driver = await TimeLimitedDriver.connect(self._pools.of_loop.engine, mode)
        if not driver.pooled:
            await driver.run(ask(*mode.set_up()))
        return driver

    def connect_blocking(self) -> BlockingDriver:
        """Open a blocking driver on which no step ever runs; the caller keeps it, and closes it."""
        return self._connect_blocking(self._modes.machinery)

    def connect_to_queues_blocking(self) -> BlockingDriver:
        """Open a blocking driver that reads queues in order, and on which no step ever runs; the caller closes it."""
        return self._connect_blocking(self._modes.queues)

    def connect_for_steps_blocking(self, context: contextvars.Context | None = None) -> BlockingDriver:
        """Open a blocking driver whose connection is as users expect theirs to be; the caller keeps and closes it.

        Args:
            context: the context variables that callbacks find; those of the caller unless given.
        """
        return BlockingDriver.connect(self._engine, self._modes.steps(self.limits), context)

    def _connect_blocking(self, mode: Mode) -> BlockingDriver:
        driver = BlockingDriver.connect(self._engine, mode)
        if not driver.pooled:
            driver.run(ask(*mode.set_up()))
        return driver

    @asynccontextmanager
    async def claiming_driver(self) -> AsyncIterator[AsyncDriver]:
        """Lend an async driver to a launch under ids of the caller's; a few of them at a time.

        Another transaction may have launched an id and stay open. If all drivers waited for it, nobody could launch
        anything else, or ask, until it ends.

        Raises:
            DatabaseError: the database cannot be reached or used, or others wait for too long already.
        """
        turns = self._pools.of_loop.claiming
        try:
            async with asyncio.timeout(CLAIM_TIMEOUT):
                await turns.acquire()
        except TimeoutError:
            raise DatabaseError(CLAIMS_WAIT) from None
        try:
            async with self.driver() as driver:
                yield driver
        finally:
            turns.release()

    @contextmanager
    def blocking_claiming_driver(self) -> Iterator[BlockingDriver]:
        """Do as `claiming_driver`, for code without an event loop."""
        turns = self._pools.blocking.claiming
        if not turns.acquire(timeout=CLAIM_TIMEOUT):
            raise DatabaseError(CLAIMS_WAIT)
        try:
            with self.blocking_driver() as driver:
                yield driver
        finally:
            turns.release()

    @asynccontextmanager
    async def driver(self) -> AsyncIterator[AsyncDriver]:
        """Lend an async driver from a small pool, and explain what goes wrong with the database.

        Raises:
            DatabaseError: the database cannot be reached or used.
        """
        pool = self._pools.of_loop
        async with pool.room:
            with map_database_errors(self.url):
                while (driver := pool.take()) is not None and is_severed(driver.raw):
                    await driver.close()
                if driver is None:
                    driver = await self.connect()
                try:
                    yield driver
                finally:
                    if not pool.give_back(driver):
                        await driver.close()

    @contextmanager
    def blocking_driver(self) -> Iterator[BlockingDriver]:
        """Lend a blocking driver from a small pool, and explain what goes wrong with the database.

        Raises:
            DatabaseError: the database cannot be reached or used.
        """
        pool = self._pools.blocking
        with pool.room, map_database_errors(self.url):
            while (driver := pool.take()) is not None and is_severed(driver.raw):
                driver.close()
            if driver is None:
                driver = self.connect_blocking()
            try:
                yield driver
            finally:
                if not pool.give_back(driver):
                    driver.close()

    async def dispose(self) -> None:
        """Close what the pools of the running loop and of blocking code hold, and what comes back to them later."""
        for driver in self._pools.close_of_loop():
            await driver.close()
        self.dispose_blocking()

    def dispose_blocking(self) -> None:
        """Close what the pool of blocking code holds, and what comes back to it later."""
        for driver in self._pools.close_blocking():
            driver.close()

    def connect_bare(self, application: str) -> psycopg.Connection[Any]:
        """Open a bare connection in autocommit, for LISTEN or NOTIFY. Behind a pooler it hears nothing."""
        connection = bare_connection(self.url, application, self._pooler)
        self._pools.opened.add(connection)
        return connection
