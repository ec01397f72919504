"""Interruptions: runs that could not be executed, to be written down by whoever has a connection that works.

They are counted in the database, where they survive this process, and where operators see them (behaviour Q65).
"""

from __future__ import annotations

import logging
import random
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg

from scoop_outbox.core.run import RunState
from scoop_outbox.core.statement import ask, statement
from scoop_outbox.headers import storable
from scoop_outbox.store.aio import AsyncDriver
from scoop_outbox.store.calls import Interrupted
from scoop_outbox.store.faults import words

log = logging.getLogger(__name__)

MOST = 20
"""After so many interruptions in a row a run is parked, unless told otherwise."""

MACHINERY, WANTED, DIED = "machinery", "transient", "died"
"""What interrupted a run: the machinery, a callback that raised `TransientError`, or the end of its process."""

_NOT_ALIVE = uuid.UUID(int=0)
"""No worker's id."""

OF_DEATH = "the process that had begun to execute it ended without a word: killed, out of memory, or crashed"


@dataclass(frozen=True, slots=True)
class Interruption:
    """A run that could not be executed, and why.

    Attributes:
        kind: `MACHINERY`, `WANTED` or `DIED`.
    """

    saga: str
    reason: str
    kind: str


class Interruptions:
    """Interruptions of one worker that are still to be written down.

    Args:
        service: whose runs.
        sagas: the sagas that it has: what never happened to them is counted too, as nothing.
        most: a run is parked after so many in a row without progress; those that it wanted itself do not park it.

    Attributes:
        counted: how many there were since the worker started, by saga and kind.
        parked: how many runs were parked because of them, by saga.
    """

    def __init__(self, service: str, sagas: Iterable[str], most: int = MOST) -> None:
        """Hold nothing yet."""
        self._service = service
        self._most = most
        self._pending: dict[uuid.UUID, Interruption] = {}
        self.counted = Counter({(saga, kind): 0 for saga in sagas for kind in (MACHINERY, WANTED, DIED)})
        self.parked: Counter[str] = Counter()

    def __contains__(self, run_id: uuid.UUID) -> bool:
        """Tell whether a run waits for its interruption to be written down."""
        return run_id in self._pending

    def __len__(self) -> int:
        """Return how many runs do."""
        return len(self._pending)

    def note(self, run_id: uuid.UUID, interruption: Interruption) -> None:
        """Keep an interruption until it is written down; the run is not executed before."""
        self._pending[run_id] = interruption
        self.counted[interruption.saga, interruption.kind] += 1

    async def write_down(self, driver: AsyncDriver) -> None:
        """Write everything down, so that the runs are due later.

        Raises:
            Interrupted: the database failed; it is written down with the next attempt.
        """
        if not self._pending:
            return
        pending = dict(self._pending)
        (rows,) = await driver.run(
            ask(
                statement(
                    "note_interruptions",
                    runs=list(pending),
                    # NUL and broken characters cannot be stored as text.
                    reasons=[storable(one.reason) for one in pending.values()],
                    parks=[one.kind != WANTED for one in pending.values()],
                    takers=[_NOT_ALIVE if one.kind == DIED else None for one in pending.values()],
                    # So that runs which were interrupted together do not come back together.
                    chances=[random.uniform(0.5, 1.0) for _ in pending],
                    most=self._most,
                )
            )
        )
        for run_id, count, state in rows:
            self._report(run_id, pending[run_id], count, RunState(state))
        for run_id in pending:
            del self._pending[run_id]

    def _report(self, run_id: uuid.UUID, one: Interruption, count: int, state: RunState) -> None:
        if state is RunState.PARKED:
            self.parked[one.saga] += 1
            log.error(
                "run parked: service %s, saga %s, run %s: interrupted %d times in a row without progress, the last "
                "time: %s; mend the cause, then: scoop-outbox retry %s",
                *(self._service, one.saga, run_id, count, one.reason, run_id),
            )
        else:
            log.warning(
                "run interrupted: service %s, saga %s, run %s, %d in a row: %s; it is executed again later",
                *(self._service, one.saga, run_id, count, one.reason),
            )


@contextmanager
def refusals_interrupt() -> Iterator[None]:
    """Count what the database refused for good, though no callback was at fault, as an interruption.

    Raises:
        Interrupted: in its place. As an error of the database it would read as if there were no connection.
    """
    try:
        yield
    except psycopg.Error as error:
        raise Interrupted(words(error)) from error
