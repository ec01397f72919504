"""Cancellations: steps that may be interrupted are cancelled while they are executed, once their run gives up (Q62)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from scoop_outbox.core.plans.requests import read_giving_up
from scoop_outbox.core.statement import Call
from scoop_outbox.store.async_driver import AsyncDriver

EVERY = 1.0
"""Seconds from one look at the database to the next, while a step is executed that may be interrupted."""


class Cancellations:
    """Asks for all such steps of one worker at once, on the feeder's connection, and cancels those whose runs give up.

    While there are none, it asks nothing. It is on the event loop alone: such steps are `async def`s.

    Args:
        calling: what the slots have called, while they are at work.
    """

    def __init__(self, calling: Callable[[], Iterable[Call]]) -> None:
        """Have asked nothing yet."""
        self._calling = calling
        self._asked_at = 0.0

    @property
    def left(self) -> float | None:
        """How many seconds there are until it is time to ask again; None when there is nothing to ask for."""
        return max(self._asked_at + EVERY - time.monotonic(), 0.0) if self._interruptible() else None

    async def look(self, driver: AsyncDriver) -> None:
        """Ask which runs give up, and cancel what they execute."""
        calls = self._interruptible()
        if not calls:
            return
        self._asked_at = time.monotonic()
        giving_up = await driver.run(read_giving_up([call.checkpoint for call in calls if call.checkpoint is not None]))
        for call in calls:
            if call.run.id in giving_up and call.interrupt is not None:
                call.interrupt.ask()

    def _interruptible(self) -> Sequence[Call]:
        return [call for call in self._calling() if call.interrupt is not None and not call.interrupt.asked]
