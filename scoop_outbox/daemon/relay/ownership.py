"""Which shards a relay owns, and what follows for all that it knows of them when it gains some or loses some."""

from __future__ import annotations

from collections.abc import Collection

from scoop_outbox._log import get_logger
from scoop_outbox.daemon.relay.backlog import Backlog
from scoop_outbox.daemon.relay.leases import Leases
from scoop_outbox.daemon.relay.probe import Probe
from scoop_outbox.daemon.relay.topic_backoff import TopicBackoff
from scoop_outbox.daemon.relay.watermark import Watermarks
from scoop_outbox.store.async_driver import AsyncDriver
from scoop_outbox.store.schema import SHARDS

log = get_logger(__name__)

_STAND_ASIDE_AFTER = 15.0
"""Seconds for which nothing has gone through before a relay asks itself whether another one would fare better."""


class Ownership:
    """Keeps the leases of one relay, and gives its shards away when they are lost, or when it cannot publish.

    Args:
        leases: which shards are owned.
        probe: whether the broker can be reached.
        backlog: forgets what is in hand of a lost shard.
        backoff: forgets what is blocked of a lost shard.
        watermarks: has a shard read from the beginning when its owner has changed.
    """

    def __init__(
        self, leases: Leases, probe: Probe, backlog: Backlog, backoff: TopicBackoff, watermarks: Watermarks
    ) -> None:
        """Own nothing yet."""
        self._leases = leases
        self._probe = probe
        self._backlog = backlog
        self._backoff = backoff
        self._watermarks = watermarks
        self._aside = False  # the shards are left to whoever can reach the broker

    async def keep(self, driver: AsyncDriver) -> None:
        """Renew the leases, and take the shards that nobody owns."""
        gained, lost = await self._leases.keep(driver)
        self._disown(lost)
        self._watermarks.lower(dict.fromkeys(gained, 0))

    async def stand_aside(self, driver: AsyncDriver) -> bool:
        """Leave the shards to other relays while this one cannot reach the broker; answer whether it does."""
        stalled = not self._aside and self._backoff.stalled > _STAND_ASIDE_AFTER
        if stalled and await self._probe.look() is not None:
            await self.release(driver)
            log.warning("relay: shards released, broker unreachable")
            self._disown(range(SHARDS))
            self._aside = True  # now: with shards whose leases nobody renews it would turn round and round
        elif self._aside and self._probe.problem is None:
            self._aside = False
            self._leases.doubt()
        return self._aside

    async def release(self, driver: AsyncDriver) -> None:
        """Delete what was published, and let others have the shards at once."""
        await self._backlog.delete(driver)
        await self._leases.release(driver)

    def _disown(self, shards: Collection[int]) -> None:
        """Forget shards: whoever has them now publishes all that is there, what we published last too."""
        if shards:
            self._backlog.forget(shards)
            self._backoff.forget(shards)
            self._watermarks.lower(dict.fromkeys(shards, 0))
