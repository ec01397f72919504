"""The relay: reads the outbox, publishes, waits for the broker's word, deletes. It knows no broker.

The outbox is divided into shards by key. A shard has one owner at a time, by a lease row with an epoch that grows
with every change of owner: so messages of one key are published in order, by as many relays as anybody starts. The
epoch is checked again when published rows are deleted. No transaction is open while a broker is talked to.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from datetime import timedelta

import psycopg
import sqlalchemy as sa

from scoop_outbox.broker.protocol import Publisher, Receipt, Verdict
from scoop_outbox.core.delivery import Waiting, read_home, read_outbox
from scoop_outbox.core.statement import BEGIN, COMMIT, Plan, Rows, Statement, ask, statement
from scoop_outbox.daemon.pace import Pace
from scoop_outbox.daemon.signals import Signals
from scoop_outbox.store.aio import AsyncDriver
from scoop_outbox.store.calls import Interrupted
from scoop_outbox.store.home import Home
from scoop_outbox.store.schema import SHARDS

log = logging.getLogger(__name__)

BATCH = 500
LEASE = timedelta(seconds=6)
_RENEW = LEASE.total_seconds() / 3
_STANDBY = 0.4
_FULL_SCAN = 5.0
_DELETE_AFTER = 0.01
_LONGEST_BACKOFF = 30.0


class Relay:
    """Publishes the shards of one home that it can get hold of.

    Args:
        home: whose outbox.
        publisher: the broker's publisher.
        signals: wakes the relay when there is something to publish.
    """

    def __init__(self, home: Home, publisher: Publisher, signals: Signals) -> None:
        """Own nothing yet."""
        self._home = home
        self._publisher = publisher
        self._pace = Pace(longest=0.5)
        self._driver: AsyncDriver | None = None
        self._epochs: dict[int, int] = {}
        self._floors: dict[int, int] = {}
        self._draining: set[int] = set()
        self._undeleted: list[Waiting] = []
        self._delete_at = 0.0
        self._renew_at = 0.0
        self._full_scan_at = 0.0
        self._failures: dict[int, int] = {}
        self._held_back: dict[int, float] = {}
        self._origin: uuid.UUID | None = None
        self._stopping = False
        self.published = 0
        signals.on_outbox(self._wake)

    def _wake(self) -> bool:
        self._pace.wake()
        return bool(self._epochs)

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
                    if not await self._turn():
                        await self._pace.sleep(self._next_due())
                    failures = 0
                except (Interrupted, psycopg.Error, sa.exc.SQLAlchemyError, OSError) as error:
                    failures += 1
                    log.warning("the relay cannot reach the database (%s); trying again", type(error).__name__)
                    await self._drop_driver()
                    await self._pace.sleep(min(0.1 * 2.0 ** min(failures, 60), 5.0))
        finally:
            await self._release()
            await self._publisher.close()

    async def _turn(self) -> bool:
        """Publish one batch; answer whether there seem to be more."""
        driver = await self._connected()
        now = time.monotonic()
        full_scan = now >= self._full_scan_at
        if self._undeleted and (full_scan or now >= self._delete_at):
            await self._delete(driver)
        await self._keep_leases(driver)  # behind the delete, which notices when another relay has our shards
        if full_scan:
            # Messages whose transaction committed late lie below the floor.
            self._floors.clear()
            self._full_scan_at = now + _FULL_SCAN
        floors = [
            (shard, self._floors.get(shard, 0)) for shard in self._epochs if self._held_back.get(shard, 0.0) <= now
        ]
        if not floors:
            return False
        waiting = await driver.run(read_outbox(floors, BATCH, await self._home_id(driver)))
        self._raise_floors(waiting)
        if waiting:
            await self._settle(driver, waiting, await self._publish(waiting))
            self._pace.busy()
        return bool(self._draining)

    async def _publish(self, waiting: Sequence[Waiting]) -> Sequence[Receipt]:
        try:
            receipts = await self._publisher.publish([one.envelope for one in waiting])
        except Exception as error:
            log.exception("the publisher has failed; its messages stay in the outbox")
            return [Receipt(Verdict.FAILED_FOR_NOW, type(error).__name__)] * len(waiting)
        if len(receipts) != len(waiting):
            log.error("the publisher returned %d receipts for %d messages", len(receipts), len(waiting))
            return [Receipt(Verdict.FAILED_FOR_NOW, "no receipts")] * len(waiting)
        return receipts

    def _raise_floors(self, waiting: Sequence[Waiting]) -> None:
        """Read on above what was read: it is published, and deleted a little later."""
        counts: dict[int, int] = {}
        for one in waiting:
            counts[one.shard] = counts.get(one.shard, 0) + 1
            self._floors[one.shard] = one.seq
        self._draining = {shard for shard, count in counts.items() if count >= BATCH}

    async def _delete(self, driver: AsyncDriver) -> None:
        """Delete what was published."""
        deleted = await driver.run(_delete(self._undeleted, self._epochs))
        self.published += deleted
        if deleted < len(self._undeleted):
            self._renew_at = 0.0  # another relay has our shards: do not publish the same once more
        self._undeleted.clear()
        self._floors = {shard: floor for shard, floor in self._floors.items() if shard in self._draining}

    async def _settle(self, driver: AsyncDriver, waiting: Sequence[Waiting], receipts: Sequence[Receipt]) -> None:
        verdicts = [receipt.verdict for receipt in receipts]
        if not self._undeleted:
            # Not at once: whoever was told of mail is at work now, and what it launches is more urgent.
            self._delete_at = time.monotonic() + _DELETE_AFTER
        done = [one for one, verdict in zip(waiting, verdicts, strict=True) if verdict is Verdict.ACKNOWLEDGED]
        self._undeleted += done
        if len(self._undeleted) >= BATCH or len(done) < len(waiting):
            await self._delete(driver)
        for one, receipt in zip(waiting, receipts, strict=True):
            if receipt.verdict is Verdict.FAILED_FOR_GOOD:
                log.error("message %s cannot be published and is a dead letter now", one.envelope.id)
                if not await driver.run(_bury(one, self._epochs[one.shard], receipt.reason)):
                    self._renew_at = 0.0
        held_back = {
            one.shard
            for one, receipt in zip(waiting, receipts, strict=True)
            if receipt.verdict is Verdict.FAILED_FOR_NOW
        }
        for shard in {one.shard for one in waiting}:
            if shard not in held_back:
                self._failures.pop(shard, None)
                continue
            self._failures[shard] = self._failures.get(shard, 0) + 1
            self._floors.pop(shard, None)
            pause = min(0.05 * 2.0 ** min(self._failures[shard], 60), _LONGEST_BACKOFF)
            self._held_back[shard] = time.monotonic() + pause
            log.warning("shard %d waits %.1f s: the broker does not take its messages", shard, pause)

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
            self._driver = await self._home.connect()
        return self._driver

    async def _keep_leases(self, driver: AsyncDriver) -> None:
        """Renew what is owned, take what nobody owns, forget what another relay has taken."""
        started = time.monotonic()
        if started < self._renew_at:
            return
        renewed: list[Rows] = []
        if self._epochs:
            renewed = await driver.run(_run(statement("renew_shards", lease=LEASE, **_mine(self._epochs))))
        held: dict[int, int] = dict(renewed[0] if renewed else ())
        gained: dict[int, int] = {}
        if len(held) < SHARDS:
            (rows,) = await driver.run(_run(statement("acquire_shards", owner=self._home.process_id, lease=LEASE)))
            gained = dict(rows)
        lost = set(self._epochs) - set(held) - set(gained)
        if lost:
            log.warning("another relay has taken shards %s", sorted(lost))
        self._epochs = {**held, **gained}
        # A standby looks more often: nothing is published until it has noticed that an owner is gone.
        self._renew_at = started + (_RENEW if self._epochs else _STANDBY)
        if gained:
            log.info("relaying shards %s", sorted(self._epochs))
            self._full_scan_at = 0.0

    async def _release(self) -> None:
        """Let a standby take over at once."""
        try:
            if self._epochs and self._driver is not None and self._driver.usable:
                await self._delete(self._driver)
                await self._driver.run(_run(statement("release_shards", **_mine(self._epochs))))
        except (Interrupted, psycopg.Error):
            log.info("the leases of this relay run out by themselves")
        self._epochs = {}
        await self._drop_driver()

    async def _drop_driver(self) -> None:
        driver, self._driver = self._driver, None
        if driver is not None:
            await driver.close()


def _run(*statements: Statement) -> Plan[list[Rows]]:
    return (yield from ask(*statements))


def _mine(epochs: dict[int, int]) -> dict[str, list[int]]:
    return {"shards": list(epochs), "epochs": list(epochs.values())}


def _delete(done: Sequence[Waiting], epochs: dict[int, int]) -> Plan[int]:
    if not done:
        return 0
    # A crash that forgets the delete publishes again, which intake notices: not worth a wait for the disk.
    _, _, deleted, _ = yield from ask(
        BEGIN,
        statement("without_waiting_for_disk"),
        statement(
            "delete_published",
            shards=[one.shard for one in done],
            seqs=[one.seq for one in done],
            owned=list(epochs),
            epochs=list(epochs.values()),
        ),
        COMMIT,
    )
    count: int = deleted[0][0]
    return count


def _bury(one: Waiting, epoch: int, reason: str) -> Plan[bool]:
    (buried,) = yield from ask(
        statement("bury_unpublishable", shard=one.shard, seq=one.seq, epoch=epoch, reason=reason)
    )
    return bool(buried)
