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
import contextlib
import logging
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any

import psycopg
import sqlalchemy as sa

from scoop_outbox.broker.protocol import ACKNOWLEDGED, Publisher, Receipt, Verdict
from scoop_outbox.core.delivery import read_home
from scoop_outbox.core.outbox import Outgoing, Place, bury_unpublishable, delete_published, read_outbox
from scoop_outbox.daemon.leases import Leases
from scoop_outbox.daemon.pace import Pace
from scoop_outbox.daemon.probe import Probe
from scoop_outbox.daemon.reader import Reader
from scoop_outbox.daemon.signals import Signals
from scoop_outbox.daemon.tally import Tally
from scoop_outbox.store.aio import AsyncDriver
from scoop_outbox.store.calls import Interrupted
from scoop_outbox.store.connect import in_words
from scoop_outbox.store.home import Home
from scoop_outbox.store.schema import SHARDS

log = logging.getLogger(__name__)

BATCH = 1000
"""Most rows of a shard in one batch, if all shards have as many."""
FIRST = 250
"""The same in the first batch, which is read while nothing is being published."""
BATCH_BYTES = 2 * 1024 * 1024
"""With so many bytes of bodies the part of a shard in a batch is complete: three batches at most are in memory."""
_FULL_SCAN = 5.0
_DELETE_AFTER = 0.01
_LONGEST_BACKOFF = 30.0
_OVERDUE = 30.0
_REASONS = 5

_DATABASE_ERRORS = (Interrupted, psycopg.Error, sa.exc.SQLAlchemyError, OSError)


class Relay:
    """Publishes the shards of one home that it can get hold of.

    Args:
        home: whose outbox.
        publisher: the broker's publisher.
        signals: wakes the relay when there is something to publish.

    Attributes:
        published: how many rows were published and deleted.
        tally: what became of messages, in numbers.
    """

    def __init__(self, home: Home, publisher: Publisher, signals: Signals) -> None:
        """Own nothing yet."""
        self._home = home
        self._publisher = publisher
        self._probe = Probe(publisher)
        self._pace = Pace(longest=0.5)
        self._driver: AsyncDriver | None = None
        self._reader = Reader(home)
        self._leases = Leases(home)
        self._floors: dict[int, int] = {}  # up to where a shard has been read
        self._rewound: set[int] = set()  # shards to be read from the beginning, when what was published is deleted
        self._draining: set[int] = set()  # shards of which there is more than was read
        self._ahead = Outgoing()  # was read, and is published next
        self._in_flight: frozenset[int] = frozenset()  # shards of what the publisher has in hand
        self._reading: frozenset[int] = frozenset()  # shards that are being read
        self._undeleted: list[Place] = []
        self._unburied: dict[Place, str] = {}
        self._delete_at = 0.0
        self._full_scan_at = 0.0
        self._failures: dict[int, int] = {}
        self._held_back: dict[int, float] = {}
        self._origin: uuid.UUID | None = None
        self._stopping = False
        self._reason = ""
        self._publishing_since: float | None = None
        self._database: str | None = None  # why it cannot be used
        self.published = 0
        self.tally = Tally()
        signals.on_outbox(self._wake)

    def _wake(self) -> bool:
        self._pace.wake()
        return bool(self._leases.epochs)

    @property
    def shards(self) -> int:
        """How many shards this relay owns."""
        return len(self._leases.epochs)

    @property
    def trouble(self) -> str | None:
        """What keeps messages from being published just now; None when all is well."""
        if self._database is not None:
            return self._database
        since = self._publishing_since
        if since is not None and time.monotonic() - since > _OVERDUE:
            return f"the broker has not answered for {time.monotonic() - since:.0f} s"
        return (self._reason or "the broker does not take messages") if self._failures else self._probe.trouble

    async def check(self) -> None:
        """See whether the broker would take messages. One that is merely down will come back: `trouble` tells of it.

        Raises:
            BrokerError: it never will; what is wrong, and how to mend it.
        """
        await self._probe.ask()

    def stop(self) -> None:
        """End after the batch in hand; what is in the outbox stays there."""
        self._stopping = True
        self._pace.wake()

    async def run(self) -> None:
        """Relay until stopped, whatever happens to the database and the broker meanwhile."""
        failures = 0
        try:
            while not self._stopping:
                try:
                    more = await self._turn()
                    failures, self._database = 0, None
                    if not more:
                        self._probe.ask_if_due()
                        await self._pace.sleep(self._next_due())
                except _DATABASE_ERRORS as error:
                    failures += 1
                    self._note(error)
                    await self._drop_driver()
                    await self._pace.sleep(min(0.1 * 2.0 ** min(failures, 60), 5.0))
        finally:
            await self._release()
            await self._probe.close()
            await self._publisher.close()

    def _note(self, error: Exception) -> None:
        """Say once, and again when it changes, why the database cannot be used."""
        reason = f"the relay cannot use the database: {in_words(self._home.url, error)}"
        if reason != self._database:
            log.warning("%s; trying again", reason)
            self._database = reason

    async def _turn(self) -> bool:
        """Publish one batch; answer whether there seem to be more."""
        driver = await self._connected()
        now = time.monotonic()
        if now >= self._full_scan_at:
            # Messages whose transaction committed late lie below the floor.
            self._rewound.update(range(SHARDS))
            self._full_scan_at = now + _FULL_SCAN
        if self._rewound or self._unburied or (now >= self._delete_at and not self._ahead):
            await self._delete(driver)
        if self._leases.due:  # behind the delete, which notices when another relay has our shards
            await self._keep_leases(driver)
        if self._rewound:
            self._rewind()
        batch, self._ahead = self._ahead or await self._read(driver, await self._home_id(driver)), Outgoing()
        if not batch:
            return False
        if not self._leases.valid:
            # This process stood still for so long that another relay may publish these by now.
            self._ahead = batch
            self._leases.doubt()
            return True
        self._settle(batch, await self._publish_and_look_ahead(batch))
        self._pace.busy()
        return bool(self._draining or self._ahead)

    async def _publish_and_look_ahead(self, batch: Outgoing) -> Sequence[Receipt]:
        self._publishing_since = time.monotonic()
        self._in_flight = batch.shards
        publishing = asyncio.create_task(self._publish(batch))
        waited_for: set[asyncio.Task[Any]] = {publishing}
        try:
            await asyncio.sleep(0)  # it begins
            while waited_for:
                # Not when all is to be read from the beginning next: it would be thrown away.
                if self._draining and not self._ahead and not self._stopping and time.monotonic() < self._full_scan_at:
                    waited_for.add(asyncio.create_task(self._look_ahead()))
                try:
                    pause = await self._meanwhile()
                    self._database = None
                except _DATABASE_ERRORS as error:
                    self._note(error)
                    await self._drop_driver()
                    pause = 0.5
                done, waited_for = await asyncio.wait(waited_for, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # whatever it does not expect ends the relay, and is told
            return publishing.result()
        finally:
            for task in waited_for:
                task.cancel()
            await asyncio.gather(*waited_for, return_exceptions=True)
            self.tally.seconds.observe(time.monotonic() - self._publishing_since)
            self._in_flight = frozenset()
            self._publishing_since = None

    async def _look_ahead(self) -> None:
        """Read the next batch while this one is being published."""
        assert self._origin is not None  # noqa: S101 - the batch in hand was read before
        try:
            self._ahead = await self._read(self._reader, self._origin)
        except _DATABASE_ERRORS as error:
            log.warning("the relay cannot read ahead (%s)", type(error).__name__)

    async def _meanwhile(self) -> float:
        """Do what can be done while a batch is being published; return in how many seconds there is more of it."""
        driver = await self._connected()
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
        try:
            receipts = await self._publisher.publish(batch.envelopes)
        except Exception as error:
            log.exception("the publisher has failed; its messages stay in the outbox")
            return [Receipt(Verdict.FAILED_FOR_NOW, type(error).__name__)] * len(batch)
        if len(receipts) != len(batch):
            log.error("the publisher returned %d receipts for %d messages", len(receipts), len(batch))
            return [Receipt(Verdict.FAILED_FOR_NOW, "no receipts")] * len(batch)
        return receipts

    async def _read(self, executor: AsyncDriver | Reader, home: uuid.UUID) -> Outgoing:
        """Read on above what was read: it is in hand, or published and not yet deleted."""
        now = time.monotonic()
        floors = [
            (shard, self._floors.get(shard, 0))
            for shard in self._leases.epochs
            if self._held_back.get(shard, 0.0) <= now and shard not in self._rewound
        ]
        # A few shards, or one busy key, fill a batch as well as all of them do.
        limit = BATCH * SHARDS // len(self._draining) if self._draining else min(FIRST, BATCH)
        self._draining = set()
        if not floors:
            return Outgoing()
        self._reading = frozenset(dict(floors))
        try:
            found = await executor.run(read_outbox(floors, limit, BATCH_BYTES, home))
        finally:
            self._reading = frozenset()
        self._floors.update(found.places)  # they are in order: the last one of each shard stays
        self._draining = found.full(limit, BATCH_BYTES)
        return found

    def _rewind(self) -> None:
        """Read shards from the beginning again: nothing of them is in hand, or published and not yet deleted."""
        for shard in self._rewound:
            self._floors.pop(shard, None)
        self._ahead = self._ahead.without(self._rewound)
        self._rewound.clear()

    async def _bury(self, driver: AsyncDriver) -> None:
        """Make dead letters of what can never be published."""
        buried = await driver.run(bury_unpublishable(self._unburied, self._leases.epochs))
        if buried < len(self._unburied):
            self._leases.doubt()
        if buried:
            self.tally.buried(self._unburied.values())
            for reason, count in Counter(self._unburied.values()).most_common(_REASONS):
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
            # What has been drained is read from the beginning, for messages that commit late.
            kept = self._draining | self._in_flight | self._reading | self._ahead.shards
            self._floors = {shard: floor for shard, floor in self._floors.items() if shard in kept}

    def _settle(self, batch: Outgoing, receipts: Sequence[Receipt]) -> None:
        """Note what became of a batch."""
        if not self._undeleted:
            # Not at once: whoever was told of mail is at work now, and what it launches is more urgent.
            self._delete_at = time.monotonic() + _DELETE_AFTER
        progress: set[int] = set()
        held_back: dict[int, str] = {}
        if receipts.count(ACKNOWLEDGED) == len(batch):  # the rule, and there are many
            progress |= batch.shards
            self._probe.published()
            self._undeleted += batch.places
            self.tally.acknowledged(one.topic for one in batch.envelopes)
        else:
            for place, envelope, receipt in zip(batch.places, batch.envelopes, receipts, strict=True):
                if receipt.verdict is Verdict.FAILED_FOR_NOW:
                    held_back.setdefault(place[0], receipt.reason)
                    self.tally.failed_for_now += 1
                    continue
                progress.add(place[0])
                if receipt.verdict is Verdict.ACKNOWLEDGED:
                    self._undeleted.append(place)
                    self.tally.acknowledged([envelope.topic])
                else:
                    self._unburied[place] = receipt.reason
        for shard in progress - held_back.keys():
            self._failures.pop(shard, None)
        for shard in held_back.keys() - self._leases.epochs.keys():
            del held_back[shard]  # whoever has it now has to see to it
        if held_back:
            self._hold_back(held_back, progress)
        elif self._reason and not self._failures:
            log.info("the broker takes messages again")
            self._reason = ""

    def _hold_back(self, reasons: dict[int, str], progress: set[int]) -> None:
        """Let shards wait, each time longer unless it got on; what was read of them ahead is read again in order."""
        reason = next(iter(reasons.values()))
        if reason != self._reason or not self._failures:
            log.warning("messages of shards %s wait, the broker does not take them: %s", sorted(reasons), reason)
            self._reason = reason
        for shard in reasons:
            self._failures[shard] = 1 if shard in progress else self._failures.get(shard, 0) + 1
            pause = min(0.05 * 2.0 ** min(self._failures[shard], 60), _LONGEST_BACKOFF)
            self._held_back[shard] = time.monotonic() + pause
        self._rewound |= reasons.keys()

    def _next_due(self) -> float | None:
        now = time.monotonic()
        due = [until - now for until in self._held_back.values() if until > now]
        if self._undeleted:
            due.append(self._delete_at - now)
        return min(due, default=None)

    async def _home_id(self, driver: AsyncDriver) -> uuid.UUID:
        if self._origin is None:
            self._origin = await driver.run(read_home())
        return self._origin

    async def _connected(self) -> AsyncDriver:
        if self._driver is None or not self._driver.usable:
            self._driver = await self._home.connect_to_queues()
        return self._driver

    async def _keep_leases(self, driver: AsyncDriver) -> None:
        gained, lost = await self._leases.keep(driver)
        if lost:
            # Whoever has them now publishes all that is there, what we published last too.
            self._undeleted = [place for place in self._undeleted if place[0] not in lost]
            self._unburied = {place: why for place, why in self._unburied.items() if place[0] not in lost}
            for shard in lost:
                self._failures.pop(shard, None)
                self._held_back.pop(shard, None)
        self._rewound |= gained | lost

    async def _release(self) -> None:
        """Let a standby take over at once."""
        try:
            if self._leases.epochs and self._driver is not None and self._driver.usable:
                await self._delete(self._driver)
                await self._leases.release(self._driver)
        except (Interrupted, psycopg.Error):
            log.info("the leases of this relay run out by themselves")
        await self._drop_driver()
        await self._reader.close()

    async def _drop_driver(self) -> None:
        driver, self._driver = self._driver, None
        if driver is not None:
            with contextlib.suppress(Exception):
                await driver.close()
