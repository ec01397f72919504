"""The services of one test: on one database, over the broker under test."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from scoop_outbox import Scoop
from scoop_outbox.app import service_of
from scoop_outbox.broker.protocol import Feature, Publisher
from scoop_outbox.daemon.daemons import Daemons
from scoop_outbox.daemon.relay.home_publisher import HomePublisher
from scoop_outbox.message import Envelope
from scoop_outbox.testing.contract.harness import Harness


class System:
    """The services of one test, and what they did.

    Attributes:
        harness: the broker under test.
        journal: what steps noted, in order.
    """

    def __init__(self, harness: Harness, features: frozenset[Feature], database_url: str) -> None:
        """Start nothing."""
        self.harness = harness
        self.journal: list[str] = []
        self._start = "earliest" if Feature.STARTS_ANYWHERE in features else None
        self._database_url = database_url
        self._unique = secrets.token_hex(6)
        self._apps: list[Scoop] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for app in self._apps:
            await app.close()

    def topic(self, stem: str) -> str:
        """Return the name of a topic of this test."""
        return f"contract.{stem}.{self._unique}"

    def service(self, name: str, *, group: str | None = None) -> Scoop:
        """Return a service; several of one name are several processes of it."""
        app = Scoop(
            name,
            database=self._database_url,
            broker=self.harness.url or "postgresql:",
            broker_settings=self.harness.settings if self.harness.url else None,
            group=f"contract.{group or name}.{self._unique}",
            start=self._start,
        )
        self._apps.append(app)
        return app

    async def create(self, *apps: Scoop, topics: Sequence[str] = ()) -> None:
        """Create what services need, and make their subscriptions known, before any of them is started."""
        for app in apps:
            subscription = service_of(app).subscription
            await self.harness.create([*topics, *subscription.topics], subscription)
            await app.announce()

    @asynccontextmanager
    async def running(self, *apps: Scoop) -> AsyncIterator[list[Daemons]]:
        """Run services, each with a relay, an intake and a worker."""
        await self.create(*apps)
        if not apps:
            yield []
            return
        async with apps[0].running() as first, self.running(*apps[1:]) as others:
            yield [first, *others]

    @asynccontextmanager
    async def publisher(self, app: Scoop) -> AsyncIterator[Publisher]:
        """Open the publisher that a relay would use."""
        broker, service = self.harness.broker(), service_of(app)
        opened = HomePublisher(service.home, service.hints) if broker is None else await broker.publisher("contract")
        try:
            yield opened
        finally:
            await opened.close()

    def counts(self) -> Counter[str]:
        """Return how often each note was made."""
        return Counter(self.journal)


async def publish_twice(publisher: Publisher, message: Envelope) -> None:
    """Publish one message two times, in one batch and in two."""
    assert len(await publisher.publish([message, message])) == 2
    assert len(await publisher.publish([message])) == 1
