"""Connections on which a worker executes runs, in both colours: kept from one run to the next, closed at its end."""

from __future__ import annotations

import contextvars
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager

from scoop_outbox.store.async_driver import AsyncDriver
from scoop_outbox.store.blocking_driver import BlockingDriver
from scoop_outbox.store.home import Home


class StepConnections:
    """The connections, and the threads, of one worker.

    Args:
        home: where its runs are.
        service: whose they are, for the names of threads.
        slots: how many runs are executed at the same time.
        context: the context variables that callbacks find.

    Attributes:
        threads: where `def` callbacks run.
    """

    def __init__(self, home: Home, service: str, slots: int, context: contextvars.Context) -> None:
        """Open nothing yet."""
        self._home = home
        self._context = context
        self._idle: list[AsyncDriver] = []
        self._idle_blocking: list[BlockingDriver] = []
        self._at_work: dict[uuid.UUID, BlockingDriver] = {}
        self._closed = False
        self.threads = ThreadPoolExecutor(slots, thread_name_prefix=f"scoop_outbox {service}")

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[AsyncDriver]:
        """Lend a connection for `async def` callbacks."""
        driver = self._idle.pop() if self._idle else await self._home.connect_for_steps(self._context)
        try:
            yield driver
        finally:
            if driver.usable and not self._closed:
                self._idle.append(driver)
            else:
                await driver.close()

    @contextmanager
    def lend_blocking(self) -> Iterator[BlockingDriver]:
        """Lend a connection for `def` callbacks to the thread that asks."""
        try:
            driver = self._idle_blocking.pop()
        except IndexError:  # asking first would not do: other threads take drivers too
            driver = self._home.connect_for_steps_blocking(self._context)
        try:
            yield driver
        finally:
            if driver.usable and not self._closed:
                self._idle_blocking.append(driver)
            else:
                driver.close()

    @contextmanager
    def at_work(self, run_id: uuid.UUID, driver: BlockingDriver) -> Iterator[None]:
        """Note that a thread executes a run on a connection."""
        self._at_work[run_id] = driver
        try:
            yield
        finally:
            del self._at_work[run_id]

    def of_thread(self, run_id: uuid.UUID) -> BlockingDriver | None:
        """Return the connection on which a thread executes a run; None when no thread does."""
        return self._at_work.get(run_id)

    async def close(self) -> None:
        """Close what is idle, and what is lent when it comes back; threads that still run are left alone."""
        self._closed = True
        self.threads.shutdown(wait=False, cancel_futures=True)
        for driver in self._idle:
            await driver.close()
        for idle in self._idle_blocking:
            idle.close()
        self._idle.clear()
        self._idle_blocking.clear()
