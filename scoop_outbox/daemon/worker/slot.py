"""A slot of a worker: what it has in hand, and what is counted of all of them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from scoop_outbox.saga import Saga, is_async


@dataclass(slots=True)
class WorkerCounters:
    """What this worker has done since it started."""

    claims: int = 0
    empty_claims: int = 0


@dataclass(slots=True)
class Slot:
    """A slot at work, and the run that it has in hand."""

    run_id: uuid.UUID
    saga: str


def mostly_async(saga: Saga) -> bool:
    """Tell in which colour of slot a saga is begun: that of most of its callbacks."""
    colours = [is_async(callback) for step in saga.steps for callback in step.callbacks]
    return 2 * sum(colours) >= len(colours)
