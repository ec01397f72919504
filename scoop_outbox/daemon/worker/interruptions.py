"""Interruptions: runs that could not be executed, to be written down by whoever has a connection that works.

They are counted in the database, where they survive this process, and where operators see them (behaviour Q65).
"""

from __future__ import annotations

import random
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import psycopg

from scoop_outbox.core.plans.mail import NotedInterruption, note_interruptions
from scoop_outbox.core.run import RunState
from scoop_outbox.daemon.worker.reports import Reports, Subject
from scoop_outbox.saga import Saga
from scoop_outbox.store.async_driver import AsyncDriver
from scoop_outbox.store.callbacks import Interrupted
from scoop_outbox.store.faults import words
from scoop_outbox.wire.headers import key_seen, storable

MOST = 20
"""After so many interruptions in a row a run is parked, unless told otherwise."""

MACHINERY, WANTED, DIED = "machinery", "transient", "died"
"""What interrupted a run: the machinery, a callback that raised `TransientError`, or the end of its process."""

_NOT_ALIVE = uuid.UUID(int=0)
"""No worker's id."""

OF_DEATH = "the process that executed it died: killed, out of memory, or crashed"


@dataclass(frozen=True, slots=True)
class Interruption:
    """A run that could not be executed, and why.

    Attributes:
        kind: `MACHINERY`, `WANTED` or `DIED`.
        step: the step that was executed, if it is known better than from where the run stands.
        server: on whose connection.
    """

    saga: str
    reason: str
    kind: str
    step: str | None = None
    server: str | None = None

    @classmethod
    def of(cls, saga: str, error: Interrupted) -> Self:
        """Return what a driver has told."""
        return cls(saga, error.reason, WANTED if error.wanted else MACHINERY, error.step, error.server)


class Interruptions:
    """Interruptions of one worker that are still to be written down.

    Args:
        service: whose runs.
        sagas: the sagas that it has, by name: what never happened to them is counted too, as nothing.
        reports: says what has become of the runs.
        most: a run is parked after so many in a row without progress; those that it wanted itself do not park it.

    Attributes:
        counted: how many there were since the worker started, by saga and kind.
    """

    def __init__(self, service: str, sagas: Mapping[str, Saga], reports: Reports, most: int = MOST) -> None:
        """Hold nothing yet."""
        self._service = service
        self._sagas = sagas
        self._reports = reports
        self._most = most
        self._pending: dict[uuid.UUID, Interruption] = {}
        self.counted = Counter({(saga, kind): 0 for saga in sagas for kind in (MACHINERY, WANTED, DIED)})

    def __contains__(self, run_id: object) -> bool:
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
        noted = {
            run_id: NotedInterruption(
                storable(one.reason),  # NUL and broken characters cannot be stored as text
                one.kind != WANTED,
                _NOT_ALIVE if one.kind == DIED else None,
                random.uniform(0.5, 1.0),  # so that runs which were interrupted together do not come back together
                self._timeout_of(one.saga),
            )
            for run_id, one in pending.items()
        }
        rows = await driver.run(note_interruptions(noted, self._most))
        for run_id, count, state, message_id, key, seq, step in rows:
            one = pending[run_id]
            at = one.step or step or (self._sagas[one.saga].steps[0].name if seq == 0 else None)
            subject = Subject(self._service, one.saga, run_id, message_id, key_seen(key), at)
            say = self._reports.parked if state == RunState.PARKED else self._reports.interrupted
            say(subject, one.reason, count, one.server or driver.server)
        for run_id in pending:
            del self._pending[run_id]

    def _timeout_of(self, saga: str) -> float | None:
        known = self._sagas.get(saga)
        return None if known is None or known.timeouts is None else known.timeouts.timeout


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
