"""What a service receives that belongs into another of its homes is told apart."""

from __future__ import annotations

import time
from collections.abc import Sequence

from scoop_outbox.core.plans.homes import Identity
from scoop_outbox.core.plans.sharing import Sharing, read_sharing
from scoop_outbox.message import Envelope
from scoop_outbox.store.async_driver import AsyncDriver
from scoop_outbox.wire.sharing import Place, Route, route

_FRESH = 2.0
"""Seconds for which what is known of other homes is used."""
_HERE = Route()


class Router:
    """Says where what a service has received is handled. It is used by one task.

    Args:
        service: whose messages they are.
    """

    def __init__(self, service: str) -> None:
        """Know of no other home."""
        self._service = service
        self._topics: dict[str, Sharing] = {}
        self._until = 0.0

    async def routes(self, driver: AsyncDriver, home: Identity | None, envelopes: Sequence[Envelope]) -> list[Route]:
        """Return where each of some messages is handled."""
        if home is None or home.name is None:
            return [_HERE] * len(envelopes)
        if time.monotonic() >= self._until:
            self._topics, self._until = {}, time.monotonic() + _FRESH
        unknown = {one.topic for one in envelopes} - self._topics.keys()
        if unknown:
            self._topics |= await driver.run(read_sharing(self._service, sorted(unknown)))
        return [route(one, self._place(home, self._topics[one.topic])) for one in envelopes]

    def _place(self, home: Identity, on: Sharing) -> Place:
        return Place(self._service, home.id, on.known, on.homes, on.names)
