"""Low watermarks: from which number on a relay reads each shard of the outbox.

Messages of a key are in order when each scan finds all that has committed and is not in hand: then nobody who commits
later is published earlier. To read on above the last number found will not do: a number is allocated before the commit,
and a transaction with a lower one may commit later. A third of the transactions that launched twice, some milliseconds
apart, had their messages published the wrong way round while others launched as well.

To scan from the beginning would do. But a scan passes over deleted rows as long as any transaction in the database has
an old snapshot, so each scan became slower than the last. Therefore a relay asks who is writing. Every number up to the
low watermark is committed or abandoned: a transaction that starts to write after some moment only holds numbers that
were allocated after it. A transaction that writes and does not end keeps the watermarks where they are.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence

from scoop_outbox.core.plans.outbox import Place
from scoop_outbox.daemon.full_scan import FullScan

MANY = 1000
"""After so many messages the relay asks again who is writing: each scan passes over what it found since."""
_EVERY = 1.0
"""Seconds after which the relay asks again who is writing."""
FULL_SCAN_EVERY = 60.0
"""Seconds from one full scan to the next. Seldom: it finds what should not be."""
_PREPARED = "-1/"
"""Begins the name of a transaction that was prepared, and has had another one before."""


class Watermarks:
    """The low watermark of each shard that one relay reads.

    Attributes:
        full_scan: when everything is to be read from the beginning, to make sure.
    """

    def __init__(self) -> None:
        """Know nothing: everything is read from the beginning."""
        self._low: dict[int, int] = {}  # by shard; never above the one of the outbox
        self._scanning: set[int] = set()
        self._of_outbox = 0
        self._highest = 0  # known to be allocated
        self._allocated = 0  # the same, when it was last asked who is writing
        self._writers: dict[str, int] = {}  # who is, and the number above which each has written
        self._found = 0
        self._ask_at = 0.0
        self.full_scan = FullScan(FULL_SCAN_EVERY)

    def low(self, shard: int) -> int:
        """Return the number above which to read a shard."""
        return self._low.get(shard, 0)

    def start_scan(self, shards: Iterable[int]) -> dict[int, int]:
        """Return the low watermarks of shards that are read now; one scan at a time."""
        self._scanning = set(shards)
        return {shard: self.low(shard) for shard in self._scanning}

    @property
    def due(self) -> bool:
        """Whether it is time to see who is writing, before the next scan."""
        return self._found >= MANY or time.monotonic() >= self._ask_at

    def record_writers(self, allocated: Iterable[int], transactions: Collection[str]) -> None:
        """Note who is writing.

        Args:
            allocated: numbers that had been allocated before it was asked.
            transactions: those that have written into the outbox, or are about to, and have not ended.
        """
        self._highest = max(self._highest, *allocated, 0)
        self._writers = {
            one: self._writers.get(one, self._of_outbox if one.startswith(_PREPARED) else self._allocated)
            for one in transactions
        }
        self._allocated = self._highest
        self._of_outbox = min(self._writers.values(), default=self._allocated)
        self._found = 0
        self._ask_at = time.monotonic() + _EVERY

    def record_scan(self, places: Sequence[Place], full: Collection[int], seconds: float) -> None:
        """Note what a scan has found, before whose snapshot it was asked who is writing, or long before.

        Args:
            places: where it stands, in order.
            full: shards of which there may be more.
            seconds: how long it took.
        """
        last = dict(places)
        for shard in self._scanning:
            self._low[shard] = min(self._of_outbox, last[shard]) if shard in full else self._of_outbox
        if places:
            self._highest = max(self._highest, places[-1][1])
        self._found += len(places)
        self.full_scan.looked(seconds)

    def still_valid(self, shards: Collection[int]) -> set[int]:
        """Return those of the shards that are being read of which all that was found is of use."""
        return self._scanning.intersection(shards)

    def lower(self, marks: Mapping[int, int]) -> None:
        """Read shards from some number on, with the next scan. A scan of them that is under way counts for nothing."""
        self._low.update(marks)
        self._scanning.difference_update(marks)

    def reset(self) -> None:
        """Note that another server may answer from now on, which need not know of all that was deleted."""
        self._low.clear()
        self._scanning.clear()
        self._writers.clear()
        self._of_outbox = self._highest = self._allocated = 0
        self._ask_at = 0.0
        self.full_scan.soon()
