"""Surroundings: what a worker looks at every few seconds besides its mail, and says when it is not as it should be.

Who else is there, which parked runs it can take on, which requests to roll back have waited long enough, whether
anybody publishes what is launched, and, once, whether messages come for sagas that it does not have.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from scoop_outbox._log import get_logger
from scoop_outbox.core.plans import parking
from scoop_outbox.core.plans.homes import read_identity
from scoop_outbox.core.plans.workers import is_relayed, read_strangers
from scoop_outbox.daemon.hints import ProcessHints
from scoop_outbox.daemon.worker import roster
from scoop_outbox.daemon.worker.roster import Roster
from scoop_outbox.daemon.worker.waiting_requests import WaitingRequests
from scoop_outbox.saga import Saga
from scoop_outbox.store.async_driver import AsyncDriver
from scoop_outbox.store.home import Home

log = get_logger(__name__)

UNRELAYED = 15.0
"""Seconds without a relay after which something is said: three times as long as another one needs to take over."""

_STRANGERS = 100
"""So many subscriptions of sagas that nobody has are told of."""


class Surroundings:
    """The surroundings of one worker.

    Args:
        service: whose worker.
        sagas: its sagas by each name that they have or had.
        roster: who else is there.
        home: where the runs are.
        hints: tells of runs that go on.
    """

    def __init__(
        self, service: str, sagas: Mapping[str, Saga], roster: Roster, home: Home, hints: ProcessHints
    ) -> None:
        """Have seen nothing yet."""
        self._service = service
        self._sagas = list(sagas)
        self._roster = roster
        self._hints = hints
        self._relays = Relays()
        self._requests = WaitingRequests(service, home.failures, hints)
        self._cooperation = home.cooperation
        self._missing: set[str] | None = None  # as it was at the first look
        self._look_for_strangers_at = 0.0  # never again once both looks are done

    async def look(self, driver: AsyncDriver) -> bool:
        """Look around; answer whether the mail is shared with other workers in another way now.

        Raises:
            Interrupted: the database failed.
        """
        now = time.monotonic()
        changed = await self._roster.refresh(driver)
        freed = await driver.run(parking.unpark(self._service, self._roster.deployment, self._hints))
        for run_id in freed:
            log.info(
                "run: unparked (service %s, run %s: this worker has the step that is due)",
                *(self._service, run_id),
                extra={"service": self._service, "run_id": run_id},
            )
        await self._requests.look(driver)
        if self._cooperation.is_due:
            self._cooperation.learn((await driver.run(read_identity())).name)
        self._relays.saw(there=await driver.run(is_relayed()))
        if now >= self._look_for_strangers_at:
            # Behind it: a look that failed does not count.
            self._look_for_strangers_at = await self._look_for_strangers(driver, now)
        return changed

    async def _look_for_strangers(self, driver: AsyncDriver, now: float) -> float:
        """Warn of sagas of this service for which messages come and which nobody has; return when to look again.

        A worker that starts subscribes its sagas before it says that it is alive. So what nobody has is warned of only
        if nobody has it at the next look either, which is as late after a new connection: else each start beside others
        warned of the one that started.
        """
        rows = await driver.run(read_strangers(self._service, self._sagas, _STRANGERS))
        found: dict[str, list[str]] = {}
        for saga, topic, _ in rows:
            found.setdefault(saga, []).append(topic)
        alive = {saga for saga, _, is_alive in rows if is_alive}
        before = self._missing
        for saga in sorted(alive if before is None else alive & before):
            log.info(
                "saga: not in the code of this worker, but of another living one (service %s, saga %s)",
                *(self._service, saga),
                extra={"service": self._service, "saga": saga},
            )
        missing = found.keys() - alive
        for saga in sorted(missing & (before or set())):
            log.warning(
                "saga: subscribed, but not in the code of any living worker (service %s, saga %s, topics %s: launches "
                "on them wait for it; start a worker that has it, name it in formerly= of the saga that replaces it, "
                "or retire it: scoop-outbox handlers forget %s %s)",
                *(self._service, saga, ", ".join(sorted(found[saga])), self._service, saga),
                extra={"service": self._service, "saga": saga, "topics": sorted(found[saga])},
            )
        self._missing = missing
        return now + roster.EVERY if before is None and missing else math.inf


class Relays:
    """Tells when nobody has published for too long, and when somebody does again."""

    def __init__(self) -> None:
        """Know nothing of a relay yet."""
        self._missing_since: float | None = None
        self._said = False

    def saw(self, *, there: bool) -> None:
        """Note whether a relay holds a part of the outbox just now."""
        now = time.monotonic()
        if there:
            if self._said:
                log.info("relay: found again")
            self._missing_since, self._said = None, False
            return
        if self._missing_since is None:
            self._missing_since = now
        if now - self._missing_since >= UNRELAYED and not self._said:
            self._said = True
            log.warning(
                "relay: missing (for %.0f s; launched messages are not published. Start one: scoop-outbox relay, or "
                "scoop-outbox worker --relay; if one runs, see its log and its /readyz)",
                now - self._missing_since,
            )
