"""What a relay reads of its outbox next: of which shards, from which number on, of which topics, and how much."""

from __future__ import annotations

import time
import uuid

from scoop_outbox._log import get_logger
from scoop_outbox.core.plans.home import read_home
from scoop_outbox.core.plans.outbox import Outgoing, read_outbox
from scoop_outbox.daemon.relay.backlog import Backlog
from scoop_outbox.daemon.relay.leases import Leases
from scoop_outbox.daemon.relay.prefetch import Prefetch
from scoop_outbox.daemon.relay.receipts import SortedReceipts
from scoop_outbox.daemon.relay.topic_backoff import TopicBackoff
from scoop_outbox.daemon.relay.watermark import Watermarks
from scoop_outbox.store.async_driver import AsyncDriver
from scoop_outbox.store.faults import DATABASE_ERRORS
from scoop_outbox.store.schema import SHARDS

log = get_logger(__name__)

BATCH = 1000
"""Most rows of a shard in one batch, if all shards have as many."""
FIRST = 250
"""The same in the first batch, which is read while nothing is being published."""
BATCH_BYTES = 2 * 1024 * 1024
"""With so many bytes of bodies the part of a shard in a batch is complete, if all shards have as many."""
TRIAL = 10
"""The same when a topic is tried again that the broker did not take."""


class Scan:
    """Reads what one relay publishes next: all that is there and not in hand. One scan at a time.

    Args:
        leases: the shards to read.
        backlog: what is in hand, and not to be read again; takes what is read ahead.
        backoff: the topics of which nothing is to be read, or a little.
        watermarks: the number of each shard above which to read.
        prefetch: reads ahead.
    """

    def __init__(
        self, leases: Leases, backlog: Backlog, backoff: TopicBackoff, watermarks: Watermarks, prefetch: Prefetch
    ) -> None:
        """Have read nothing yet."""
        self._leases = leases
        self._backlog = backlog
        self._backoff = backoff
        self._watermarks = watermarks
        self._prefetch = prefetch
        self._draining: set[int] = set()  # shards of which there is more than was read
        self._on_trial = False  # whether a topic is tried again with the next batch
        self._origin: uuid.UUID | None = None

    @property
    def draining(self) -> bool:
        """Whether there is more than was read last."""
        return bool(self._draining)

    async def begin_anew(self, driver: AsyncDriver) -> None:
        """Read from the beginning: another server may answer from now on."""
        self._watermarks.reset()
        self._backoff.reset()
        if self._origin is None:
            self._origin = await driver.run(read_home())

    def note_due(self) -> None:
        """Note what is to be read again with the next scan: topics whose time has come, or everything."""
        again = self._backoff.try_due()
        self._on_trial |= bool(again)
        if self._watermarks.full_scan.due:
            again = dict.fromkeys(self._leases.epochs, 0)
            self._watermarks.full_scan.begin()
        self._watermarks.lower({shard: min(above, self._watermarks.low(shard)) for shard, above in again.items()})

    async def read_ahead(self) -> None:
        """Read the next batch while this one is being published, on a connection of its own."""
        try:
            self._backlog.put_ahead(await self.read(self._prefetch))
        except DATABASE_ERRORS as error:
            log.warning("relay: reading ahead failed (%s)", type(error).__name__)

    async def read(self, executor: AsyncDriver | Prefetch) -> Outgoing:
        """Read all that is there and not in hand: published and not yet deleted, or about to be."""
        # A few shards, or one busy key, fill a batch as well as all of them do.
        shards = len(self._draining) or SHARDS
        limit, most_bytes = BATCH * SHARDS // shards, BATCH_BYTES * SHARDS // shards
        limit = limit if self._draining else min(FIRST, BATCH)
        limit = min(limit, TRIAL) if self._on_trial else limit
        self._draining, self._on_trial = set(), False
        if not self._leases.epochs or self._origin is None:
            return Outgoing()
        low, started = self._watermarks.start_scan(self._leases.epochs), time.monotonic()
        found = await executor.run(
            read_outbox(
                low,
                limit,
                most_bytes,
                self._origin,
                self._backoff.blocked,
                self._backlog.in_hand(low),
                ask_who_writes=self._watermarks.due,
            )
        )
        # Shards that have changed their owner meanwhile are read from the beginning, if they are ours.
        stale = low.keys() - self._watermarks.still_valid(low)
        if found.writing is not None:
            self._watermarks.record_writers(*found.writing)
        full = found.full(limit, most_bytes) - stale
        self._watermarks.record_scan(found.places, full, time.monotonic() - started)
        self._draining = full
        if stale:
            found = found.without(stale)
        if self._backoff and not self._backlog.in_flight:
            # Nothing is there any more of a topic that was to be tried again.
            self._backoff.unblock(self._backoff.half_open(low.keys() - stale - full) - found.flows)
        return found

    def note_receipts(self, batch: Outgoing, found: SortedReceipts) -> None:
        """Block the topics that the broker did not take just now, and unblock the others of a batch."""
        if self._backoff:
            self._backoff.unblock(batch.flows - found.firsts.keys())
        # Whoever has a shard now that was ours has to see to it.
        firsts = {flow: seq for flow, seq in found.firsts.items() if flow[0] in self._leases.epochs}
        if firsts:
            # What came to light later may stand before it.
            firsts |= {flow: min(seq, firsts[flow]) for flow, seq in self._backlog.ahead.firsts(firsts).items()}
            low = {shard: self._watermarks.low(shard) for shard, _ in firsts}
            self._backoff.block(firsts, found.progress, found.reason, low)
            # What was read of them ahead is read again when their time comes.
            self._backlog.drop_ahead(firsts)

    async def close(self) -> None:
        """Let go of the connection that reads ahead."""
        await self._prefetch.close()
