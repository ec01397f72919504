"""Mail: how a worker reads which runs have something to look at. Index reads, and no lock is waited for."""

from __future__ import annotations

import uuid
from collections.abc import Container, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from scoop_outbox.core.plans.mail import mark_taken, read_due, read_left_lying
from scoop_outbox.daemon.worker.interruptions import DIED, OF_DEATH, Interruption, Interruptions
from scoop_outbox.daemon.worker.lookback import Lookback
from scoop_outbox.daemon.worker.roster import Roster
from scoop_outbox.store.async_driver import AsyncDriver

_STEAL = timedelta(milliseconds=50)
_STUCK = 2.0
"""Seconds after which those whose mail it is seem to be stuck, or gone."""


class Due(NamedTuple):
    """A run with mail that is due.

    Attributes:
        age: for how many seconds it has been.
        suspect: whether a process may have died of executing it.
    """

    run_id: uuid.UUID
    saga: str
    age: float
    suspect: bool


@dataclass(frozen=True, slots=True)
class Look:
    """What was found.

    Attributes:
        due: runs, those of sagas in turn, the oldest of each first.
        next_due: in how many seconds more is due; None when nothing is.
    """

    due: Sequence[Due]
    next_due: float | None


class MailReader:
    """Reads the mail of one service for one worker.

    Args:
        service: whose mail.
        sagas: those that the worker knows.
        roster: who else reads it.
        interruptions: told of runs that a process died of.

    Attributes:
        lookback: how far back it looks.
    """

    def __init__(self, service: str, sagas: Sequence[str], roster: Roster, interruptions: Interruptions) -> None:
        """Look from the beginning first."""
        self._service = service
        self._sagas = list(sagas)
        self._roster = roster
        self._interruptions = interruptions
        self._marked: set[uuid.UUID] = set()
        self.lookback = Lookback()
        self._back = self.lookback.look()

    async def read(self, driver: AsyncDriver, most: int) -> Look:
        """Read the oldest mail of each saga, `most` runs in all."""
        self._back = self.lookback.look()
        rows = await driver.run(read_due(self._where(), self._roster.shares(), most))
        *found, (_, _, next_due, _) = rows
        return Look([Due(*row) for row in found], next_due)

    async def read_left_lying(self, driver: AsyncDriver, theirs: int, wanted: int) -> list[Due]:
        """Read what other workers have not got round to.

        As much of the oldest as `theirs` is left alone, unless it has been lying so long that they seem to be stuck.
        """
        found = [Due(*row) for row in await driver.run(read_left_lying(self._where(), _STEAL, theirs + wanted))]
        spare = len(found) - theirs
        return [due for index, due in enumerate(found) if index < spare or due.age > _STUCK]

    async def mark(self, driver: AsyncDriver, due: Sequence[Due], in_hand: Container[uuid.UUID]) -> list[Due]:
        """Return those that this worker may execute now.

        Where a process may have died of executing a run, it is noted that this one begins to; if it dies too, whoever
        comes next knows. One that is found so noted is an interruption, and waits; one that is held by somebody is not
        for us.
        """
        suspects = {one.run_id: one for one in due if one.suspect}
        self._marked.intersection_update(suspects)
        unmarked = [run_id for run_id in suspects if run_id not in self._marked and run_id not in in_hand]
        if unmarked:
            rows = await driver.run(mark_taken(self._roster.worker, unmarked))
            self._marked.update(run_id for run_id, died in rows if not died)
            for run_id in (run_id for run_id, died in rows if died):
                self._interruptions.note(run_id, Interruption(suspects[run_id].saga, OF_DEATH, DIED))
        return [one for one in due if not one.suspect or one.run_id in self._marked]

    def _where(self) -> dict[str, Any]:
        """Return the parameters that say which mail concerns this worker."""
        return {
            "service": self._service,
            "sagas": self._sagas,
            "others": self._roster.deployment.others,
            "back": self._back,
            "suspect": self._roster.suspect,
        }
