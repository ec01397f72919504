"""Intake: takes the messages of one service from the broker into its home, and only then tells the broker.

One transaction a batch. What comes twice is taken in once; what cannot be taken in becomes a dead letter, and the
broker is told all the same, for it would only come again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Protocol

from scoop_outbox._cancellation import own_cancellation_only
from scoop_outbox._log import get_logger
from scoop_outbox.broker.protocol import Broker, Delivery, Subscription
from scoop_outbox.daemon.announcer import Announcer
from scoop_outbox.daemon.counters import IntakeCounters
from scoop_outbox.daemon.intake.backpressure import Backpressure
from scoop_outbox.daemon.intake.membership import Membership
from scoop_outbox.errors import BrokerError
from scoop_outbox.policy import exponential
from scoop_outbox.store.async_driver import AsyncDriver
from scoop_outbox.store.faults import DATABASE_ERRORS
from scoop_outbox.store.home import Home
from scoop_outbox.store.reconnecting import SHORTEST, ReconnectingDriver

log = get_logger(__name__)

_WAIT = 0.5
"""Seconds for which the broker is asked at a time."""
_ASK_AGAIN = 1.0
"""Seconds after which a broker that could not be asked whether the service will receive is asked again."""
_LONGEST_BACKOFF = 30.0
"""Seconds from one failure to the next try, at most."""


class Stores(Protocol):
    """Stores what was received, durably."""

    counters: IntakeCounters

    async def open(self, driver: AsyncDriver) -> None:
        """Be told of a new connection."""

    async def store(self, driver: AsyncDriver, deliveries: Sequence[Delivery]) -> None:
        """Store all of it."""


class Intake:
    """Takes in what one consumer group receives, as one member of it.

    It owns the loop: a connection to the home, a place in the group, what happens when either fails, and the end. It is
    on the event loop alone, in one task; `stop` may be called from any other one.

    Args:
        home: where messages go.
        broker: where they come from.
        subscription: what the group receives.
        inbox: stores it.
        announcer: announces the service before anything is received, if that could not be done before.
        backpressure: pauses while too much lies waiting; None takes in whatever comes.
    """

    def __init__(
        self,
        home: Home,
        broker: Broker,
        subscription: Subscription,
        inbox: Stores,
        announcer: Announcer | None = None,
        backpressure: Backpressure | None = None,
    ) -> None:
        """Take in nothing yet."""
        self._service = service = subscription.service
        self._announcer = announcer
        self._member = Membership(broker, subscription)
        self._backpressure = backpressure
        self._inbox = inbox
        self._database = ReconnectingDriver(
            home.url, home.connect, f"intake of {service}", log, self._inbox.open, _LONGEST_BACKOFF, service
        )
        self._stopping = asyncio.Event()
        self._error: str | None = None  # of the broker, or one that nobody expects

    @property
    def paused(self) -> bool:
        """Whether the broker is asked for nothing more for now."""
        return self._member.paused

    @property
    def counters(self) -> IntakeCounters:
        """What became of messages, in numbers."""
        return self._inbox.counters

    @property
    def problem(self) -> str | None:
        """What keeps messages from being taken in just now; None when all is well."""
        if self._error is not None:  # the last one wins: a failure of the database takes it away
            return self._error
        if (problem := self._database.problem) is not None:
            return f"messages cannot be stored: {problem}"
        return self._member.problem

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
                    self._database.answered()
                    if self._member.joined:
                        self._error = None
                    continue
                except BrokerError as error:
                    self._database.answered()
                    self._error = str(error)
                    log.error(  # noqa: TRY400
                        "intake: cannot receive (service %s: %s)",
                        *(self._service, error),
                        extra={"service": self._service, "reason": self._error},
                    )
                    await self._member.leave()
                except DATABASE_ERRORS as error:
                    self._error = None
                    await self._hold_out(await self._database.failed(error))
                    continue
                except Exception as error:
                    self._error = f"{type(error).__name__}, see the log"
                    log.exception(
                        "intake: failed unexpectedly, retrying (service %s)",
                        self._service,
                        extra={"service": self._service},
                    )
                    await self._database.close()
                    await self._member.leave()
                failures += 1
                await self._hold_out(exponential(SHORTEST, failures, _LONGEST_BACKOFF))
        finally:
            await self._member.leave()
            await self._database.close()

    async def _cycle(self) -> None:
        """Take in one batch, or see whether there is room for more."""
        driver = await self._database.connect()
        if not self._member.joined:
            if not await self._known(driver):
                return
            await self._member.join()
        if self._backpressure is not None:
            await self._backpressure.apply(driver, self._member)
        elif self._member.paused:
            await self._member.resume()
        if not self._member.received:
            await self._member.receive(_WAIT)
        if self._member.received and self._announcer is not None:
            await self._announcer.announce(driver)  # the broker is there again
        while portion := self._member.next_portion():
            await self._inbox.store(driver, portion)
            self._member.stored(len(portion))
            if self._backpressure is not None:
                self._backpressure.took(len(portion))
        await self._member.acknowledge()

    async def _known(self, driver: AsyncDriver) -> bool:
        """Announce the service, if that has not been done; answer whether it has, or was before the broker was down."""
        announcer = self._announcer
        if announcer is None or await announcer.announce(driver) or await announcer.is_known(driver):
            return True
        problem = f"not announced yet, its broker does not answer: {announcer.problem}"
        if problem != self._error:
            log.warning(
                "intake: cannot receive (service %s: %s)",
                *(self._service, problem),
                extra={"service": self._service, "reason": problem},
            )
        self._error = problem
        await self._stopped_within(_ASK_AGAIN)
        return False

    async def _hold_out(self, seconds: float) -> None:
        """Wait until it is time to try again, and keep the place in the group meanwhile."""
        end = time.monotonic() + seconds
        while not self._stopping.is_set() and (left := end - time.monotonic()) > 0:
            try:
                if self._member.joined:
                    with own_cancellation_only():
                        if not self._member.paused:
                            await self._member.pause()
                        await self._member.receive(min(left, _WAIT))
                    continue
            except Exception as error:
                log.exception("intake: consumer lost (service %s)", self._service, extra={"service": self._service})
                self._error = str(error)
                await self._member.leave()
            await self._stopped_within(left)

    async def _stopped_within(self, seconds: float) -> None:
        """Wait so long, or until stopped."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
