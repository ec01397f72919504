"""Sweeps: when to look from the beginning, which is done now and then, less often the longer it takes.

Relay and worker look back only as far as something may lie, or is likely to. What lies further back all the same is
found by the next sweep. But what was deleted is passed over by it too, as long as anybody in the database keeps an old
snapshot: so it gets a twentieth of the time at most, unless that would be less than one in a minute.
"""

from __future__ import annotations

import time

EVERY = 5.0
SHARE = 20.0
RAREST = 60.0
"""A look is long also when the event loop or the database stood still, and that says nothing of the next one."""


class FullScan:
    """Says when the next look has to be from the beginning.

    Args:
        every: seconds from one to the next, if it does not take long; `EVERY` unless given.
    """

    def __init__(self, every: float | None = None) -> None:
        """Be due at once."""
        self._every = EVERY if every is None else every
        self._due_at = 0.0
        self._begun_at = 0.0
        self._is_running = False

    @property
    def due(self) -> bool:
        """Whether it is time to look from the beginning."""
        return time.monotonic() >= self._due_at

    def soon(self) -> None:
        """Look from the beginning with the next look, also if one is under way: something may have been left behind."""
        self._due_at = 0.0
        self._is_running = False

    def begin(self) -> None:
        """Note that the look which comes next is from the beginning."""
        self._begun_at = time.monotonic()
        self._due_at = self._begun_at + self._every
        self._is_running = True

    def looked(self, seconds: float) -> None:
        """Note that a look has ended, and how long it took."""
        if self._is_running:
            self._due_at = max(self._due_at, self._begun_at + min(SHARE * seconds, RAREST))
        self._is_running = False
