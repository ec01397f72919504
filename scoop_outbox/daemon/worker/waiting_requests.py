"""Waiting requests: those to roll back that wait until nothing is active, and are tried every now and then."""

from __future__ import annotations

import time
import uuid

from scoop_outbox._log import get_logger
from scoop_outbox.core.plans.failures import Known
from scoop_outbox.core.plans.rollback import read_waiting, try_waiting
from scoop_outbox.daemon.hints import ProcessHints
from scoop_outbox.daemon.worker import roster
from scoop_outbox.policy import exponential
from scoop_outbox.store.async_driver import AsyncDriver

log = get_logger(__name__)

AT_ONCE = 100
"""How many requests are read together."""
LONGEST = 0.1
"""Seconds after which a look ends: all mail of the service waits while it takes. The next one goes on from there."""
RARELY = 12
"""A request that has waited for long is tried with every so manieth look: once a minute."""
MOST = 1000
"""How many requests it is remembered of when they are tried next; further ones are tried with each look."""


class WaitingRequests:
    """The waiting requests of one home, as one worker tries them.

    One is tried as soon as its own runs have ended. As long as others are active, or runs of it are still to come, it
    is tried after twice as long each time.

    Args:
        service: whose worker, for the log.
        known: the failures that this process knows.
        hints: told of runs that go on.
    """

    def __init__(self, service: str, known: Known, hints: ProcessHints) -> None:
        """Have tried none yet."""
        self._service = service
        self._known = known
        self._hints = hints
        self._after: uuid.UUID | None = None
        self._resting: dict[uuid.UUID, tuple[float, int]] = {}  # until when, and how often it was tried

    async def look(self, driver: AsyncDriver) -> None:
        """Try some of them, the next ones with the next look.

        Raises:
            Interrupted: the database failed.
        """
        began = time.monotonic()
        resting = [target for target, (until, _) in self._resting.items() if until > began]
        waiting = await driver.run(read_waiting(self._after, resting, AT_ONCE))
        if self._after is None and len(waiting) < AT_ONCE:
            # These are all: the others wait no more.
            known = {*resting, *(target for target, _ in waiting)}
            self._resting = {target: rest for target, rest in self._resting.items() if target in known}
        self._after = None
        for place, (target, failure) in enumerate(waiting, start=1):
            await self._try(driver, target, failure, began)
            if time.monotonic() - began > LONGEST and place < len(waiting):
                self._after = target
                return
        if len(waiting) == AT_ONCE:
            self._after = waiting[-1][0]

    async def _try(self, driver: AsyncDriver, target: uuid.UUID, failure: uuid.UUID, now: float) -> None:
        answer = await driver.run(try_waiting(target, failure, self._known, self._hints))
        if answer is None:
            _, tried = self._resting.get(target, (0.0, 0))
            if tried or len(self._resting) < MOST:
                rest = exponential(roster.EVERY, tried + 1, RARELY * roster.EVERY)
                # Not quite as long: a look that comes a moment early would leave it for the next one.
                self._resting[target] = now + rest - roster.EVERY / 2, tried + 1
            return
        self._resting.pop(target, None)
        log.info(
            "run: waiting rollback request closed (service %s, message or run %s: %s)",
            *(self._service, target, answer),
            extra={"service": self._service, "target": target},
        )
