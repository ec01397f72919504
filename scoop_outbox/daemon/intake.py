"""Intake: takes the messages of one service from the broker into its home, and only then tells the broker.

One transaction a batch. What comes twice is taken in once; what cannot be taken in becomes a dead letter, and the
broker is told all the same, for it would only come again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Mapping, Sequence

import psycopg
import sqlalchemy as sa

from scoop_outbox._cancellation import own_cancellation_only
from scoop_outbox.broker.protocol import Broker, Consumer, Delivery, Subscription
from scoop_outbox.core.plans.claim import Hints
from scoop_outbox.core.plans.home import read_home
from scoop_outbox.core.plans.intake import Unusable, bury, read_listening, take_in
from scoop_outbox.core.plans.mail import count_due
from scoop_outbox.daemon.announcer import Announcer, spellings
from scoop_outbox.errors import BrokerError
from scoop_outbox.message import Envelope
from scoop_outbox.policy import exponential
from scoop_outbox.saga import Saga
from scoop_outbox.store.async_driver import AsyncDriver
from scoop_outbox.store.callbacks import Interrupted
from scoop_outbox.store.home import Home
from scoop_outbox.store.time_limit import TimeLimitedDriver
from scoop_outbox.wire.headers import ID

log = logging.getLogger(__name__)

BATCH = 500
BATCH_BYTES = 32 * 1024 * 1024
"""Most bytes of bodies in one transaction: a parameter that holds more than a gigabyte ends the connection."""
HIGH_WATER = 10_000
LOW_WATER = 5_000
_WAIT = 0.5
_ASK_AGAIN = 1.0
_LONGEST_BACKOFF = 30.0

_REFUSED = ("22", "23", "54")
"""Classes of SQL states that mean: this data cannot be stored, now or later."""


class Intake:
    """Takes in for one service, as one member of its consumer group.

    Args:
        home: where messages go.
        broker: where they come from.
        subscription: what the service wants to receive.
        sagas: the service's sagas by name.
        hints: told which runs have mail.
        announcer: announces the service before anything is received, if that could not be done before.
        high: no more is taken in while so many runs lie waiting for a slot...
        low: ...until there are no more than so many.

    Attributes:
        paused: whether the broker is asked for nothing more for now.
        taken_in: how many messages were taken in, those that came again too.
        dead_letters: how many could not be.
    """

    def __init__(
        self,
        home: Home,
        broker: Broker,
        subscription: Subscription,
        sagas: Mapping[str, Saga],
        hints: Hints,
        announcer: Announcer | None = None,
        *,
        high: int = HIGH_WATER,
        low: int = LOW_WATER,
    ) -> None:
        """Take in nothing yet."""
        self._home = home
        self._broker = broker
        self._subscription = subscription
        self._sagas = dict(sagas)
        self._names = {name for saga in sagas.values() for name in (saga.name, *saga.formerly)}
        self._spellings = spellings(broker, subscription.topics)
        self._hints = hints
        self._announcer = announcer
        self._high = high
        self._low = low
        self._driver: TimeLimitedDriver | None = None
        self._consumer: Consumer | None = None
        self._home_id: uuid.UUID | None = None
        self._received: list[Delivery] = []  # the broker has not been told of these
        self._stored = 0  # so many of them, the first ones, are in the database
        self._room = 0  # how many messages may be taken in before the work that waits is counted again
        self._stopping = asyncio.Event()
        self.paused = False
        self.taken_in = 0
        self.dead_letters = 0
        self._error: str | None = None

    @property
    def problem(self) -> str | None:
        """What keeps messages from being taken in just now; None when all is well."""
        silent = None if self._driver is None else self._driver.problem
        return self._error or silent or (None if self._consumer is None else self._consumer.problem)

    def stop(self) -> None:
        """End after the batch in hand, and leave the group."""
        self._stopping.set()

    async def run(self) -> None:
        """Take in until stopped, whatever happens to the database and the broker meanwhile."""
        failures = 0
        try:
            while not self._stopping.is_set():
                try:
                    with own_cancellation_only():
                        await self._cycle()
                    failures = 0
                    if self._consumer is not None:
                        self._error = None
                    continue
                except BrokerError as error:
                    self._error = str(error)
                    log.error("service %s receives nothing: %s", self._subscription.service, error)  # noqa: TRY400
                    await self._drop_consumer()
                except (Interrupted, psycopg.Error, sa.exc.SQLAlchemyError, OSError) as error:
                    self._error = f"messages cannot be stored ({type(error).__name__})"
                    log.warning("service %s takes nothing in: %s; trying again", self._subscription.service, error)
                    await self._drop_driver()
                except Exception as error:
                    self._error = f"{type(error).__name__}, see the log"
                    log.exception("service %s takes nothing in; trying again", self._subscription.service)
                    await self._drop_driver()
                    await self._drop_consumer()
                failures += 1
                await self._hold_out(exponential(0.2, failures, _LONGEST_BACKOFF))
        finally:
            await self._drop_consumer()
            await self._drop_driver()

    async def _cycle(self) -> None:
        """Take in one batch, or see whether there is room for more."""
        driver = await self._connected()
        if self._consumer is None:
            if not await self._known(driver):
                return
            self._consumer = await self._broker.consumer(self._subscription)
        await self._make_room(driver)
        if not self._received:
            # Also when paused: it keeps the place in the group, and what the broker has sent already comes in.
            self._received += await self._consumer.receive(BATCH, _WAIT)
        if self._received and self._announcer is not None:
            await self._announcer.announce(driver)  # the broker is there again
        while self._stored < len(self._received):
            portion = self._next_portion()
            await self._take_in(driver, portion)
            self._stored += len(portion)
            self._room -= len(portion)
        if self._received:
            await self._consumer.acknowledge(self._received)
            self._received, self._stored = [], 0

    async def _known(self, driver: AsyncDriver) -> bool:
        """Announce the service, if that has not been done; answer whether it has, or was before the broker was down."""
        announcer = self._announcer
        if announcer is None or await announcer.announce(driver) or await announcer.is_known(driver):
            return True
        problem = f"it is not announced yet, for its broker cannot be asked: {announcer.problem}"
        if problem != self._error:
            log.warning("service %s receives nothing: %s", self._subscription.service, problem)
        self._error = problem
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ASK_AGAIN):
                await self._stopping.wait()
        return False

    def _next_portion(self) -> list[Delivery]:
        """Return the deliveries that are stored next, in one transaction."""
        portion: list[Delivery] = []
        size = 0
        for one in self._received[self._stored : self._stored + BATCH]:
            size += len(one.envelope.body)
            if portion and size > BATCH_BYTES:
                break
            portion.append(one)
        return portion

    async def _hold_out(self, seconds: float) -> None:
        """Wait until it is time to try again, and keep the place in the group meanwhile."""
        end = time.monotonic() + seconds
        while not self._stopping.is_set() and (left := end - time.monotonic()) > 0:
            try:
                if self._consumer is not None:
                    with own_cancellation_only():
                        if not self.paused:
                            await self._consumer.pause()
                            self.paused = True
                        self._received += await self._consumer.receive(BATCH, min(left, _WAIT))
                    continue
            except Exception as error:
                log.exception("service %s has lost its place at the broker", self._subscription.service)
                self._error = str(error)
                await self._drop_consumer()
            try:
                async with asyncio.timeout(left):
                    await self._stopping.wait()
            except TimeoutError:
                return

    async def _make_room(self, driver: AsyncDriver) -> None:
        assert self._consumer is not None  # noqa: S101 - it was opened above
        if self._room > 0 and not self.paused:
            return
        waiting = await driver.run(count_due(self._subscription.service, list(self._sagas), self._high))
        self._room = self._high - waiting
        if not self.paused and waiting >= self._high:
            log.info("service %s takes in no more: %d runs lie waiting", self._subscription.service, waiting)
            await self._consumer.pause()
            self.paused = True
        elif self.paused and waiting <= self._low:
            log.info("service %s takes in again", self._subscription.service)
            await self._consumer.resume()
            self.paused = False

    async def _take_in(self, driver: AsyncDriver, deliveries: Sequence[Delivery]) -> None:
        service = self._subscription.service
        usable: list[Delivery] = []
        unusable: list[Unusable] = []
        for one, reason in await self._judged(driver, deliveries):
            if reason is None:
                usable.append(one)
            else:
                unusable.append(Unusable(one.envelope, one.position, reason))
        plan = take_in(
            [one.envelope for one in usable], self._hints, service=service, home=self._home_id, unusable=unusable
        )
        try:
            nobody = set(await driver.run(plan))
        except psycopg.Error as error:
            if (error.sqlstate or "")[:2] not in _REFUSED:
                raise
            # One message that cannot be stored must not keep out the others: halve the batch until it is alone.
            if len(deliveries) > 1:
                middle = len(deliveries) // 2
                await self._take_in(driver, deliveries[:middle])
                await self._take_in(driver, deliveries[middle:])
                return
            (one,) = deliveries
            if unusable:
                raise  # not even its bytes can be stored: somebody has to look at the database
            reason = f"it cannot be stored: {type(error).__name__}"
            await self._take_in(driver, [Delivery(one.envelope, one.position, reason, one.tag)])
            return
        if nobody:
            # The broker has not been told yet: it comes again if this process dies before it is written down.
            lost = [one for one in usable if one.envelope.id in nobody]
            unhandled = [Unusable(one.envelope, one.position, _nobody(service, one)) for one in lost]
            await driver.run(bury(unhandled, service))
            unusable += unhandled
        for one_unusable in unusable:
            log.error("a message at %s is a dead letter now: %s", one_unusable.position, one_unusable.reason)
        self.taken_in += len(deliveries) - len(unusable)
        self.dead_letters += len(unusable)

    async def _judged(self, driver: AsyncDriver, deliveries: Sequence[Delivery]) -> list[tuple[Delivery, str | None]]:
        """Return deliveries in order, each with the reason why it cannot be taken in, if there is one."""
        limits = self._home.limits
        defects = [one.defect or limits.defect(len(one.envelope.body)) for one in deliveries]
        misfits = [
            None if defect is not None else self._misfit(one.envelope)
            for one, defect in zip(deliveries, defects, strict=True)
        ]
        topics = {one.envelope.topic for one, misfit in zip(deliveries, misfits, strict=True) if misfit is not None}
        if topics:
            # A newer version of this service may have a saga that can read what ours cannot.
            known = await driver.run(read_listening(self._subscription.service, list(topics)))
            readable = {topic for topic, sagas in known.items() if sagas - self._names}
            misfits = [
                None if one.envelope.topic in readable else misfit
                for one, misfit in zip(deliveries, misfits, strict=True)
            ]
        return [(one, defect or misfit) for one, defect, misfit in zip(deliveries, defects, misfits, strict=True)]

    def _misfit(self, envelope: Envelope) -> str | None:
        """Say why no saga of this process that listens on the topic can read a message from outside.

        One that was launched by scoop_outbox fails its run instead. What no saga here listens on is not for this
        process to judge: the home knows who is subscribed.
        """
        if ID in envelope.headers:
            return None
        reason = None
        for saga in self._sagas.values():
            if self._spellings[saga.topic].means(saga.topic, envelope.topic):
                try:
                    envelope.check(saga.schema)
                except Exception as error:  # noqa: BLE001 - a type of the user's may raise what it likes
                    reason = str(error) or type(error).__name__
                else:
                    return None
        return reason

    async def _connected(self) -> TimeLimitedDriver:
        if self._driver is None or not self._driver.usable:
            await self._drop_driver()
            self._driver = await self._home.connect()
            self._home_id = await self._driver.run(read_home())
        return self._driver

    async def _drop_driver(self) -> None:
        driver, self._driver = self._driver, None
        if driver is not None:
            await driver.close()

    async def _drop_consumer(self) -> None:
        """Leave the group; what the broker was not told of comes again."""
        consumer, self._consumer = self._consumer, None
        self._received, self._stored, self.paused = [], 0, False
        if consumer is not None:
            try:
                with own_cancellation_only():
                    await consumer.close()
            except Exception:
                log.exception("service %s did not leave the broker in good order", self._subscription.service)


def _nobody(service: str, one: Delivery) -> str:
    """Say that no saga of a service is there for a message, and what to do about it."""
    return (
        f"no saga of {service} listens on {one.envelope.topic!r}: what brings it here lets in too much, or a saga is "
        "missing; start the service with the saga, then replay this"
    )
