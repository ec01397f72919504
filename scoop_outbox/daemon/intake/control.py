"""The control channel: what other homes say to this one is taken in, by one member of its consumer group.

It is an intake like that of a service: one transaction a batch, and the broker is told afterwards. What cannot be
understood becomes a dead letter of the channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import psycopg

from scoop_outbox._log import get_logger
from scoop_outbox.broker.protocol import Broker, Delivery
from scoop_outbox.core.plans.claim import Hints
from scoop_outbox.core.plans.control import Noticed, noted_senders, take_in_control
from scoop_outbox.core.plans.control_letters import NOT_BELIEVED, spoken
from scoop_outbox.core.plans.homes import Identity, read_identity
from scoop_outbox.core.plans.intake import Unusable, bury
from scoop_outbox.core.statement import ask
from scoop_outbox.daemon.announcer import control_subscription
from scoop_outbox.daemon.bisection import bisect
from scoop_outbox.daemon.counters import IntakeCounters
from scoop_outbox.daemon.intake.inbox import lament
from scoop_outbox.daemon.intake.intake import Intake
from scoop_outbox.store.async_driver import AsyncDriver
from scoop_outbox.store.home import Home
from scoop_outbox.wire.control import Control, Sender
from scoop_outbox.wire.members import MalformedControl
from scoop_outbox.wire.signature import ControlKeys

log = get_logger(__name__)


class ControlInbox:
    """Stores what other homes have said. It is used by one task.

    Args:
        home: this home.
        channel: the topic on which it is told something.
        hints: told which runs have mail, and which messages have been handled.
        keys: what is said has to be signed with one of them; None asks for no signature.

    Attributes:
        counters: what was stored.
    """

    def __init__(self, home: Home, channel: str, hints: Hints, keys: ControlKeys | None = None) -> None:
        """Have stored nothing yet."""
        self._home = home
        self._channel = channel
        self._hints = hints
        self._keys = keys
        self._identity: Identity | None = None
        self.counters = IntakeCounters()

    async def open(self, driver: AsyncDriver) -> None:
        """Read which home it is to which a connection leads."""
        self._identity = await driver.run(read_identity())

    async def store(self, driver: AsyncDriver, deliveries: Sequence[Delivery]) -> None:
        """Take in what can be understood, and make dead letters of what cannot.

        Raises:
            psycopg.Error: neither is possible: somebody has to look at the database.
        """
        await bisect(deliveries, partial(self._store, driver), partial(self._refused, driver))

    async def _store(self, driver: AsyncDriver, deliveries: Sequence[Delivery]) -> None:
        """Store in one transaction."""
        controls: list[Control] = []
        unusable: list[Unusable] = []
        for one in deliveries:
            if (problem := self._disbelief(one)) is not None:
                unusable.append(Unusable(one.envelope, one.position, f"{NOT_BELIEVED}: {problem}"))
                continue
            try:
                controls.append(_read(one))
            except MalformedControl as error:
                unusable.append(Unusable(one.envelope, one.position, f"no control message: {error}"))
        namesakes = [one.sender for one in controls if self._is_namesake(one.sender)]
        if namesakes:
            await driver.run(ask(noted_senders(namesakes)))  # so that neither starts again like this
        foreign = [one for one in controls if self._is_foreign(one.sender)]
        if foreign:
            taking = take_in_control(foreign, self._home.failures, self._hints, keys=self._keys)
            self._say(await driver.run(taking))
        if unusable:
            await self._bury(driver, unusable)
        self.counters.taken_in += len(controls)

    def _say(self, noticed: Noticed) -> None:
        """Say what somebody should know."""
        for service, one in noticed.dead_letters:
            lament(service, [one])
        for name, asked in noticed.restored:
            log.warning(
                "home: restored (home %s has moved, or was restored from an older backup: it is asked after %d "
                "children)",
                *(name, asked),
                extra={"home": name},
            )
        for name, asked in noticed.restored_here:
            log.error(
                "home: this one was restored from an older backup (home %s has heard more of it; other homes are told, "
                "and are asked after %d children)",
                *(name, asked),
                extra={"home": name},
            )
        for name, count in noticed.unknown.items():
            log.error(
                "home: children are not known there (home %s does not know %d runs that it was asked for: they were "
                "pruned, or it was restored from an older backup)",
                *(name, count),
                extra={"home": name},
            )

    def _disbelief(self, one: Delivery) -> str | None:
        return None if self._keys is None else self._keys.problem(one.envelope.headers, one.envelope.body)

    def _is_foreign(self, sender: Sender) -> bool:
        """Tell whether another home has said it: what is said to all comes back to who has said it."""
        mine = self._identity
        assert mine is not None  # noqa: S101 - it was opened
        return sender.id != mine.id and sender.name != mine.name

    def _is_namesake(self, sender: Sender) -> bool:
        """Tell, and say, whether another home has our name. What it says is not taken in: it may be meant for us."""
        mine = self._identity
        assert mine is not None  # noqa: S101 - it was opened
        if sender.id == mine.id or sender.name != mine.name:
            return False
        log.error(
            "home: two homes have one name (%s, and another one: %s; give one of them another name)",
            *(mine.id, sender.id),
            extra={"home": mine.name},
        )
        return True

    async def _refused(self, driver: AsyncDriver, one: Delivery, error: psycopg.Error) -> None:
        """Make a dead letter of what the database refuses."""
        await self._bury(driver, [Unusable(one.envelope, one.position, f"it cannot be stored: {type(error).__name__}")])

    async def _bury(self, driver: AsyncDriver, unusable: Sequence[Unusable]) -> None:
        await driver.run(bury(unusable, self._channel))
        name = None if self._identity is None else self._identity.name
        for one in unusable:
            log.error(
                "home: control message became a dead letter (position %s: %s)",
                *(one.position, one.reason),
                extra={"home": name, "message_id": one.envelope.id, "position": one.position, "reason": one.reason},
            )
        self.counters.dead_letters += len(unusable)


def _read(one: Delivery) -> Control:
    if one.defect is not None:
        raise MalformedControl(one.defect)
    return spoken(one.envelope.headers, one.envelope.body)


def control_intake(
    home: Home, broker: Broker, identity: Identity, hints: Hints, keys: ControlKeys | None = None
) -> Intake:
    """Return the intake of a home's control channel."""
    subscription = control_subscription(identity)
    return Intake(home, broker, subscription, ControlInbox(home, subscription.group, hints, keys))
