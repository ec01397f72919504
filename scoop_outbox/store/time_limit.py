"""The driver of the machinery: an async driver that does not wait for ever for the database's answer.

One frozen backend, or a connection that a firewall has forgotten, would stop relay, feeder or intake without a word: to
the process all is well, it waits. Steps have no such limit, for nobody knows how long the user's statements take.
"""

from __future__ import annotations

import asyncio
import time

from scoop_outbox.core.statement import Batch, Rows
from scoop_outbox.store.async_driver import AsyncDriver
from scoop_outbox.store.disconnect import sever

ANSWER_TIMEOUT = 60.0
"""Seconds after which a connection that does not answer is given up."""
_LONG = 10.0


class TimeLimitedDriver(AsyncDriver):
    """An async driver whose connection breaks when the database does not answer within `ANSWER_TIMEOUT`."""

    _asked_at: float | None = None

    @property
    def problem(self) -> str | None:
        """Say so when the database has not answered for long."""
        since = self._asked_at
        if since is None or (waits := time.monotonic() - since) < _LONG:
            return None
        return f"the database has not answered for {waits:.0f} s"

    async def _batch(self, batch: Batch) -> list[Rows]:
        self._asked_at = time.monotonic()
        giving_up = asyncio.get_running_loop().call_later(ANSWER_TIMEOUT, self._give_up)
        try:
            return await super()._batch(batch)
        finally:
            giving_up.cancel()
            self._asked_at = None

    def _give_up(self) -> None:
        """Break the connection: to cancel what waits for it would be to wait for the server's word once more."""
        self.usable = False
        sever(self.raw)
