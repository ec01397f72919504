"""Floors: from where on a shard of the outbox is read.

While there is a backlog it is read on above what was read. Otherwise it is read from where it was some seconds ago, so
that messages whose transaction committed late are found at once. Not from the beginning: as long as anybody in the
database keeps an old snapshot, and a step that takes half an hour does, all that was deleted meanwhile is passed over
by whoever reads there, and each look became slower than the last. From the beginning it is read now and then, less
often the longer that takes.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

_REMEMBERED = 10.0
_EVERY = 5.0
_SHARE = 20.0


class Floors:
    """The numbers above which one relay reads its shards."""

    def __init__(self) -> None:
        """Know nothing: everything is read from the beginning."""
        self._read: dict[int, int] = {}
        self._begun: set[int] = set()  # to be read from there, whatever else happens
        self._low: dict[int, int] = {}
        self._middle: dict[int, int] = {}
        self._high: dict[int, int] = {}
        self._move_at = 0.0
        self._scan_at = 0.0
        self._is_scanning = False

    def of(self, shard: int) -> int:
        """Return the number above which to read a shard."""
        return self._read.get(shard, self._low.get(shard, 0))

    @property
    def scan_due(self) -> bool:
        """Whether it is time to read from the beginning."""
        return time.monotonic() >= self._scan_at

    def scan_soon(self) -> None:
        """Read from the beginning with the next look: something may have been left behind."""
        self._scan_at = 0.0

    def scanned(self) -> None:
        """Note that everything is read from the beginning next."""
        self._scan_at = time.monotonic() + _EVERY
        self._is_scanning = True

    def begin(self, shard: int, above: int) -> None:
        """Read a shard from some number on, and then go on from there."""
        self._read[shard] = above
        self._begun.add(shard)

    def reached(self, shards: Collection[int], places: Collection[tuple[int, int]], seconds: float) -> None:
        """Note which shards were read, what was found, in order, and how long that took."""
        self._read.update(places)
        for shard in self._begun.intersection(shards) - dict(places).keys():
            del self._read[shard]  # nothing is there: it is not read from its beginning with the next look, too
        self._begun.difference_update(shards)
        if self._is_scanning and self._scan_at:
            self._scan_at = max(self._scan_at, time.monotonic() + _SHARE * seconds)
        self._is_scanning = False

    def keep(self, shards: Collection[int]) -> None:
        """Read on in these shards only: of others nothing is in hand."""
        self._read = {shard: floor for shard, floor in self._read.items() if shard in shards or shard in self._begun}

    def deleted(self, places: Iterable[tuple[int, int]]) -> None:
        """Note what was published and deleted."""
        for shard, seq in dict(places).items():  # of each batch the last one, which is the highest or nearly so
            self._high[shard] = max(self._high.get(shard, 0), seq)
        now = time.monotonic()
        if now >= self._move_at:
            self._low, self._middle = self._middle, dict(self._high)
            self._move_at = now + _REMEMBERED

    def forget(self, shards: Collection[int]) -> None:
        """Know nothing any more of shards that change their owner."""
        self._begun.difference_update(shards)
        for numbers in (self._read, self._low, self._middle, self._high):
            for shard in shards:
                numbers.pop(shard, None)
