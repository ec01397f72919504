"""Tuning: what a process says of how much it does at a time, and for how long it waits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scoop_outbox.daemon.intake.backpressure import HIGH_WATER
from scoop_outbox.daemon.worker.interruptions import MOST
from scoop_outbox.daemon.worker.slow_steps import SLOW_AFTER
from scoop_outbox.daemon.worker.worker import SLOTS
from scoop_outbox.errors import DefinitionError


@dataclass(frozen=True, slots=True)
class Tuning:
    """The numbers of one process.

    Attributes:
        slots: how many runs are executed at the same time.
        high_water: no more is taken in while so many runs lie waiting for a slot, until there are half as many.
        max_interruptions: a run that is interrupted so often in a row is parked.
        slow_step_after: seconds after which it is said that a step is slow.
        grace: seconds that running steps get to finish at the end.

    Raises:
        DefinitionError: nothing would work with one of them.
    """

    slots: int = SLOTS
    high_water: int = HIGH_WATER
    max_interruptions: int = MOST
    slow_step_after: float = SLOW_AFTER
    grace: float = 20.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.slots < 1:
            raise DefinitionError(f"slots={self.slots}: a worker needs at least one")
        if self.high_water < 1:
            raise DefinitionError(f"high_water={self.high_water}: nothing would ever be taken in; it is at least 1")
        if self.max_interruptions < 1:
            raise DefinitionError(
                f"max_interruptions={self.max_interruptions}: every run would be parked; it is at least 1"
            )
        if not 0 < self.slow_step_after < math.inf:
            raise DefinitionError(f"slow_step_after={self.slow_step_after}: it is a number of seconds above 0")
