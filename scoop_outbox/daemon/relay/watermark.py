"""Floors: from where on a shard of the outbox is read.

Messages of a key are in order when each look finds all that has committed and is not in hand: then nobody who commits
later is published earlier. To read on above what was read will not do: numbers are given before the commit, and what
has a lower one may come to light later. A third of the transactions that launched twice, some milliseconds apart, had
their messages published the wrong way round while others launched as well.

To look from the beginning would do. But what was deleted is passed over by whoever reads there, as long as anybody in
the database keeps an old snapshot: each look became slower than the last. So a relay asks who is writing, and up to
which number all are settled: committed, or given to nobody any more. Whoever was not yet writing at some moment has no
number that had been given until then. A transaction that writes and does not end keeps the floors where they are.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence

from scoop_outbox.core.outbox import Place
from scoop_outbox.daemon.full_scan import Sweep

MANY = 1000
"""With so many messages found it is asked again who is writing: that is what each look passes over."""
_EVERY = 1.0
SWEEP_EVERY = 60.0
"""Seldom: it finds what should not be."""
_PREPARED = "-1/"
"""Begins the name of a transaction that was prepared, and has had another one before."""


class Floors:
    """The numbers above which one relay reads its shards.

    Attributes:
        sweep: when everything is to be read from the beginning, to make sure.
    """

    def __init__(self) -> None:
        """Know nothing: everything is read from the beginning."""
        self._floors: dict[int, int] = {}
        self._looking: set[int] = set()
        self._settled = 0
        self._highest = 0  # known to have been given
        self._given = 0  # the same, when it was last asked who is writing
        self._writers: dict[str, int] = {}  # who is, and the number above which each has written
        self._found = 0
        self._ask_at = 0.0
        self.sweep = Sweep(SWEEP_EVERY)

    def of(self, shard: int) -> int:
        """Return the number above which to read a shard."""
        return self._floors.get(shard, 0)

    def look(self, shards: Iterable[int]) -> dict[int, int]:
        """Return the floors of shards that are read now; one look at a time."""
        self._looking = set(shards)
        return {shard: self.of(shard) for shard in self._looking}

    @property
    def due(self) -> bool:
        """Whether it is time to see who is writing, before the next look."""
        return self._found >= MANY or time.monotonic() >= self._ask_at

    def writing(self, ends: Iterable[int], transactions: Collection[str]) -> None:
        """Note who is writing.

        Args:
            ends: numbers that had been given before it was asked.
            transactions: those that have written into the outbox, or are about to, and have not ended.
        """
        self._highest = max(self._highest, *ends, 0)
        self._writers = {
            one: self._writers.get(one, self._settled if one.startswith(_PREPARED) else self._given)
            for one in transactions
        }
        self._given = self._highest
        self._settled = min(self._writers.values(), default=self._given)
        self._found = 0
        self._ask_at = time.monotonic() + _EVERY

    def reached(self, places: Sequence[Place], full: Collection[int], seconds: float) -> None:
        """Note what a look has found, before whose snapshot it was asked who is writing, or long before.

        Args:
            places: where it stands, in order.
            full: shards of which there may be more.
            seconds: how long it took.
        """
        last = dict(places)
        for shard in self._looking:
            self._floors[shard] = min(self._settled, last[shard]) if shard in full else self._settled
        if places:
            self._highest = max(self._highest, places[-1][1])
        self._found += len(places)
        self.sweep.looked(seconds)

    def still(self, shards: Collection[int]) -> set[int]:
        """Return those of the shards that are being read of which all that was found is of use."""
        return self._looking.intersection(shards)

    def begin(self, floors: Mapping[int, int]) -> None:
        """Read shards from some number on, with the next look. If they are being read, that counts for nothing."""
        self._floors.update(floors)
        self._looking.difference_update(floors)

    def distrust(self) -> None:
        """Note that another server may answer from now on, which need not know of all that was deleted."""
        self._floors.clear()
        self._looking.clear()
        self._writers.clear()
        self._settled = self._highest = self._given = 0
        self._ask_at = 0.0
        self.sweep.soon()
