"""Silence: children in other homes of which nothing has been heard for long are asked after, now and then.

What was lost at the broker, with a purged topic or a deleted queue, comes back this way. A home that is down is not
asked again before it has been heard of. See core/plans/silence.py.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from scoop_outbox._log import get_logger
from scoop_outbox.core.plans.failures import Known
from scoop_outbox.core.plans.silence import ask_silent
from scoop_outbox.store.async_driver import AsyncDriver

log = get_logger(__name__)

EVERY = 600.0
"""Seconds from one look to the next."""
SILENT = timedelta(minutes=10)
"""A child that has been open for so long is asked after."""
_LATE = timedelta(minutes=2)
"""When a home was heard of is noted no more often than once a minute."""
_ANYWAY = 6
"""Each so many looks, homes are asked that have not been heard of: the question, too, may have been lost."""
_EVER = datetime.min.replace(tzinfo=UTC)


class Silence:
    """Asks after the open children of one home that live in others. It is used by one task.

    Args:
        known: the failures that this process knows.
        every: seconds from one look to the next.
        silent: for how long a child has been open that is asked after.
    """

    def __init__(self, known: Known, every: float = EVERY, silent: timedelta = SILENT) -> None:
        """Have asked nobody."""
        self._known = known
        self._every = every
        self._silent = silent
        self._due = 0.0
        self._looks = 0
        self._asked_at = _EVER + _LATE

    async def look(self, driver: AsyncDriver) -> int:
        """Ask after children, if it is time to; return of how many it was.

        Raises:
            Interrupted: the database failed.
        """
        if time.monotonic() < self._due:
            return 0
        asked, after, began = 0, None, None
        self._looks += 1
        since = _EVER if self._looks % _ANYWAY == 1 else self._asked_at - _LATE
        while True:
            page = await driver.run(ask_silent(since, self._silent, after, self._known))
            asked += page.asked
            after, began = page.last, began or page.now
            if after is None:
                break
        self._asked_at, self._due = began, time.monotonic() + self._every
        if asked:
            log.info("home: asked other homes after silent children (%d)", asked)
        return asked
