"""Maintenance: removes what has ended long ago, and asks after what is silent, in one process of a home at a time.

It is done beside the relay that owns the first shard of the outbox: there is one at most, it is alive, and when it is
not any more another one is. Two that do it at the same moment, at a change, do no harm: each leaves alone what the
other has in hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scoop_outbox._log import get_logger
from scoop_outbox._retention import FOR_EVER, Retention
from scoop_outbox.core.plans.pruner import ArchivedHierarchy, Counts, Found, Pruner
from scoop_outbox.daemon.silence import Silence
from scoop_outbox.step import is_async
from scoop_outbox.store.async_driver import AsyncDriver
from scoop_outbox.store.faults import DATABASE_ERRORS, is_forbidden, words
from scoop_outbox.store.home import Home
from scoop_outbox.store.reconnecting import ReconnectingDriver

log = get_logger(__name__)

EVERY = 60.0
"""Seconds from the end of one look to the next."""
THOROUGH_EVERY = 6 * 3600.0
"""Seconds from one look to the next that reads more than what goes: all messages, and all whose payload is erased."""
PAUSE = 4.0
"""Between two transactions, so many times as long as the one before took: a fifth of the time of one connection."""
LONGEST_PAUSE = 5.0
LARGEST = 100_000
"""Runs of a hierarchy that goes in the background: it goes in one transaction, which takes seconds."""

Archive = Callable[[ArchivedHierarchy], Any]
"""An `async def` or a `def` that keeps a hierarchy elsewhere."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept, and where.

    Attributes:
        retention: for how long, unless sagas say so.
        archives: are handed what is about to go. Those that are added later are, too.
    """

    retention: Retention = FOR_EVER
    archives: Sequence[Archive] = ()


KEPT_FOR_EVER = Kept()


class Maintenance:
    """Prunes one home in the background.

    Args:
        home: which one.
        kept: what is kept.
        owns: whether this process is the one to do it, now.

    Attributes:
        counts: what has been removed since the start.
        failed: how often an archive has refused.
        looks: how often this process has looked through the home.
    """

    def __init__(self, home: Home, kept: Kept, owns: Callable[[], bool]) -> None:
        """Remove nothing yet."""
        self.counts = Counts()
        self.failed = 0
        self.looks = 0
        self._kept = kept
        self._owns = owns
        self._database = ReconnectingDriver(home.url, home.connect, "maintenance", log)
        self._thorough_at = 0.0
        self._too_large: set[uuid.UUID] = set()
        self._silence = Silence(home.failures)
        self._forbidden = False
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End after the transaction in hand."""
        self._stopping.set()

    async def run(self) -> None:
        """Prune now and then until stopped, whatever happens to the database meanwhile."""
        try:
            while not self._stopping.is_set():
                pause = EVERY
                if self._owns():
                    try:
                        await self._prune()
                        await self._silence.look(await self._database.connect())
                        self._database.answered()
                    except DATABASE_ERRORS as error:
                        pause = await self._database.failed(error)
                else:
                    pause = min(EVERY, 1.0)
                await self._sleep(pause)
        finally:
            await self._database.close()

    async def _prune(self) -> None:
        """Remove what is due, if this process may; if not, say so once, and go on."""
        try:
            await self._look()
        except DATABASE_ERRORS as error:
            if not is_forbidden(error):
                raise
            if not self._forbidden:
                self._forbidden = True
                log.warning(
                    "maintenance: not permitted (this relay prunes nothing: %s; grant its user the role of the pruner)",
                    words(error.__cause__ or error),
                )
            await self._database.close()

    async def _look(self) -> None:
        """Look through the home once, and remove what is due."""
        began, thorough = time.monotonic(), time.monotonic() >= self._thorough_at
        self.looks += 1
        known = len(self._too_large)
        pruner = Pruner(
            self._kept.retention,
            thorough=thorough,
            archives=bool(self._kept.archives),
            largest=LARGEST,
            too_large=self._too_large,
        )
        counts = Counts()
        try:
            while not self._stopping.is_set() and self._owns():
                driver = await self._database.connect()
                step_began = time.monotonic()
                found = await driver.run(pruner.look())
                if found is None:
                    if thorough:
                        self._thorough_at = time.monotonic() + THOROUGH_EVERY
                    await self._forget(driver, pruner, counts)
                    break
                if found.trees:
                    looked = time.monotonic() - step_began
                    if not await self._archive(found):
                        break
                    step_began = time.monotonic() - looked
                    counts.add(await driver.run(pruner.remove(found)))
                await self._sleep(min(PAUSE * (time.monotonic() - step_began), LONGEST_PAUSE))
        finally:
            self.counts.add(counts)
            if len(self._too_large) > known:
                log.warning(
                    "maintenance: hierarchies too large to be pruned in the background (%d of more than %d runs; prune "
                    "them with: scoop-outbox prune)",
                    *(len(self._too_large), LARGEST),
                )
            if counts != Counts():
                log.info(
                    "maintenance: pruned (%d hierarchies of %d runs, %d unhandled messages, payload of %d erased, "
                    "%d forgotten, in %.0f s)",
                    *(counts.hierarchies, counts.runs, counts.unhandled, counts.erased, counts.forgotten),
                    time.monotonic() - began,
                )

    async def _forget(self, driver: AsyncDriver, pruner: Pruner, counts: Counts) -> None:
        more = True
        while more and not self._stopping.is_set():
            began = time.monotonic()
            forgotten, more = await driver.run(pruner.forget())
            counts.forgotten += forgotten
            await self._sleep(min(PAUSE * (time.monotonic() - began), LONGEST_PAUSE))

    async def _archive(self, found: Found) -> bool:
        """Hand over what is about to go; answer whether it may."""
        for archive in list(self._kept.archives):
            for one in found.archived:
                try:
                    if is_async(archive):
                        await archive(one)
                    else:
                        await asyncio.to_thread(archive, one)
                except Exception:
                    self.failed += 1
                    log.exception(
                        "maintenance: not archived, nothing is pruned for now (message %s)",
                        one.message_id,
                        extra={"message_id": one.message_id},
                    )
                    return False
        return True

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
