"""What a relay has in hand of its outbox: between the moment it was read, and the one in which its row is gone.

A message is read ahead, then in flight, then published and its row still there, or unpublishable and not yet buried. As
long as it is any of these it must not be read again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from scoop_outbox._log import get_logger
from scoop_outbox.broker.protocol import Receipt
from scoop_outbox.core.plans.outbox import Flow, Outgoing, Place, bury_unpublishable, delete_published
from scoop_outbox.daemon.counters import RelayCounters
from scoop_outbox.daemon.relay.leases import Leases
from scoop_outbox.daemon.relay.receipts import SortedReceipts, sort_receipts
from scoop_outbox.store.async_driver import AsyncDriver

log = get_logger(__name__)

MANY = 1000
"""So many published rows are deleted at once, while the next batch is in flight."""
_DELETE_AFTER = 0.01
"""Seconds from the receipts of a batch until its rows are deleted."""
_SHOWN = 5


class Backlog:
    """The messages that one relay has in hand.

    Args:
        leases: the epochs in which rows are deleted; doubted when another relay has done so.
        counters: told of rows that were deleted and of dead letters.
    """

    def __init__(self, leases: Leases, counters: RelayCounters) -> None:
        """Have nothing in hand."""
        self._leases = leases
        self._counters = counters
        self._ahead = Outgoing()  # was read, and is published next
        self._in_flight: Sequence[Place] = ()  # where that stands what the publisher has
        self._in_flight_since: float | None = None
        self._undeleted: list[Place] = []
        self._unburied: dict[Place, str] = {}
        self._delete_at = 0.0

    @property
    def ahead(self) -> Outgoing:
        """What was read, and is published next."""
        return self._ahead

    @property
    def in_flight(self) -> Sequence[Place]:
        """Where the messages stand that the publisher has."""
        return self._in_flight

    @property
    def seconds_in_flight(self) -> float:
        """For how long the publisher has had them; 0 when it has none. Safe to be asked from any thread."""
        since = self._in_flight_since
        return 0.0 if since is None else time.monotonic() - since

    def in_hand(self, low: Mapping[int, int]) -> list[int]:
        """Return the numbers above the low watermarks that were read and are still there, in order.

        What was read ahead is not among them: nothing is read before it is taken.

        Args:
            low: the low watermarks of the shards that are read.
        """
        places = (*self._in_flight, *self._undeleted, *self._unburied)
        return sorted(seq for shard, seq in places if seq > low.get(shard, seq))

    def put_ahead(self, batch: Outgoing) -> None:
        """Keep what was read, to be published next."""
        self._ahead = batch

    def take_ahead(self) -> Outgoing:
        """Return what is to be published next; it is the caller's from now on."""
        ahead, self._ahead = self._ahead, Outgoing()
        return ahead

    def drop_ahead(self, flows: Collection[Flow]) -> None:
        """Forget what was read ahead of flows, which is read again when their time comes."""
        self._ahead = self._ahead.without(flows=flows)

    def start_publishing(self, batch: Outgoing) -> None:
        """Note that the publisher has a batch."""
        self._in_flight_since = time.monotonic()
        self._in_flight = batch.places

    def end_publishing(self) -> None:
        """Note that the publisher has it no more."""
        self._counters.seconds.observe(self.seconds_in_flight)
        self._in_flight = ()
        self._in_flight_since = None

    def settle(self, batch: Outgoing, receipts: Sequence[Receipt]) -> SortedReceipts:
        """Note what became of a batch, and return it sorted; rows are deleted a moment later."""
        if not self._undeleted:
            # Not at once: whoever was told of mail is at work now, and what it launches is more urgent.
            self._delete_at = time.monotonic() + _DELETE_AFTER
        found = sort_receipts(batch, receipts)
        self._undeleted += found.published
        self._unburied |= found.unpublishable
        self._counters.acknowledged(found.topics)
        self._counters.retriable += found.failed
        return found

    @property
    def due_before_publishing(self) -> bool:
        """Whether to delete, or bury, before the next batch is published. What was read ahead goes first."""
        return bool(self._unburied) or (time.monotonic() >= self._delete_at and not self._ahead)

    @property
    def due_while_publishing(self) -> bool:
        """Whether to delete while a batch is in flight."""
        return bool(self._undeleted) and (time.monotonic() >= self._delete_at or len(self._undeleted) >= MANY)

    @property
    def delete_in(self) -> float | None:
        """In how many seconds there is something to delete; None when there is nothing."""
        return self._delete_at - time.monotonic() if self._undeleted else None

    async def delete(self, driver: AsyncDriver) -> None:
        """Delete what was published, and bury what cannot be."""
        if self._unburied:
            await self._bury(driver)
        if self._undeleted:
            deleted = await driver.run(delete_published(self._undeleted, self._leases.epochs))
            self._counters.deleted += deleted
            if deleted < len(self._undeleted):
                self._leases.doubt()  # another relay has our shards: do not publish the same once more
            self._undeleted = []

    async def _bury(self, driver: AsyncDriver) -> None:
        """Make dead letters of what can never be published."""
        buried = await driver.run(bury_unpublishable(self._unburied, self._leases.epochs))
        if buried < len(self._unburied):
            self._leases.doubt()
        if buried:
            self._counters.buried(self._unburied.values())
            for reason, count in Counter(self._unburied.values()).most_common(_SHOWN):
                log.error("relay: messages became dead letters (%d: %s)", count, reason, extra={"reason": reason})
        self._unburied = {}

    def forget(self, shards: Collection[int]) -> None:
        """Forget shards: whoever has them now publishes all that is there, what we published last too.

        What is in flight of them stays as it is until the publisher has answered.
        """
        self._undeleted = [place for place in self._undeleted if place[0] not in shards]
        self._unburied = {place: why for place, why in self._unburied.items() if place[0] not in shards}
        self._ahead = self._ahead.without(shards)
