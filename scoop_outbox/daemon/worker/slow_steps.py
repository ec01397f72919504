"""Slow steps: callbacks without a time limit that are executed for long. They are told of while they last (Q63)."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from scoop_outbox.core.statement import Call
from scoop_outbox.daemon.worker.reports import Reports

SLOW_AFTER = 60.0
"""After so many seconds a step is slow, unless told otherwise."""
EVERY = 5.0
"""Seconds from one look at the slots to the next, at most: a step is told of so much later."""
_LOOKS = 10
"""How often is looked, at least, until a step is slow."""


@dataclass(slots=True)
class _Seen:
    """A call that is being executed, and since when it is known to be."""

    call: Call
    since: float
    slow: bool = False


class SlowSteps:
    """Looks every few seconds at what the slots of one worker execute, and says once of each call that it is slow.

    Steps and slots do nothing for it: it sees that a call is the same as with the look before. Nothing is done to a
    slow one. Steps with a `timeout` are left out: theirs is a limit. It is on the event loop, and asks no database.

    Args:
        reports: says it.
        calling: what the slots have called last, while they are at work.
        slow_after: seconds after which a step is slow.

    Attributes:
        counts: how many calls have been slow, by saga and step.
    """

    def __init__(self, reports: Reports, calling: Callable[[], Iterable[Call]], slow_after: float = SLOW_AFTER) -> None:
        """Have seen nothing yet."""
        self._reports = reports
        self._calling = calling
        self._slow_after = slow_after
        self._seen: dict[int, _Seen] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.counts: Counter[tuple[str, str]] = Counter()

    @property
    def now(self) -> int:
        """How many calls are slow at this moment."""
        return sum(one.slow for one in list(self._seen.values()))

    def start(self) -> None:
        """Look from now on, until stopped."""
        every = min(EVERY, self._slow_after / _LOOKS)
        self._timer = asyncio.get_running_loop().call_later(every, self.start)
        self.look(time.monotonic())

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._seen = {}

    def look(self, now: float) -> None:
        """Look at what is being executed at a time of the monotonic clock."""
        before, self._seen = self._seen, {}
        for call in self._calling():
            if call.timeout is None:
                # By its identity, which is its own while it is held here: what it is made of need not be comparable.
                self._seen[id(call)] = before.get(id(call)) or _Seen(call, now)
        for one in self._seen.values():
            if not one.slow and now - one.since >= self._slow_after:
                one.slow = True
                self.counts[one.call.run.saga, one.call.step] += 1
                self._reports.slow(one.call, now - one.since)
