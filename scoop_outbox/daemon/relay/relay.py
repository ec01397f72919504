"""The relay: reads the outbox, publishes, waits for the broker's word, deletes. It knows no broker.

The outbox is divided into shards by key. A shard has one owner at a time, by a lease row with an epoch that grows
with every change of owner: so messages of one key are published in order, by as many relays as anybody starts. The
epoch is checked again when published rows are deleted. No transaction is open while a broker is talked to.

While the publisher has a batch in hand, the relay deletes the batch before it, reads the one behind it on a second
connection, and renews its leases. It hands over the next batch when it has all receipts of the last one: that keeps
the order within a key.

This module is the loop, in one task. What it does in each round is divided by what it is about: `ownership` (which
shards are ours), `scan` (what is read next) and `backlog` (what is in hand). docs/architecture.md has a picture.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from scoop_outbox._log import get_logger
from scoop_outbox.broker.protocol import Publisher, Receipt
from scoop_outbox.core.plans.outbox import Outgoing
from scoop_outbox.daemon.counters import RelayCounters
from scoop_outbox.daemon.hints import ProcessHints
from scoop_outbox.daemon.polling import AdaptivePolling
from scoop_outbox.daemon.relay.backlog import Backlog
from scoop_outbox.daemon.relay.leases import Leases
from scoop_outbox.daemon.relay.ownership import Ownership
from scoop_outbox.daemon.relay.prefetch import Prefetch
from scoop_outbox.daemon.relay.probe import Probe
from scoop_outbox.daemon.relay.receipts import publish
from scoop_outbox.daemon.relay.scan import Scan
from scoop_outbox.daemon.relay.topic_backoff import TopicBackoff
from scoop_outbox.daemon.relay.watermark import Watermarks
from scoop_outbox.store.faults import DATABASE_ERRORS
from scoop_outbox.store.home import Home
from scoop_outbox.store.reconnecting import ReconnectingDriver

log = get_logger(__name__)

_OVERDUE = 30.0
"""Seconds after which a publisher that has not answered is a problem."""
_TRY_AGAIN = 0.5
"""Seconds from a failure of the database to the next try while a batch is in flight: leases have to be renewed."""


class Relay:
    """Publishes the shards of one home that it can get hold of.

    Args:
        home: whose outbox.
        publisher: the broker's publisher.
        hints: wakes the relay when there is something to publish.

    Attributes:
        counters: what became of messages, in numbers.
    """

    def __init__(self, home: Home, publisher: Publisher, hints: ProcessHints) -> None:
        """Own nothing yet."""
        self.counters = RelayCounters()
        self._publisher = publisher
        self._probe = Probe(publisher)
        self._polling = AdaptivePolling(longest=0.5)
        self._leases = Leases(home)
        self._backoff = TopicBackoff()
        self._backlog = Backlog(self._leases, self.counters)
        watermarks = Watermarks()
        self._ownership = Ownership(self._leases, self._probe, self._backlog, self._backoff, watermarks)
        self._scan = Scan(self._leases, self._backlog, self._backoff, watermarks, Prefetch(home))
        self._database = ReconnectingDriver(home.url, home.connect_to_queues, "relay", log, self._scan.begin_anew)
        self._stopping = False
        hints.on_outbox(self._wake)

    def _wake(self) -> bool:
        self._polling.wake()
        return bool(self._leases.epochs)

    @property
    def shards(self) -> int:
        """How many shards this relay owns."""
        return len(self._leases.epochs)

    @property
    def is_first(self) -> bool:
        """Whether this relay owns the first shard, as one relay of a home does: it does what one of them is to do."""
        return 0 in self._leases.epochs and self._leases.valid

    @property
    def problem(self) -> str | None:
        """What keeps messages from being published just now; None when all is well."""
        if (found := self._database.problem) is not None:
            return found
        if (seconds := self._backlog.seconds_in_flight) > _OVERDUE:
            return f"the broker has not answered for {seconds:.0f} s"
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
        self._scan.note_due()
        if self._backlog.due_before_publishing:
            await self._backlog.delete(driver)
        if self._leases.due and not await self._ownership.stand_aside(driver):
            # Behind the delete, which notices when another relay has our shards.
            await self._ownership.keep(driver)
        if self._backoff.pause:
            return False
        batch = self._backlog.take_ahead() or await self._scan.read(driver)
        if not batch:
            return False
        if not self._leases.valid:
            # This process stood still for so long that another relay may publish these by now.
            self._backlog.put_ahead(batch)
            self._leases.doubt()
            return True
        self._settle(batch, await self._publish_and_look_ahead(batch))
        self._polling.busy()
        return self._scan.draining or bool(self._backlog.ahead)

    async def _publish_and_look_ahead(self, batch: Outgoing) -> Sequence[Receipt]:
        self._backlog.start_publishing(batch)
        publishing = asyncio.create_task(self._publish(batch))
        waited_for: set[asyncio.Task[Any]] = {publishing}
        try:
            await asyncio.sleep(0)  # it begins
            while waited_for:
                if self._scan.draining and not self._backlog.ahead and not self._stopping:
                    waited_for.add(asyncio.create_task(self._scan.read_ahead()))
                try:
                    pause = await self._meanwhile()
                    self._database.answered()
                except DATABASE_ERRORS as error:
                    await self._database.failed(error)
                    pause = _TRY_AGAIN
                done, waited_for = await asyncio.wait(waited_for, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # whatever it does not expect ends the relay, and is told
            return publishing.result()
        finally:
            for task in waited_for:
                task.cancel()
            await asyncio.gather(*waited_for, return_exceptions=True)
            self._backlog.end_publishing()

    async def _publish(self, batch: Outgoing) -> Sequence[Receipt]:
        await self._probe.wait()
        return await publish(self._publisher, batch.envelopes)

    async def _meanwhile(self) -> float:
        """Do what can be done while a batch is being published; return in how many seconds there is more of it."""
        driver = await self._database.connect()
        if self._leases.due:
            await self._ownership.keep(driver)
        if self._backlog.due_while_publishing:
            await self._backlog.delete(driver)
        due = (self._leases.left, self._backlog.delete_in)
        return max(min(one for one in due if one is not None), 0.001)

    def _settle(self, batch: Outgoing, receipts: Sequence[Receipt]) -> None:
        """Note what became of a batch."""
        found = self._backlog.settle(batch, receipts)
        if found.published:
            self._probe.published()
        self._scan.note_receipts(batch, found)

    def _next_due(self) -> float | None:
        due = (self._backoff.next_due, self._backoff.pause or None, self._backlog.delete_in)
        return min((one for one in due if one is not None), default=None)

    async def _release(self) -> None:
        """Let a standby take over at once."""
        try:
            if self._leases.epochs and (driver := self._database.driver) is not None:
                await self._ownership.release(driver)
        except DATABASE_ERRORS:
            log.info("relay: shards not released, their leases expire by themselves")
        await self._database.close()
        await self._scan.close()
