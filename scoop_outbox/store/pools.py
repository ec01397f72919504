"""Drivers that are lent for a moment and kept in between: a pool for each event loop, and one for blocking code."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import psycopg
from sqlalchemy.ext.asyncio import AsyncEngine

from scoop_outbox.store.async_driver import AsyncDriver
from scoop_outbox.store.blocking_driver import BlockingDriver

LENT = 10
"""How many connections are lent at once, for each event loop and for blocking code, however many ask."""
CLAIMING = 3
"""How many of those are at a time in the hands of launches that may wait for another transaction to launch an id."""

D = TypeVar("D", bound=AsyncDriver | BlockingDriver)


class _Drivers(Generic[D]):
    """Drivers that are lent for a moment, and kept in between. Safe to be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[D] = []
        self._closed = False

    def take(self) -> D | None:
        """Return a driver that nobody uses, if there is one; the server may have ended its connection meanwhile."""
        with self._lock:
            return self._idle.pop() if self._idle else None

    def give_back(self, driver: D) -> bool:
        """Keep a driver for the next one who asks; answer False when it is to be closed instead."""
        with self._lock:
            if self._closed or not driver.usable:
                return False
            self._idle.append(driver)
            return True

    def close(self) -> list[D]:
        """Keep nothing from now on, and return what was kept."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            return idle


class BlockingPool(_Drivers[BlockingDriver]):
    """The drivers of blocking code.

    Attributes:
        room: for those that are lent.
        claiming: for those that may wait for another transaction to launch an id.
    """

    def __init__(self) -> None:
        """Have none yet."""
        super().__init__()
        self.room = threading.BoundedSemaphore(LENT)
        self.claiming = threading.BoundedSemaphore(CLAIMING)


class AsyncPool(_Drivers[AsyncDriver]):
    """The drivers of one event loop.

    Attributes:
        engine: opens their connections.
        room: for those that are lent.
        claiming: for those that may wait for another transaction to launch an id.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        """Have none yet."""
        super().__init__()
        self.engine = engine
        self.room = asyncio.Semaphore(LENT)
        self.claiming = asyncio.Semaphore(CLAIMING)


class Pools:
    """The pools of one process.

    Args:
        engine: returns a new engine, for the pool of one event loop. Two loops that connected first with the same one
            waited for ever, on a lock of both.

    Attributes:
        opened: the connections that this process has opened, whoever keeps them.
    """

    def __init__(self, engine: Callable[[], AsyncEngine]) -> None:
        """Have none yet but that of blocking code."""
        self._engine = engine
        self._lock = threading.Lock()
        self._blocking = BlockingPool()
        self.opened: weakref.WeakSet[psycopg.Connection[Any] | psycopg.AsyncConnection[Any]] = weakref.WeakSet()
        self._of_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncPool] = weakref.WeakKeyDictionary()

    @property
    def of_loop(self) -> AsyncPool:
        """The pool of the running loop."""
        loop = asyncio.get_running_loop()
        pool = self._of_loops.get(loop)
        if pool is None:
            pool = self._of_loops[loop] = AsyncPool(self._engine())
        return pool

    @property
    def blocking(self) -> BlockingPool:
        """The pool of blocking code."""
        with self._lock:
            return self._blocking

    def close_of_loop(self) -> list[AsyncDriver]:
        """Give up the pool of the running loop, and return the drivers that it kept, to be closed."""
        pool = self._of_loops.pop(asyncio.get_running_loop(), None)
        return [] if pool is None else pool.close()

    def close_blocking(self) -> list[BlockingDriver]:
        """Give up the pool of blocking code, and return the drivers that it kept, to be closed."""
        with self._lock:
            pool, self._blocking = self._blocking, BlockingPool()
        return pool.close()
