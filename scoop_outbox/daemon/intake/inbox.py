"""The inbox: what a service has received becomes runs or dead letters of its home, each message once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import psycopg

from scoop_outbox._log import get_logger
from scoop_outbox.broker.protocol import Delivery
from scoop_outbox.core.plans.claim import Hints
from scoop_outbox.core.plans.homes import Identity, read_identity
from scoop_outbox.core.plans.intake import Unusable, bury, disbelief, nobody_for, take_in
from scoop_outbox.core.plans.sharing import forwarding
from scoop_outbox.daemon.bisection import bisect
from scoop_outbox.daemon.counters import IntakeCounters
from scoop_outbox.daemon.intake.sharing import Router
from scoop_outbox.daemon.intake.validation import Validation
from scoop_outbox.store.async_driver import AsyncDriver
from scoop_outbox.wire.signature import ControlKeys

log = get_logger(__name__)


class Inbox:
    """Stores deliveries to one service. It is used by one task.

    Args:
        service: whose they are.
        validation: says which of them cannot be taken in.
        hints: told which runs have mail.
        keys: a message for which another home waits has to be signed with one of them; None asks for no signature.

    Attributes:
        counters: what was stored.
    """

    def __init__(self, service: str, validation: Validation, hints: Hints, keys: ControlKeys | None = None) -> None:
        """Have stored nothing yet."""
        self._service = service
        self._validation = validation
        self._hints = hints
        self._keys = keys
        self._router = Router(service)
        self._home: Identity | None = None
        self.counters = IntakeCounters()

    async def open(self, driver: AsyncDriver) -> None:
        """Read which home it is to which a connection leads."""
        self._home = await driver.run(read_identity())

    async def store(self, driver: AsyncDriver, deliveries: Sequence[Delivery]) -> None:
        """Take in what can be taken in, and make dead letters of what cannot.

        Raises:
            psycopg.Error: neither is possible, not even with the bytes alone: somebody has to look at the database.
        """
        await bisect(deliveries, partial(self._store, driver), partial(self._bury, driver))

    async def _store(self, driver: AsyncDriver, deliveries: Sequence[Delivery]) -> None:
        """Store in one transaction."""
        usable: list[Delivery] = []
        unusable: list[Unusable] = []
        for one in deliveries:
            reason = self._validation.defect(one) or disbelief(self._keys, one.envelope, self._home, self._service)
            if reason is None:
                usable.append(one)
            else:
                unusable.append(Unusable(one.envelope, one.position, reason))
        envelopes = [one.envelope for one in usable]
        routed = list(zip(envelopes, await self._router.routes(driver, self._home, envelopes), strict=True))
        staying = [one for one, route in routed if route.stays]
        # What other homes handle is for them to read: they may have a newer version.
        unreadable = await self._validation.unreadable(driver, staying)
        unusable += [
            Unusable(one.envelope, one.position, unreadable[one.envelope.id])
            for one in usable
            if one.envelope.id in unreadable
        ]
        plan = take_in(
            [one for one in staying if one.id not in unreadable],
            self._hints,
            service=self._service,
            home=self._home,
            elsewhere={one.id: route.elsewhere for one, route in routed if route.others},
            passing=[] if self._home is None else forwarding(self._home, self._service, routed),
            unusable=unusable,
        )
        if nobody := set(await driver.run(plan)):
            # The broker has not been told yet: it comes again if this process dies before it is written down.
            lost = [one for one in usable if one.envelope.id in nobody]
            unhandled = [
                Unusable(one.envelope, one.position, nobody_for(self._service, one.envelope.topic)) for one in lost
            ]
            await driver.run(bury(unhandled, self._service))
            unusable += unhandled
        lament(self._service, unusable)
        self.counters.taken_in += len(deliveries) - len(unusable)
        self.counters.forwarded += sum(len(route.others) for _, route in routed)
        self.counters.dead_letters += len(unusable)

    async def _bury(self, driver: AsyncDriver, one: Delivery, error: psycopg.Error) -> None:
        """Make a dead letter of what the database refuses.

        Raises:
            psycopg.Error: it was to be one already, and not even that can be stored.
        """
        if one.defect is not None or self._validation.defect(one) is not None:
            log.error(
                "intake: dead letter cannot be stored (service %s, position %s: %s)",
                *(self._service, one.position, type(error).__name__),
                extra={"service": self._service, "message_id": one.envelope.id, "position": one.position},
            )
            raise error
        reason = f"it cannot be stored: {type(error).__name__}"
        await self._store(driver, [Delivery(one.envelope, one.position, reason, one.tag)])


def lament(service: str, unusable: Sequence[Unusable]) -> None:
    """Say which messages have become dead letters of a service."""
    for one in unusable:
        log.error(
            "intake: message became a dead letter (position %s: %s)",
            *(one.position, one.reason),
            extra={
                "service": service,
                "message_id": one.envelope.id,
                "position": one.position,
                "reason": one.reason,
            },
        )
