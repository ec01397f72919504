"""Confirmations: whether other homes know who listens here, so that what they launch is waited for."""

from __future__ import annotations

import asyncio
import time

from scoop_outbox._log import get_logger
from scoop_outbox.core.plans.homes import read_unconfirmed
from scoop_outbox.store.home import Home

log = get_logger(__name__)

LIMIT = 10.0
"""Seconds for which a process waits for other homes before it goes on without their word."""
_PAUSE = 0.05


async def wait_until_confirmed(home: Home, limit: float = LIMIT) -> list[str]:
    """Wait until all homes that are known have confirmed who listens here, and return those that have not in time.

    A home that is down is told when it comes back; until then it does not wait for what has come anew.
    """
    end = time.monotonic() + limit
    async with home.driver() as driver:
        silent = await driver.run(read_unconfirmed())
        while silent and time.monotonic() < end:
            await asyncio.sleep(_PAUSE)
            silent = await driver.run(read_unconfirmed())
    if silent:
        log.warning(
            "home: not confirmed (homes %s have not said that they know who listens here: what they launch does not "
            "wait for new sagas until they do)",
            ", ".join(silent),
        )
    return silent
