"""Backpressure: no more is taken in while too many runs wait for a slot."""

from __future__ import annotations

from collections.abc import Iterable

from scoop_outbox._log import get_logger
from scoop_outbox.core.plans.mail import count_due
from scoop_outbox.daemon.intake.membership import Membership
from scoop_outbox.store.async_driver import AsyncDriver

log = get_logger(__name__)

HIGH_WATER = 10_000
LOW_WATER = 5_000


class Backpressure:
    """Pauses and resumes a member of a group by the work that its service has to do. It is used by one task.

    Args:
        service: whose work.
        sagas: the names of its sagas.
        high: no more is taken in while so many runs are due...
        low: ...until there are no more than so many.
    """

    def __init__(self, service: str, sagas: Iterable[str], high: int, low: int) -> None:
        """Count at the first look."""
        self._service = service
        self._sagas = list(sagas)
        self._high = high
        self._low = low
        self._room = 0  # how many messages may be taken in before the work that waits is counted again

    async def apply(self, driver: AsyncDriver, member: Membership) -> None:
        """Count the work that waits, if it is time to, and pause or resume a member."""
        if self._room > 0 and not member.paused:
            return
        waiting = await driver.run(count_due(self._service, self._sagas, self._high))
        self._room = self._high - waiting
        if not member.paused and waiting >= self._high:
            log.info(
                "intake: paused (service %s: %d runs due, high water mark %d)",
                *(self._service, waiting, self._high),
                extra={"service": self._service},
            )
            await member.pause()
        elif member.paused and waiting <= self._low:
            log.info("intake: resumed (service %s)", self._service, extra={"service": self._service})
            await member.resume()

    def took(self, count: int) -> None:
        """Note that messages were taken in."""
        self._room -= count
