"""Reports: what a worker says of runs that a person should hear of, after the commit."""

from __future__ import annotations

import logging
from collections import Counter

from scoop_outbox.core.claim import Unhandled
from scoop_outbox.core.run import Run
from scoop_outbox.daemon.signals import Signals

log = logging.getLogger(__name__)


class Reports:
    """The reports of one worker.

    Args:
        service: whose worker.
        signals: counts launches that nobody handles, for the whole process.
        brokered: whether a broker carries the messages that are launched.

    Attributes:
        parked: how many runs were parked since the worker started, by saga.
    """

    def __init__(self, service: str, signals: Signals, *, brokered: bool) -> None:
        """Have said nothing yet."""
        self._service = service
        self._signals = signals
        self._brokered = brokered
        self.parked: Counter[str] = Counter()

    def say_parked(self, run: Run) -> None:
        """Say that a run cannot go on, and why."""
        self.parked[run.saga] += 1
        log.error("run parked: service %s, saga %s, run %s: %s", run.service, run.saga, run.id, run.reason)

    def say_unhandled(self, topics: Unhandled) -> None:
        """Say once for each topic that nobody listens to what was launched."""
        self._signals.unhandled.note(topics, self._service, brokered=self._brokered)

    def say_unheard(self, run: Run) -> None:
        """Say how a run has ended that nobody waits for."""
        failure = run.failure
        log.error(
            "late run %s of saga %s has ended %s, and nobody waits for it: %s",
            run.id,
            run.saga,
            run.state,
            "no failure is known" if failure is None else f"{failure.type} in {failure.source}",
        )
