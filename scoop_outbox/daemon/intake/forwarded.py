"""What another home of a service has received, and has passed on to this one, is taken in as if it had come here."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from scoop_outbox.core.plans.claim import Hints
from scoop_outbox.core.plans.homes import Identity
from scoop_outbox.core.plans.intake import Unusable, bury, take_in
from scoop_outbox.daemon.intake.inbox import disbelief, lament, nobody_for
from scoop_outbox.message import Envelope
from scoop_outbox.store.async_driver import AsyncDriver
from scoop_outbox.wire.forwarded import Forwarded
from scoop_outbox.wire.sharing import expected
from scoop_outbox.wire.signature import ControlKeys
from scoop_outbox.wire.validation import defect

_POSITION = "forwarded"


class PassedOn:
    """Takes in what was passed on to a home.

    It is not passed on again: homes that know of others at different moments would send a message in a circle.

    Args:
        hints: told which runs have mail.
        keys: as of the intake of a service.
    """

    def __init__(self, hints: Hints, keys: ControlKeys | None) -> None:
        """Have taken in nothing."""
        self._hints = hints
        self._keys = keys

    async def take_in(self, driver: AsyncDriver, home: Identity | None, passed: Sequence[Forwarded]) -> None:
        """Take messages in, each service's in one transaction."""
        services: dict[str, list[Envelope]] = {}
        for one in passed:
            services.setdefault(one.service, []).append(one.envelope)
        for service, envelopes in services.items():
            await self._take_in(driver, home, service, envelopes)

    async def _take_in(
        self, driver: AsyncDriver, home: Identity | None, service: str, envelopes: Sequence[Envelope]
    ) -> None:
        usable: list[Envelope] = []
        unusable: list[Unusable] = []
        for one in envelopes:
            # As whoever has received it has seen to, if it is one of us.
            reason = defect(one) or disbelief(self._keys, one, home)
            if reason is None:
                usable.append(one)
            else:
                unusable.append(Unusable(one, _POSITION, reason))
        elsewhere = {one.id: _others(one, home) for one in usable}
        taking = take_in(usable, self._hints, service=service, home=home, elsewhere=elsewhere, unusable=unusable)
        if nobody := set(await driver.run(taking)):
            unhandled = [Unusable(one, _POSITION, nobody_for(service, one.topic)) for one in usable if one.id in nobody]
            await driver.run(bury(unhandled, service))
            unusable += unhandled
        lament(service, unusable)


def _others(envelope: Envelope, home: Identity | None) -> frozenset[uuid.UUID]:
    """Return the homes that are to handle a message besides this one."""
    here = None if home is None else home.id
    return frozenset(one.home for one in expected(envelope.headers) if one.home is not None and one.home != here)
