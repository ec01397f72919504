"""Executors: what the executions of a worker know of it, one for each colour of callbacks."""

from __future__ import annotations

from dataclasses import replace

from scoop_outbox.core.plans.claim import Executor
from scoop_outbox.daemon.worker.roster import Roster


class Executors:
    """The executors of one worker, made again when another version of its sagas comes or goes.

    Slots ask from any thread. There is no lock: two that ask at the same time get two that say the same.

    Args:
        executor: what does not change, of either colour.
        roster: knows which versions are alive.
    """

    def __init__(self, executor: Executor, roster: Roster) -> None:
        """Make none yet."""
        self._executor = executor
        self._roster = roster
        self._made: dict[bool, Executor] = {}

    def of(self, *, coroutines: bool) -> Executor:
        """Return the one for `async def` callbacks, or for `def`s."""
        executor = self._made.get(coroutines)
        if executor is None or executor.deployment is not self._roster.deployment:
            deployment = self._roster.deployment
            self._made[coroutines] = executor = replace(self._executor, coroutines=coroutines, deployment=deployment)
        return executor
