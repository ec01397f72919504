"""Intake: takes the messages of one service from the broker into its home, and only then tells the broker.

One transaction a batch. What comes twice is taken in once; what cannot be taken in becomes a dead letter, and the
broker is told all the same, for it would only come again.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping, Sequence

import psycopg
import sqlalchemy as sa

from scoop_outbox.broker.protocol import Broker, Consumer, Delivery, Subscription
from scoop_outbox.core.claim import Hints
from scoop_outbox.core.delivery import Unusable, count_due, read_home, take_in
from scoop_outbox.daemon.pace import Pace
from scoop_outbox.errors import BrokerError, PayloadError
from scoop_outbox.headers import ID
from scoop_outbox.message import Envelope
from scoop_outbox.saga import Saga
from scoop_outbox.store.aio import AsyncDriver
from scoop_outbox.store.calls import Interrupted
from scoop_outbox.store.home import Home

log = logging.getLogger(__name__)

BATCH = 500
HIGH_WATER = 10_000
LOW_WATER = 5_000
_WAIT = 0.5
_LONGEST_BACKOFF = 30.0


class Intake:
    """Takes in for one service, as one member of its consumer group.

    Args:
        home: where messages go.
        broker: where they come from.
        subscription: what the service wants to receive.
        sagas: the service's sagas by name.
        hints: told which runs have mail.
        high: no more is taken in while so many runs lie waiting for a slot...
        low: ...until there are no more than so many.
    """

    def __init__(
        self,
        home: Home,
        broker: Broker,
        subscription: Subscription,
        sagas: Mapping[str, Saga],
        hints: Hints,
        *,
        high: int = HIGH_WATER,
        low: int = LOW_WATER,
    ) -> None:
        """Take in nothing yet."""
        self._home = home
        self._broker = broker
        self._subscription = subscription
        self._sagas = dict(sagas)
        self._hints = hints
        self._high = high
        self._low = low
        self._pace = Pace(longest=0.5)
        self._driver: AsyncDriver | None = None
        self._consumer: Consumer | None = None
        self._home_id: uuid.UUID | None = None
        self._unacknowledged: list[Delivery] = []
        self._room = 0  # how many messages may be taken in before the work that waits is counted again
        self._stopping = False
        self.paused = False
        self.taken_in = 0
        self.dead_letters = 0
        self.last_turn = time.monotonic()
        self._error: str | None = None

    @property
    def trouble(self) -> str | None:
        """What keeps messages from being taken in just now; None when all is well."""
        return self._error or (None if self._consumer is None else self._consumer.trouble)

    def stop(self) -> None:
        """End after the batch in hand, and leave the group."""
        self._stopping = True
        self._pace.wake()

    async def run(self) -> None:
        """Take in until stopped, whatever happens to the database and the broker meanwhile."""
        failures = 0
        try:
            while not self._stopping:
                self.last_turn = time.monotonic()
                try:
                    await self._turn()
                    failures, self._error = 0, None
                    continue
                except BrokerError as error:
                    self._error = str(error)
                    log.error("service %s receives nothing: %s", self._subscription.service, error)  # noqa: TRY400
                except (Interrupted, psycopg.Error, sa.exc.SQLAlchemyError, OSError) as error:
                    self._error = f"the database cannot be reached ({type(error).__name__})"
                    log.warning("nothing is taken in: %s; trying again", self._error)
                    await self._drop_driver()
                failures += 1
                await self._pace.sleep(min(0.1 * 2**failures, _LONGEST_BACKOFF))
        finally:
            if self._consumer is not None:
                await self._consumer.close()
            await self._drop_driver()

    async def _turn(self) -> None:
        """Take in one batch, or see whether there is room for more."""
        if self._consumer is None:
            self._consumer = await self._broker.consumer(self._subscription)
        driver = await self._connected()
        await self._make_room(driver)
        if not self._unacknowledged:
            # Also when paused: it keeps the place in the group, and what the broker has sent already comes in.
            self._unacknowledged = list(await self._consumer.receive(BATCH, _WAIT))
        if self._unacknowledged:
            await self._take_in(driver, self._unacknowledged)
            self._room -= len(self._unacknowledged)
            acknowledged, self._unacknowledged = self._unacknowledged, []
            await self._consumer.acknowledge(acknowledged)

    async def _make_room(self, driver: AsyncDriver) -> None:
        assert self._consumer is not None  # noqa: S101 - it was opened above
        if self._room > 0 and not self.paused:
            return
        waiting = await driver.run(count_due(self._subscription.service, list(self._sagas), self._high))
        self._room = self._high - waiting
        if not self.paused and waiting >= self._high:
            log.info("service %s takes in no more: %d runs lie waiting", self._subscription.service, waiting)
            self.paused = True
            await self._consumer.pause()
        elif self.paused and waiting <= self._low:
            log.info("service %s takes in again", self._subscription.service)
            self.paused = False
            await self._consumer.resume()

    async def _take_in(self, driver: AsyncDriver, deliveries: Sequence[Delivery]) -> None:
        usable: list[Envelope] = []
        unusable: list[Unusable] = []
        for one in deliveries:
            defect = one.defect or self._misfit(one.envelope)
            if defect is None:
                usable.append(one.envelope)
            else:
                log.error("a message at %s is a dead letter now: %s", one.position, defect)
                unusable.append(Unusable(one.envelope, one.position, defect))
        try:
            await driver.run(
                take_in(
                    usable,
                    self._hints,
                    service=self._subscription.service,
                    home=self._home_id,
                    unusable=unusable,
                )
            )
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            # One message that cannot be stored must not keep out the others: halve the batch until it is alone.
            if len(deliveries) > 1:
                middle = len(deliveries) // 2
                await self._take_in(driver, deliveries[:middle])
                await self._take_in(driver, deliveries[middle:])
                return
            (one,) = deliveries
            if one.defect is not None:
                raise  # not even its bytes can be stored: somebody has to look at the database
            reason = f"it cannot be stored: {type(error).__name__}"
            await self._take_in(driver, [Delivery(one.envelope, one.position, reason, one.tag)])
            return
        self.taken_in += len(usable)
        self.dead_letters += len(unusable)

    def _misfit(self, envelope: Envelope) -> str | None:
        """Say why no saga can read a message from outside; one that was launched by scoop_outbox fails its run."""
        if ID in envelope.headers:
            return None
        reason = None
        for saga in self._sagas.values():
            if saga.topic == envelope.topic:
                try:
                    envelope.check(saga.schema)
                except PayloadError as error:
                    reason = str(error)
                else:
                    return None
        return reason

    async def _connected(self) -> AsyncDriver:
        if self._driver is None or not self._driver.usable:
            await self._drop_driver()
            self._driver = await self._home.connect()
            self._home_id = await self._driver.run(read_home())
        return self._driver

    async def _drop_driver(self) -> None:
        driver, self._driver = self._driver, None
        if driver is not None:
            await driver.close()
