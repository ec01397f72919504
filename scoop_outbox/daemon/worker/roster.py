"""Roster: the living workers of a service, what each of them knows, and which part of the mail is whose.

Each worker says in the database, every few seconds, that it is alive and which versions of which sagas it has. Those
that have a saga share its mail. Sharing is a hint: whoever counts wrong is late, and nothing is lost (decision 0008).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta

from scoop_outbox.core.plans.workers import forget_dead_workers, read_workers, register_worker, unregister_worker
from scoop_outbox.core.versions import Deployment, Version
from scoop_outbox.saga import Saga
from scoop_outbox.store.async_driver import AsyncDriver

EVERY = 5.0
"""Seconds from one word of a worker to its next."""
ALIVE_FOR = timedelta(seconds=20)
"""For how long a worker that says nothing any more counts as alive: then other versions take its runs over."""

Share = tuple[int, int]
"""Which part of the mail is ours, from 0, and how many parts there are."""


class Roster:
    """The workers of one service, as one of them sees them.

    Args:
        worker: this worker's id.
        service: whose workers.
        sagas: what this one knows, by each name that it has or had.

    Attributes:
        deployment: which versions are alive.
        suspect: whoever began to execute a run whose mail was due before that may have died of it.
    """

    def __init__(self, worker: uuid.UUID, service: str, sagas: Mapping[str, Saga]) -> None:
        """Believe to be alone."""
        self.worker = worker
        self._service = service
        self._mine = {name: Version.of(service, saga, name) for name, saga in sagas.items()}
        self.deployment = Deployment(self._mine, {name: [version] for name, version in self._mine.items()})
        self.suspect: datetime | None = None
        self._shares: dict[str, tuple[Share, Share]] = dict.fromkeys(self._mine, ((0, 1), (0, 1)))
        self._connected: frozenset[uuid.UUID] = frozenset()
        self._due_at = 0.0
        self._ahead = time.time() - time.monotonic()

    @property
    def left(self) -> float:
        """How many seconds there are until it is time to say that this worker is alive."""
        return max(self._due_at - time.monotonic(), 0.0)

    @property
    def others(self) -> int:
        """How many more workers share the mail of the saga that the most of them have."""
        return max((parts for (_, parts), _ in self._shares.values()), default=1) - 1

    def shares(self) -> dict[str, list[int]]:
        """Return as parameters which part of each saga's mail is ours, of runs yet to begin and of our version."""
        shares = [self._shares[name] for name in self._mine]
        return {
            "part": [share[0] for share, _ in shares],
            "parts": [share[1] for share, _ in shares],
            "own_part": [own[0] for _, own in shares],
            "own_parts": [own[1] for _, own in shares],
        }

    def is_ours(self, saga: str, version: str, run_id: uuid.UUID) -> bool:
        """Tell whether we see first to a run that has got mail."""
        if saga not in self._mine or (version not in ("", self._mine[saga].id) and version in self.deployment.others):
            return False
        any_version, own_version = self._shares[saga]
        part, parts = own_version if version else any_version
        return int.from_bytes(run_id.bytes[-2:]) % parts == part

    def seconds_since(self, at: datetime) -> float:
        """Return how long ago a time of the database's clock was; what that shows is known from its last answer."""
        return max(time.monotonic() + self._ahead - at.timestamp(), 0.0)

    async def introduce(self, driver: AsyncDriver) -> None:
        """Say what this worker knows, on a connection by which its death is noticed."""
        await self._say(driver)
        await driver.run(forget_dead_workers(self._service))
        self._due_at = 0.0

    async def refresh(self, driver: AsyncDriver) -> bool:
        """Say that this worker is alive and look who else is; answer whether the mail is shared in another way now."""
        now = await self._say(driver)
        workers, versions = await driver.run(read_workers(self._service))
        self._due_at = time.monotonic() + EVERY
        alive: dict[str, list[Version]] = {}
        for version_id, saga, steps in versions:
            alive.setdefault(saga, []).append(Version(version_id, saga, tuple(steps)))
        self.deployment = Deployment(self._mine, alive, self.deployment.since)
        connected = frozenset(worker for worker, _, _, is_connected in workers if is_connected)
        if self._connected - connected:
            self.suspect = now
        self._connected = connected
        before, self._shares = self._shares, {name: self._share(name, workers) for name in self._mine}
        return self._shares != before

    def _share(self, saga: str, workers: list[tuple[uuid.UUID, list[str], list[str], bool]]) -> tuple[Share, Share]:
        here = [
            (worker, versions) for worker, sagas, versions, is_connected in workers if is_connected and saga in sagas
        ]
        own = [worker for worker, versions in here if self._mine[saga].id in versions]
        return self._rank([worker for worker, _ in here]), self._rank(own)

    def _rank(self, workers: list[uuid.UUID]) -> Share:
        return (workers.index(self.worker), len(workers)) if self.worker in workers else (0, 1)

    async def _say(self, driver: AsyncDriver) -> datetime:
        mine = list(self._mine), list(self._mine.values())
        now = await driver.run(register_worker(self.worker, self._service, *mine, ALIVE_FOR, pooled=driver.pooled))
        self._ahead = now.timestamp() - time.monotonic()
        if self.suspect is None:
            self.suspect = now
            self.deployment = Deployment(self.deployment.mine, self.deployment.alive, now)
        return now

    async def leave(self, driver: AsyncDriver) -> None:
        """Say that this worker has ended, so that others need not wait for it."""
        await driver.run(unregister_worker(self.worker))
