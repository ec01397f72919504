"""Lookback: how far back a worker looks for mail.

Mail is read in order of time, and deleted when it has been seen to. As long as anybody in the database keeps an old
snapshot, and a step that takes half an hour does, what was deleted is passed over again by whoever reads from the
beginning. So a worker looks back as far as the oldest mail that it knows to lie there, and a little further, for
transactions that commit late; and from the beginning with each sweep.
"""

from __future__ import annotations

import time
from datetime import timedelta

from scoop_outbox.daemon.full_scan import FullScan

_FURTHER = 10.0
_BEGINNING = timedelta(days=36_500)


class Lookback:
    """How far back one worker looks."""

    def __init__(self) -> None:
        """Look from the beginning first."""
        self._oldest_at = 0.0  # when the oldest mail that lies there was due, by our clock
        self._looked_at = 0.0
        self._full_scan = FullScan()

    def look(self) -> timedelta:
        """Return how far back to look now."""
        self._looked_at = time.monotonic()
        if self._full_scan.due:
            self._full_scan.begin()
            return _BEGINNING
        return timedelta(seconds=self._looked_at - self._oldest_at + _FURTHER)

    def looked(self, oldest: float | None) -> None:
        """Note what was found.

        Args:
            oldest: for how many seconds the oldest mail has been due that waits for somebody; None if there is none.
        """
        self._full_scan.looked(time.monotonic() - self._looked_at)
        self._oldest_at = self._looked_at - max(oldest or 0.0, 0.0)  # below 0: it is due later

    def forget(self) -> None:
        """Look from the beginning next: there may be older mail for us than we know of."""
        self._full_scan.soon()
