"""What was seen in the database when somebody asked how a process is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scoop_outbox.core.plans.peers import HomeGlance, LostChildren


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look at the database.

    Attributes:
        problem: why it cannot be used; None when it can.
        waiting: how many messages of the outbox wait, counted up to a limit; None when that is not known.
        oldest: for how many seconds the oldest of them has.
        due: how much work of the service could be done now, counted up to a limit; None without a worker.
        parked: how many of its runs are parked, counted up to a limit; None without a worker.
        stuck: how many of its runs could not be rolled back, likewise.
        interrupted: how many of its runs were interrupted and have made no progress since, likewise.
        homes: the other homes that are known, or in which children are waited for; None without a control channel.
        lost: which of them did not know children when they were asked; None likewise.
    """

    problem: str | None = None
    waiting: int | None = None
    oldest: float = 0.0
    due: int | None = None
    parked: int | None = None
    interrupted: int = 0
    stuck: int = 0
    homes: Sequence[HomeGlance] | None = None
    lost: Sequence[LostChildren] | None = None

    @property
    def notes(self) -> dict[str, str]:
        """What somebody should look at, and what keeps no process from its work, by what it is about."""
        if not self.lost:
            return {}
        told = ", ".join(f"home {one.name} did not know {one.children} children" for one in self.lost)
        return {"homes": f"{told}: their parents are stuck, see scoop-outbox doctor"}
