"""Run backoff: runs that a worker leaves alone for a while, because they are held by others or cannot go on."""

from __future__ import annotations

import random
import time
import uuid

from scoop_outbox.policy import exponential

_SHORTEST = 0.04
_LONGEST = 30.0
_STALE = 1.0


class RunBackoff:
    """Remembers in this process only: another worker may try, and after a restart so does this one."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._until: dict[uuid.UUID, tuple[float, int]] = {}
        self._look_at = 0.0

    def __len__(self) -> int:
        """Return how many runs are remembered.

        Not those whose time came a while ago: if they still had mail they would have been tried. Another worker is done
        with them.
        """
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _STALE
            self._until = {one: entry for one, entry in self._until.items() if entry[0] > now - _STALE}
        return len(self._until)

    def left(self, run_id: uuid.UUID) -> float:
        """Return how many seconds a run is still to be left alone; 0 or less when it may be tried."""
        return self._until.get(run_id, (0.0, 0))[0] - time.monotonic()

    def note(self, run_id: uuid.UUID) -> None:
        """Leave a run alone, each time for twice as long as before."""
        failures = self._until.get(run_id, (0.0, 0))[1] + 1
        pause = exponential(_SHORTEST, failures, _LONGEST) * random.uniform(0.5, 1.0)
        self._until[run_id] = (time.monotonic() + pause, failures)

    def forget(self, run_id: uuid.UUID) -> None:
        """Try a run at once when it is next due: it has made progress, or there is news for it."""
        self._until.pop(run_id, None)
