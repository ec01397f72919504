"""Health: whether this process lives, and whether it can do its work, asked over HTTP by whoever watches it.

It lives as long as its event loop turns and none of its daemons has died: restarting it would mend nothing else. A
database or broker that is down makes it not ready. What is asked of the database is asked once for all who ask in the
same second, and whoever asks is answered within a few seconds, though the database may not answer at all.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from scoop_outbox.core.plans.mail import count_due
from scoop_outbox.core.plans.outbox import look_at_outbox
from scoop_outbox.core.plans.parking import count_stuck
from scoop_outbox.core.plans.peers import look_at_homes, read_lost
from scoop_outbox.core.plans.subscriptions import read_revision
from scoop_outbox.daemon.daemons import Daemons
from scoop_outbox.daemon.monitoring.http import Answer, serve_http
from scoop_outbox.daemon.monitoring.metrics import exposition
from scoop_outbox.daemon.monitoring.snapshot import Snapshot
from scoop_outbox.errors import DatabaseError
from scoop_outbox.store import revisions
from scoop_outbox.store.home import Home

STALLED = 30.0
"""Seconds after which an event loop that does not turn counts as dead."""
COUNTED = 1250
"""How far the waiting messages of a shard are counted."""
COUNTED_DUE = 10_000
"""How far due work is counted, and open children are looked through."""
_BEAT = 0.5
_FRESH = 1.0
_ANSWER_TIMEOUT = 3.0


_UNASKED = Snapshot()
"""What is seen of a database that is left alone: no problem, and no numbers."""


def _unanswered() -> Snapshot:
    return Snapshot(problem=f"no answer within {_ANSWER_TIMEOUT:.0f} s")


@dataclass(frozen=True, slots=True)
class _Found:
    """What was last seen in the database."""

    at: float
    seen: Snapshot


class Health:
    """What a process answers about itself, to those who ask in the program, and over HTTP on threads of their own.

    Args:
        home: the database.

    Attributes:
        stopping: set it when the process begins to drain: it is not ready any more.
        closed: whether the database is left alone.
    """

    def __init__(self, home: Home) -> None:
        """Watch nothing yet; the process is starting."""
        self._home = home
        self._loop = asyncio.get_running_loop()
        self._daemons: Daemons | None = None
        self._beat: float | None = None
        self._looking: asyncio.Task[Snapshot] | None = None
        self._found: _Found | None = None
        self._revisions: dict[str | None, str | None] = {}
        self.stopping = self.closed = False

    def watch(self, daemons: Daemons) -> None:
        """Answer for these daemons from now on."""
        self._daemons = daemons

    def answer(self, path: str, accept: str) -> Answer | None:
        """Answer a GET on another thread than that of the event loop; None when there is nothing at that path."""
        match path:
            case "/livez":
                return Answer.of_problems("alive", self.deaths())
            case "/readyz":
                seen = self._look_from_thread()
                return Answer.of_problems("ready", self._problems(seen), seen.notes)
            case "/metrics":
                return Answer(200, *exposition(self._daemons, self._look_from_thread(), accept))
            case _:
                return None

    async def problems(self) -> dict[str, str]:
        """Return what keeps this process from its work just now, by what it is about."""
        return self._problems(await self._look())

    async def metrics(self, accept: str) -> tuple[str, bytes]:
        """Return the kind and the text of all metrics; `accept` is as in the header of that name."""
        return exposition(self._daemons, await self._look(), accept)

    def deaths(self) -> dict[str, str]:
        """Return what only a restart can mend, by what it is about."""
        found = {}
        still = 0.0 if self._beat is None else time.monotonic() - self._beat
        if still > STALLED:
            found["loop"] = f"event loop blocked for {still:.0f} s: does a step block it?"
        for name in self._daemons.died if self._daemons is not None else ():
            found[name] = "died, see the log"
        return found

    def _problems(self, look: Snapshot) -> dict[str, str]:
        found = self.deaths()
        if self.stopping:
            found["process"] = "stopping"
        elif self._daemons is None:
            found["process"] = "starting"
        if look.problem is not None:
            found["database"] = look.problem
        if self._daemons is not None:
            named = {"relay": self._daemons.relay, "worker": self._daemons.worker, "intake": self._daemons.intake}
            named["control"] = self._daemons.control
            for name, daemon in named.items():
                if daemon is not None and (problem := daemon.problem) is not None:
                    found[name] = problem
        return found

    async def _look(self) -> Snapshot:
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT):
                return await self._look_once()
        except TimeoutError:
            return _unanswered()

    def _look_from_thread(self) -> Snapshot:
        looking = asyncio.run_coroutine_threadsafe(self._look_once(), self._loop)
        try:
            return looking.result(_ANSWER_TIMEOUT)
        except (TimeoutError, concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            looking.cancel()
            return _unanswered()

    async def _look_once(self) -> Snapshot:
        if self.closed:
            return _UNASKED
        if self._found is not None and time.monotonic() - self._found.at < _FRESH:
            return self._found.seen
        if self._looking is None or self._looking.done():
            # One look for all who ask: they may be more than there are connections, and the database may be frozen.
            self._looking = asyncio.create_task(self._look_at_database(), name="scoop_outbox health: look")
        return await asyncio.shield(self._looking)

    async def _look_at_database(self) -> Snapshot:
        try:
            seen = await self._ask()
        except DatabaseError as error:
            seen = Snapshot(problem=str(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer to what was asked
            seen = Snapshot(problem=f"query failed: {type(error).__name__}")
        self._found = _Found(time.monotonic(), seen)
        return seen

    async def _ask(self) -> Snapshot:
        daemons = self._daemons
        async with self._home.driver() as driver:
            revision = await driver.run(read_revision())
            if revision not in self._revisions:
                self._revisions[revision] = await asyncio.to_thread(self._revision_problem, revision)
            count, age = await driver.run(look_at_outbox(COUNTED))
            seen = Snapshot(self._revisions[revision], count, age)
            if daemons is not None and daemons.control is not None:
                homes = await driver.run(look_at_homes(COUNTED_DUE))
                seen = replace(seen, homes=homes, lost=await driver.run(read_lost()))
            if daemons is None or daemons.worker is None:
                return seen
            due = await driver.run(count_due(daemons.service, daemons.sagas, COUNTED_DUE))
            parked, interrupted, stuck = await driver.run(count_stuck(daemons.service, COUNTED_DUE))
        return replace(seen, due=due, parked=parked, interrupted=interrupted, stuck=stuck)

    def _revision_problem(self, revision: str | None) -> str | None:
        try:
            revisions.check(revision, self._home.url)
        except DatabaseError as error:
            return str(error)
        return None

    async def beat(self) -> None:
        """Show that the event loop turns, until cancelled."""
        while True:
            self._beat = time.monotonic()
            await asyncio.sleep(_BEAT)

    async def close(self) -> None:
        """Give up a look that has not come back, and leave the database alone from now on."""
        self.closed = True
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)


@asynccontextmanager
async def serve_health(home: Home, host: str, port: int) -> AsyncIterator[Health]:
    """Answer `/livez`, `/readyz` and `/metrics` for as long as the block lasts.

    Args:
        home: the database.
        host: the address to listen on.
        port: the port; 0 is any that is free.

    Raises:
        ScoopError: the port cannot be listened on.
    """
    health = Health(home)
    beating = asyncio.create_task(health.beat(), name="scoop_outbox health: beat")
    try:
        with serve_http(host, port, health.answer):
            yield health
    finally:
        beating.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await beating
        await health.close()
