"""The relay: reads the outbox, publishes, waits for the broker's word, deletes. It knows no broker.

The outbox is divided into shards by key. A shard has one owner at a time, by a lease row with an epoch that grows
with every change of owner: so messages of one key are published in order, by as many relays as anybody starts. The
epoch is checked again when published rows are deleted. No transaction is open while a broker is talked to.

While the publisher has a batch in hand, the relay deletes the batch before it, reads the one behind it on a second
connection, and renews its leases. It hands over the next batch when it has all receipts of the last one: that keeps
the order within a key.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from scoop_outbox.broker.protocol import Publisher, Receipt
from scoop_outbox.core.plans.home import read_home
from scoop_outbox.core.plans.outbox import Outgoing, Place, bury_unpublishable, delete_published, read_outbox
from scoop_outbox.daemon.counters import RelayCounters
from scoop_outbox.daemon.polling import AdaptivePolling
from scoop_outbox.daemon.relay.leases import Leases
from scoop_outbox.daemon.relay.prefetch import Prefetch
from scoop_outbox.daemon.relay.probe import Probe
from scoop_outbox.daemon.relay.receipts import publish, sort_receipts
from scoop_outbox.daemon.relay.topic_backoff import TopicBackoff
from scoop_outbox.daemon.relay.watermark import Watermarks
from scoop_outbox.daemon.signals import Signals
from scoop_outbox.store.async_driver import AsyncDriver
from scoop_outbox.store.faults import DATABASE_ERRORS
from scoop_outbox.store.home import Home
from scoop_outbox.store.reconnecting import ReconnectingDriver
from scoop_outbox.store.schema import SHARDS
from scoop_outbox.store.time_limit import TimeLimitedDriver

log = logging.getLogger(__name__)

BATCH = 1000
"""Most rows of a shard in one batch, if all shards have as many."""
FIRST = 250
"""The same in the first batch, which is read while nothing is being published."""
BATCH_BYTES = 2 * 1024 * 1024
"""With so many bytes of bodies the part of a shard in a batch is complete, if all shards have as many."""
TRIAL = 10
"""The same when a topic is tried again that the broker did not take."""
_DELETE_AFTER = 0.01
_STAND_ASIDE_AFTER = 15.0
_OVERDUE = 30.0
_SHOWN = 5


class Relay:
    """Publishes the shards of one home that it can get hold of.

    Args:
        home: whose outbox.
        publisher: the broker's publisher.
        signals: wakes the relay when there is something to publish.

    Attributes:
        published: how many rows were published and deleted.
        counters: what became of messages, in numbers.
    """

    def __init__(self, home: Home, publisher: Publisher, signals: Signals) -> None:
        """Own nothing yet."""
        self._home = home
        self._publisher = publisher
        self._probe = Probe(publisher)
        self._polling = AdaptivePolling(longest=0.5)
        self._database = ReconnectingDriver(
            home.url, home.connect_to_queues, "the relay cannot use the database", log, self._begin_anew
        )
        self._prefetch = Prefetch(home)
        self._leases = Leases(home)
        self._watermarks = Watermarks()
        self._on_trial = False  # whether a topic is tried again with the next batch
        self._backoff = TopicBackoff()
        self._aside = False  # the shards are left to whoever can reach the broker
        self._draining: set[int] = set()  # shards of which there is more than was read
        self._ahead = Outgoing()  # was read, and is published next
        self._in_flight: Sequence[Place] = ()  # where that stands what the publisher has in hand
        self._undeleted: list[Place] = []
        self._unburied: dict[Place, str] = {}
        self._delete_at = 0.0
        self._origin: uuid.UUID | None = None
        self._stopping = False
        self._publishing_since: float | None = None
        self.published = 0
        self.counters = RelayCounters()
        signals.on_outbox(self._wake)

    def _wake(self) -> bool:
        self._polling.wake()
        return bool(self._leases.epochs)

    @property
    def shards(self) -> int:
        """How many shards this relay owns."""
        return len(self._leases.epochs)

    @property
    def problem(self) -> str | None:
        """What keeps messages from being published just now; None when all is well."""
        if (found := self._database.problem) is not None:
            return found
        since = self._publishing_since
        if since is not None and time.monotonic() - since > _OVERDUE:
            return f"the broker has not answered for {time.monotonic() - since:.0f} s"
        return self._backoff.reason if self._backoff else self._probe.problem

    async def check(self) -> None:
        """See whether the broker would take messages. One that is merely down will come back: `problem` tells of it.

        Raises:
            BrokerError: it never will; what is wrong, and how to mend it.
        """
        await self._probe.ask()

    async def close(self) -> None:
        """Let go of the publisher of a relay that was never run."""
        await self._publisher.close()

    def stop(self) -> None:
        """End after the batch in hand; what is in the outbox stays there."""
        self._stopping = True
        self._polling.wake()

    async def run(self) -> None:
        """Relay until stopped, whatever happens to the database and the broker meanwhile."""
        try:
            while not self._stopping:
                try:
                    more = await self._cycle()
                    self._database.answered()
                    if not more:
                        self._probe.ask_if_due()
                        await self._polling.sleep(self._next_due())
                except DATABASE_ERRORS as error:
                    await self._polling.sleep(await self._database.failed(error))
        finally:
            await self._release()
            await self._probe.close()
            await self._publisher.close()

    async def _cycle(self) -> bool:
        """Publish one batch; answer whether there seem to be more."""
        driver = await self._database.connect()
        now = time.monotonic()
        self._note_what_to_read_again()
        if self._unburied or (now >= self._delete_at and not self._ahead):
            await self._delete(driver)
        if self._leases.due and not await self._stand_aside(driver):
            # Behind the delete, which notices when another relay has our shards.
            await self._keep_leases(driver)
        if self._backoff.pause:
            return False
        batch, self._ahead = self._ahead or await self._read(driver), Outgoing()
        if not batch:
            return False
        if not self._leases.valid:
            # This process stood still for so long that another relay may publish these by now.
            self._ahead = batch
            self._leases.doubt()
            return True
        self._settle(batch, await self._publish_and_look_ahead(batch))
        self._polling.busy()
        return bool(self._draining or self._ahead)

    async def _publish_and_look_ahead(self, batch: Outgoing) -> Sequence[Receipt]:
        self._publishing_since = time.monotonic()
        self._in_flight = batch.places
        publishing = asyncio.create_task(self._publish(batch))
        waited_for: set[asyncio.Task[Any]] = {publishing}
        try:
            await asyncio.sleep(0)  # it begins
            while waited_for:
                if self._draining and not self._ahead and not self._stopping:
                    waited_for.add(asyncio.create_task(self._look_ahead()))
                try:
                    pause = await self._meanwhile()
                    self._database.answered()
                except DATABASE_ERRORS as error:
                    await self._database.failed(error)
                    pause = 0.5
                done, waited_for = await asyncio.wait(waited_for, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # whatever it does not expect ends the relay, and is told
            return publishing.result()
        finally:
            for task in waited_for:
                task.cancel()
            await asyncio.gather(*waited_for, return_exceptions=True)
            self.counters.seconds.observe(time.monotonic() - self._publishing_since)
            self._in_flight = ()
            self._publishing_since = None

    async def _look_ahead(self) -> None:
        """Read the next batch while this one is being published."""
        try:
            self._ahead = await self._read(self._prefetch)
        except DATABASE_ERRORS as error:
            log.warning("the relay cannot read ahead (%s)", type(error).__name__)

    async def _meanwhile(self) -> float:
        """Do what can be done while a batch is being published; return in how many seconds there is more of it."""
        driver = await self._database.connect()
        if self._leases.due:
            await self._keep_leases(driver)
        if self._undeleted and (time.monotonic() >= self._delete_at or len(self._undeleted) >= BATCH):
            await self._delete(driver)
        due = [self._leases.left]
        if self._undeleted:
            due.append(self._delete_at - time.monotonic())
        return max(min(due), 0.001)

    async def _publish(self, batch: Outgoing) -> Sequence[Receipt]:
        await self._probe.wait()
        return await publish(self._publisher, batch.envelopes)

    async def _read(self, executor: AsyncDriver | Prefetch) -> Outgoing:
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
                self._in_hand(low),
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
        if self._backoff and not self._in_flight:
            # Nothing is there any more of a topic that was to be tried again.
            self._backoff.unblock(self._backoff.half_open(low.keys() - stale - full) - found.flows)
        return found

    def _in_hand(self, low: Mapping[int, int]) -> list[int]:
        """Return the numbers above the low watermarks that were read and are still there."""
        places = (*self._in_flight, *self._undeleted, *self._unburied)
        return sorted(seq for shard, seq in places if seq > low.get(shard, seq))

    def _note_what_to_read_again(self) -> None:
        again = self._backoff.try_due()
        self._on_trial |= bool(again)
        if self._watermarks.full_scan.due:
            again = dict.fromkeys(self._leases.epochs, 0)
            self._watermarks.full_scan.begin()
        self._watermarks.lower({shard: min(above, self._watermarks.low(shard)) for shard, above in again.items()})

    async def _bury(self, driver: AsyncDriver) -> None:
        """Make dead letters of what can never be published."""
        buried = await driver.run(bury_unpublishable(self._unburied, self._leases.epochs))
        if buried < len(self._unburied):
            self._leases.doubt()
        if buried:
            self.counters.buried(self._unburied.values())
            for reason, count in Counter(self._unburied.values()).most_common(_SHOWN):
                log.error("dead letters that cannot be published, %d more of them: %s", count, reason)
        self._unburied = {}

    async def _delete(self, driver: AsyncDriver) -> None:
        """Delete what was published, and bury what cannot be."""
        if self._unburied:
            await self._bury(driver)
        if self._undeleted:
            deleted = await driver.run(delete_published(self._undeleted, self._leases.epochs))
            self.published += deleted
            if deleted < len(self._undeleted):
                self._leases.doubt()  # another relay has our shards: do not publish the same once more
            self._undeleted = []

    def _settle(self, batch: Outgoing, receipts: Sequence[Receipt]) -> None:
        """Note what became of a batch."""
        if not self._undeleted:
            # Not at once: whoever was told of mail is at work now, and what it launches is more urgent.
            self._delete_at = time.monotonic() + _DELETE_AFTER
        found = sort_receipts(batch, receipts)
        if found.published:
            self._probe.published()
        self._undeleted += found.published
        self._unburied |= found.unpublishable
        self.counters.acknowledged(found.topics)
        self.counters.retriable += found.failed
        if self._backoff:
            self._backoff.unblock(batch.flows - found.firsts.keys())
        # Whoever has a shard now that was ours has to see to it.
        firsts = {flow: seq for flow, seq in found.firsts.items() if flow[0] in self._leases.epochs}
        if firsts:
            # What came to light later may stand before it.
            firsts |= {flow: min(seq, firsts[flow]) for flow, seq in self._ahead.firsts(firsts).items()}
            low = {shard: self._watermarks.low(shard) for shard, _ in firsts}
            self._backoff.block(firsts, found.progress, found.reason, low)
            # What was read of them ahead is read again when their time comes.
            self._ahead = self._ahead.without(flows=firsts)

    def _next_due(self) -> float | None:
        due = [self._backoff.next_due, self._backoff.pause or None]
        if self._undeleted:
            due.append(self._delete_at - time.monotonic())
        return min((one for one in due if one is not None), default=None)

    async def _stand_aside(self, driver: AsyncDriver) -> bool:
        """Leave the shards to other relays while this one cannot reach the broker; answer whether it does."""
        stalled = not self._aside and self._backoff.stalled > _STAND_ASIDE_AFTER
        if stalled and await self._probe.look() is not None:
            log.warning("this relay leaves its shards to others until it can reach the broker")
            await self._delete(driver)
            await self._leases.release(driver)
            self._disown(set(range(SHARDS)))
            self._aside = True  # now: with shards whose leases nobody renews it would turn round and round
        elif self._aside and self._probe.problem is None:
            self._aside = False
            self._leases.doubt()
        return self._aside

    async def _begin_anew(self, driver: TimeLimitedDriver) -> None:
        """Read everything from the beginning: it may be another server that answers."""
        self._watermarks.reset()
        self._backoff.reset()
        if self._origin is None:
            self._origin = await driver.run(read_home())

    async def _keep_leases(self, driver: AsyncDriver) -> None:
        gained, lost = await self._leases.keep(driver)
        self._disown(lost)
        self._watermarks.lower(dict.fromkeys(gained, 0))

    def _disown(self, shards: set[int]) -> None:
        """Forget shards: whoever has them now publishes all that is there, what we published last too."""
        if shards:
            self._undeleted = [place for place in self._undeleted if place[0] not in shards]
            self._unburied = {place: why for place, why in self._unburied.items() if place[0] not in shards}
            self._ahead = self._ahead.without(shards)
            self._backoff.forget(shards)
            self._watermarks.lower(dict.fromkeys(shards, 0))

    async def _release(self) -> None:
        """Let a standby take over at once."""
        try:
            if self._leases.epochs and (driver := self._database.driver) is not None:
                await self._delete(driver)
                await self._leases.release(driver)
        except DATABASE_ERRORS:
            log.info("the leases of this relay run out by themselves")
        await self._database.close()
        await self._prefetch.close()
