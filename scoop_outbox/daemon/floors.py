"""Floors: from where on a shard of the outbox is read.

While there is a backlog it is read on above what was read. Otherwise it is read from where it was some seconds ago, so
that messages whose transaction committed late are found at once. Not from the beginning: as long as anybody in the
database keeps an old snapshot, and a step that takes half an hour does, all that was deleted meanwhile is passed over
by whoever reads there, and each look became slower than the last. From the beginning it is read with each sweep.

A transaction that writes into the outbox and takes longer than that keeps the floors where they are: what it wrote at
first would be found after what it wrote at last.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping

from scoop_outbox.daemon.sweep import Sweep

_REMEMBERED = 10.0


class Floors:
    """The numbers above which one relay reads its shards.

    Attributes:
        sweep: when everything is to be read from the beginning.
    """

    def __init__(self) -> None:
        """Know nothing: everything is read from the beginning."""
        self._read: dict[int, int] = {}
        self._begun: set[int] = set()  # to be read from there, whatever else happens
        self._low: dict[int, int] = {}
        self._middle: dict[int, int] = {}
        self._recent: dict[int, int] = {}
        self._high: dict[int, int] = {}
        self._noted: dict[int, int] = {}
        self._writers: set[str] = set()  # the transactions that were writing when `_recent` was noted
        self._move_at = 0.0
        self.sweep = Sweep()

    def of(self, shard: int) -> int:
        """Return the number above which to read a shard."""
        return self._read.get(shard, self._low.get(shard, 0))

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
        self.sweep.looked(seconds)

    def keep(self, shards: Collection[int]) -> None:
        """Read on in these shards only: of others nothing is in hand."""
        self._read = {shard: floor for shard, floor in self._read.items() if shard in shards or shard in self._begun}

    def passed(self, ends: Mapping[int, int], busy: Collection[int]) -> None:
        """Note that nothing is left of shards but what is held back, and is read again when its time has come.

        Args:
            ends: the last number of each shard that was looked at.
            busy: shards of which something is in hand, or published and not yet deleted.
        """
        for shard in ends.keys() - busy:
            self._read.pop(shard, None)
        self.deleted(ends.items())

    def deleted(self, places: Iterable[tuple[int, int]]) -> None:
        """Note what was published and deleted."""
        for shard, seq in dict(places).items():  # of each batch the last one, which is the highest or nearly so
            self._high[shard] = max(self._high.get(shard, 0), seq)

    def begin_to_move(self) -> bool:
        """Note how far things are, if it is time to move up; then see who is writing, and `move`."""
        if time.monotonic() < self._move_at:
            return False
        self._noted = dict(self._high)
        return True

    def move(self, writers: set[str]) -> None:
        """Move up, unless somebody who was writing below has not ended.

        Args:
            writers: the transactions that have written into the outbox and have not ended.
        """
        if not self._writers & writers:
            self._low, self._middle, self._recent = self._middle, self._recent, self._noted
            self._writers = writers
        self._move_at = time.monotonic() + _REMEMBERED

    def forget(self, shards: Collection[int]) -> None:
        """Know nothing any more of shards that change their owner."""
        self._begun.difference_update(shards)
        for numbers in (self._read, self._low, self._middle, self._recent, self._noted, self._high):
            for shard in shards:
                numbers.pop(shard, None)

    def distrust(self) -> None:
        """Note that another server may answer from now on, which need not know of all that was deleted."""
        for numbers in (self._low, self._middle, self._recent, self._noted, self._high):
            numbers.clear()
        self.sweep.soon()
