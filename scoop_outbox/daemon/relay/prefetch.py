"""Reads ahead for a relay, on a connection and a thread of its own.

A long answer on the loop's connection is read piece by piece, and each piece has to wait until the thread that
publishes lets go of the interpreter: reading took three times as long as it does alone. This thread waits once, inside
libpq, where it needs no interpreter.
"""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from scoop_outbox.core.statement import Plan
from scoop_outbox.store.blocking_driver import BlockingDriver
from scoop_outbox.store.home import Home
from scoop_outbox.store.time_limit import ANSWER_TIMEOUT

T = TypeVar("T")


class Prefetch:
    """Executes plans beside the loop, one at a time; it connects when there is one.

    Args:
        home: the database.
    """

    def __init__(self, home: Home) -> None:
        """Connect to nothing yet."""
        self._home = home
        self._driver: BlockingDriver | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scoop-outbox-reader")

    async def run(self, plan: Plan[T]) -> T:
        """Execute a plan. When this is cancelled the connection is broken, so that the thread comes to its end.

        Raises:
            Interrupted, psycopg.Error, sqlalchemy.exc.SQLAlchemyError: the database failed; the next plan gets
                another connection.
        """
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._thread, self._run, plan)
        giving_up = loop.call_later(ANSWER_TIMEOUT, self._abort)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            self._abort()
            running.add_done_callback(consume_exception)
            raise
        finally:
            giving_up.cancel()

    def _abort(self) -> None:
        if self._driver is not None:
            asyncio.get_running_loop().run_in_executor(None, self._driver.abort)

    async def close(self) -> None:
        """Let go of the connection, once the thread does."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._drop)
        self._thread.shutdown(wait=False)

    def _run(self, plan: Plan[T]) -> T:
        if self._driver is None or not self._driver.usable:
            self._drop()
            self._driver = self._home.connect_to_queues_blocking()
        try:
            return self._driver.run(plan)
        except BaseException:
            self._drop()
            raise

    def _drop(self) -> None:
        driver, self._driver = self._driver, None
        if driver is not None:
            with contextlib.suppress(Exception):
                driver.close()


def consume_exception(running: asyncio.Future[Any]) -> None:
    """Take notice of how it ended: nobody else is interested any more."""
    if not running.cancelled():
        running.exception()
