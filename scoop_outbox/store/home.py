"""A home: one Postgres database that holds runs, and how this process reaches it."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from scoop_outbox.message import uuid7
from scoop_outbox.store import queries
from scoop_outbox.store.aio import AsyncDriver
from scoop_outbox.store.blocking import Driver
from scoop_outbox.store.connect import async_driver_engine, driver_engine, explained, parsed, shown


class Home:
    """The database of a process: connections in both colours, and the statements.

    Creating one opens nothing. Async connections belong to the event loop that opened them, so there is a pool for
    each loop.

    Args:
        url: a PostgreSQL URL.
        schema: the schema of the tables.
        application: what the server's list of connections shows.

    Raises:
        DatabaseError: the URL is not usable.
    """

    def __init__(self, url: str, schema: str, application: str) -> None:
        """Check the URL and load the statements."""
        parsed(url)
        self.url = url
        self.schema = schema
        self.application = application
        self.process_id = uuid7()
        self.queries = queries.load(schema)
        self._compiled = queries.compiled(schema)
        self._lock = threading.Lock()
        self._engines: dict[bool, sa.Engine] = {}
        self._async_engines: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[bool, AsyncEngine]] = (
            weakref.WeakKeyDictionary()
        )

    def __repr__(self) -> str:
        """Show the URL without its password."""
        return f"<home {shown(self.url)} schema {self.schema!r}>"

    @property
    def worker_id(self) -> str:
        """What names this process in failures and step records."""
        return str(self.process_id)

    async def connect(self) -> AsyncDriver:
        """Open an async driver that the caller keeps, and closes."""
        return await AsyncDriver.connect(self._async_engine(pooled=False), self._compiled)

    def connect_blocking(self) -> Driver:
        """Open a blocking driver that the caller keeps, and closes."""
        return Driver.connect(self._engine(pooled=False), self._compiled)

    def _async_engine(self, *, pooled: bool) -> AsyncEngine:
        engines = self._async_engines.setdefault(asyncio.get_running_loop(), {})
        if pooled not in engines:
            engines[pooled] = async_driver_engine(self.url, self.application, pooled=pooled)
        return engines[pooled]

    def _engine(self, *, pooled: bool) -> sa.Engine:
        with self._lock:
            if pooled not in self._engines:
                self._engines[pooled] = driver_engine(self.url, self.application, pooled=pooled)
            return self._engines[pooled]

    @asynccontextmanager
    async def driver(self) -> AsyncIterator[AsyncDriver]:
        """Lend an async driver from a small pool, and explain what goes wrong with the database.

        Raises:
            DatabaseError: the database cannot be reached or used.
        """
        with explained(self.url):
            engine = self._async_engine(pooled=True)
            driver = await AsyncDriver.connect(engine, self._compiled)
            try:
                yield driver
            finally:
                # A pool that was disposed of meanwhile would take the connection back and never close it.
                current = self._async_engines.get(asyncio.get_running_loop(), {}).get(True)
                await (driver.release() if current is engine else driver.close())

    @contextmanager
    def blocking_driver(self) -> Iterator[Driver]:
        """Lend a blocking driver from a small pool, and explain what goes wrong with the database.

        Raises:
            DatabaseError: the database cannot be reached or used.
        """
        with explained(self.url):
            engine = self._engine(pooled=True)
            driver = Driver.connect(engine, self._compiled)
            try:
                yield driver
            finally:
                with self._lock:
                    # A pool that was disposed of meanwhile would take the connection back and never close it.
                    kept = self._engines.get(True) is engine
                    if kept:
                        driver.release()
                if not kept:
                    driver.close()

    async def dispose(self) -> None:
        """Close what the pools of the running loop and of blocking code hold."""
        for engine in self._async_engines.pop(asyncio.get_running_loop(), {}).values():
            await engine.dispose()
        self.dispose_blocking()

    def dispose_blocking(self) -> None:
        """Close what the pool of blocking code holds."""
        with self._lock:
            engines, self._engines = self._engines, {}
            for engine in engines.values():
                engine.dispose()

    async def listen(self, application: str) -> psycopg.AsyncConnection[Any]:
        """Open a bare connection in autocommit, for LISTEN or NOTIFY."""
        url = parsed(self.url).set(drivername="postgresql").render_as_string(hide_password=False)
        return await psycopg.AsyncConnection.connect(
            url, autocommit=True, application_name=application, connect_timeout=10
        )
