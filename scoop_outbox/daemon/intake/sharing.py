"""What a service receives that belongs into another of its homes is told apart."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scoop_outbox.core.plans.homes import Identity
from scoop_outbox.core.plans.sharing import Neighbours, Sharing, read_neighbours, read_sharing
from scoop_outbox.message import Envelope
from scoop_outbox.store.async_driver import AsyncDriver
from scoop_outbox.wire.forwarded import Forwarded
from scoop_outbox.wire.sharing import Place, expected, passed_on

_FRESH = 2.0
"""Seconds for which what is known of other homes is used. Whoever knows less sends a message a longer way."""
_NOBODY = Neighbours({}, beside=False)


@dataclass(frozen=True, slots=True)
class Sorted:
    """Messages by where they belong.

    Attributes:
        here: those that are taken in.
        elsewhere: by message, the other homes that handle it, if it is one of these.
        passed: what other homes are told: their control topic, and the message.
    """

    here: Sequence[Envelope]
    elsewhere: Mapping[str, frozenset[uuid.UUID]] = field(default_factory=dict)
    passed: Sequence[tuple[str, Forwarded]] = ()


class Sorter:
    """Tells apart what a service has received. It is used by one task.

    Args:
        service: whose messages they are.
    """

    def __init__(self, service: str) -> None:
        """Know of no other home."""
        self._service = service
        self._neighbours = _NOBODY
        self._topics: dict[str, Sharing] = {}
        self._until = 0.0

    async def sort(self, driver: AsyncDriver, home: Identity | None, envelopes: Sequence[Envelope]) -> Sorted:
        """Say which messages are taken in here, and which are passed on."""
        if home is None or home.name is None or not envelopes:
            return Sorted(envelopes)
        await self._look(driver, home, envelopes)
        if not self._neighbours.reply_to:
            return Sorted(envelopes)
        here: list[Envelope] = []
        elsewhere: dict[str, frozenset[uuid.UUID]] = {}
        passed: list[tuple[str, Forwarded]] = []
        for one in envelopes:
            stays, others = passed_on(one, self._place(home, one.topic))
            if stays:
                here.append(one)
            if others:
                elsewhere[one.id] = others
                passed += [(self._neighbours.reply_to[other], Forwarded(self._service, one)) for other in others]
        return Sorted(here, elsewhere, passed)

    async def _look(self, driver: AsyncDriver, home: Identity, envelopes: Sequence[Envelope]) -> None:
        # A launcher may know a new home before this process does: what is that one's must not be handled here.
        known = {None, home.id, *self._neighbours.reply_to}
        mine = [who for one in envelopes for who in expected(one.headers) if who.service == self._service]
        strange = any(who.home not in known for who in mine)
        if strange or time.monotonic() >= self._until:
            self._topics = {}
            self._neighbours = await driver.run(read_neighbours(self._service))
            self._until = time.monotonic() + _FRESH
        unknown = {one.topic for one in envelopes} - self._topics.keys()
        if unknown and self._neighbours.beside:
            found = await driver.run(read_sharing(self._service, sorted(unknown)))
            self._topics |= {topic: found.get(topic, Sharing()) for topic in unknown}

    def _place(self, home: Identity, topic: str) -> Place:
        on = self._topics.get(topic, Sharing())
        return Place(self._service, home.id, self._neighbours.reply_to.keys(), on.listening, on.sharing)
