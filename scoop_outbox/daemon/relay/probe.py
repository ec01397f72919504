"""Probe: whether the broker would take messages, asked while there are none.

Otherwise a relay with nothing to do would count as ready with a wrong password, or beside a broker that is down, until
the first message comes.
"""

from __future__ import annotations

import asyncio
import time

from scoop_outbox._cancellation import own_cancellation_only
from scoop_outbox._log import get_logger
from scoop_outbox.broker.protocol import Publisher

log = get_logger(__name__)

_EVERY = 10.0
_WHILE_DOWN = 2.0


class Probe:
    """Asks a publisher for a sign of life, now and then, while nothing is being published.

    Args:
        publisher: whom to ask.

    Attributes:
        problem: what keeps the broker from taking messages, as it was last seen; None when nothing does.
    """

    def __init__(self, publisher: Publisher) -> None:
        """Have asked nobody yet."""
        self._publisher = publisher
        self._asking: asyncio.Task[None] | None = None
        self._due = 0.0
        self.problem: str | None = None

    async def ask(self) -> None:
        """Ask once, and wait for the answer.

        Raises:
            BrokerError: the broker will never take anything like this.
        """
        with own_cancellation_only():
            self._note(await self._publisher.probe())

    async def look(self) -> str | None:
        """Ask now, and return what the problem is, whatever the answer."""
        self._due = 0.0
        self.ask_if_due()
        await self.wait()
        return self.problem

    def ask_if_due(self) -> None:
        """Ask in the background, if it is time to."""
        if self._asking is None and time.monotonic() >= self._due:
            self._asking = asyncio.create_task(self._ask(), name="scoop_outbox relay: probe")

    async def wait(self) -> None:
        """Wait until nobody is being asked: whoever publishes has the publisher for himself."""
        if self._asking is not None:
            await self._asking

    def published(self) -> None:
        """Note that the broker has just taken something."""
        self._note(None)

    async def close(self) -> None:
        """Give up a question that has not been answered."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _ask(self) -> None:
        try:
            await self.ask()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer to what was asked
            self._note(str(error) or type(error).__name__)
        finally:
            self._asking = None

    def _note(self, problem: str | None) -> None:
        self._due = time.monotonic() + (_EVERY if problem is None else _WHILE_DOWN)
        if problem != self.problem:
            if problem is not None:
                log.warning("relay: broker unavailable (%s)", problem, extra={"reason": problem})
            elif self.problem is not None:
                log.info("relay: broker available again")
        self.problem = problem
