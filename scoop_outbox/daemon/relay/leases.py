"""Leases: which shards of the outbox a relay owns, since which epoch, and until when it may rely on it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType

from scoop_outbox._log import get_logger
from scoop_outbox.core.plans.leases import acquire_shards, release_shards, renew_shards
from scoop_outbox.store.async_driver import AsyncDriver
from scoop_outbox.store.home import Home
from scoop_outbox.store.schema import SHARDS

log = get_logger(__name__)

LEASE = timedelta(seconds=4)
_STANDBY = 0.4


class Leases:
    """The shards of one relay. A lease is a row; its epoch grows with every change of owner.

    Time is the database's, but a relay reads its own clock to see how long it may publish: from before it asked for
    the lease, so that it always believes itself to have less time than it has. That clock runs on while a process is
    stopped.

    Args:
        home: whose outbox.
    """

    def __init__(self, home: Home) -> None:
        """Own nothing yet."""
        self._home = home
        self._epochs: dict[int, int] = {}
        self._renew_at = 0.0
        self._valid_until = 0.0

    @property
    def epochs(self) -> Mapping[int, int]:
        """The shards that are owned, and since which epoch."""
        return MappingProxyType(self._epochs)

    @property
    def due(self) -> bool:
        """Whether it is time to renew them, or to look for more."""
        return time.monotonic() >= self._renew_at

    @property
    def left(self) -> float:
        """How many seconds there are until they are due."""
        return max(self._renew_at - time.monotonic(), 0.0)

    @property
    def valid(self) -> bool:
        """Whether nobody else can own these shards at this moment."""
        return time.monotonic() < self._valid_until

    def doubt(self) -> None:
        """Look at once: somebody else seems to own them."""
        self._renew_at = 0.0

    async def keep(self, driver: AsyncDriver) -> tuple[set[int], set[int]]:
        """Renew what is owned, take what nobody owns, forget what another relay has taken.

        Returns:
            The shards that are owned anew, and those that are not owned any more. A shard that was lost and won back
            is in both.

        Raises:
            Interrupted: the database failed; what is owned is as it was, as long as it is valid.
        """
        started = time.monotonic()
        held: dict[int, int] = {}
        if self._epochs:
            held = await driver.run(renew_shards(self._epochs, LEASE))
        gained: dict[int, int] = {}
        if len(held) < SHARDS:
            gained = await driver.run(acquire_shards(self._home.process_id, LEASE))
        lost = set(self._epochs) - set(held)
        if taken := sorted(lost - set(gained)):
            log.warning("relay: shards taken over by another relay (%s)", taken, extra={"shards": taken})
        self._epochs = {**held, **gained}
        self._valid_until = started + LEASE.total_seconds()
        # A standby looks more often: nothing is published until it has noticed that an owner is gone.
        self._renew_at = started + (LEASE.total_seconds() / 3 if self._epochs else _STANDBY)
        if gained:
            log.info("relay: publishing (shards %s)", sorted(self._epochs), extra={"shards": sorted(self._epochs)})
        return set(gained), lost

    async def release(self, driver: AsyncDriver) -> None:
        """Let a standby take over at once."""
        if self._epochs:
            await driver.run(release_shards(self._epochs))
        self._epochs = {}
