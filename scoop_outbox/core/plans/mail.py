"""Plans of mail: which runs have something to look at, and what is noted of those that could not be executed."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from scoop_outbox.core.statement import Plan, Rows, ask, statement


class NotedInterruption(NamedTuple):
    """An interruption of a run, as it is written down.

    Attributes:
        reason: why, as text that can be stored.
        parks: whether it counts towards the limit at which the run is parked.
        taker: who is known to have died of the run, or None.
        chance: by which part of the backoff the run is due later, from 0 to 1.
        timeout: seconds in which the run has to commit, as its saga says: one that is parked gives up then.
    """

    reason: str
    parks: bool
    taker: uuid.UUID | None
    chance: float
    timeout: float | None


def read_due(where: Mapping[str, Any], shares: Mapping[str, list[int]], most: int) -> Plan[Rows]:
    """Return the oldest mail that is due of each saga, and in the last row when more is.

    Args:
        where: which mail concerns the worker.
        shares: which part of each saga's mail is its own.
        most: of how many runs.
    """
    (rows,) = yield from ask(statement("read_due", **where, **shares, most=most))
    return rows


def read_left_lying(where: Mapping[str, Any], steal: timedelta, most: int) -> Plan[Rows]:
    """Return the oldest mail that is due and has been for `steal`, whosever it is."""
    (rows,) = yield from ask(statement("read_left_lying", **where, steal=steal, most=most))
    return rows


def mark_taken(worker: uuid.UUID, runs: Sequence[uuid.UUID]) -> Plan[Rows]:
    """Note that a worker begins to execute runs that another one may have died of.

    Returns:
        Of each run whether the one who had begun to has died. Runs that somebody holds are left out.
    """
    (rows,) = yield from ask(statement("mark_taken", worker=worker, runs=list(runs)))
    return rows


def note_interruptions(noted: Mapping[uuid.UUID, NotedInterruption], most: int) -> Plan[Rows]:
    """Count the interruptions of runs, and have them due later; park those that were interrupted too often in a row.

    Args:
        noted: by run.
        most: so many in a row park a run.

    Returns:
        Of each run its id, how often it was interrupted in a row, its state, message, key, number of executions, and
        the step that is next.
    """
    (rows,) = yield from ask(
        statement(
            "note_interruptions",
            runs=list(noted),
            reasons=[one.reason for one in noted.values()],
            parks=[one.parks for one in noted.values()],
            takers=[one.taker for one in noted.values()],
            chances=[one.chance for one in noted.values()],
            timeouts=[one.timeout for one in noted.values()],
            most=most,
        )
    )
    return rows


def count_due(service: str, sagas: Sequence[str], limit: int) -> Plan[int]:
    """Return how many pieces of mail could be seen to now if there were slots, counted up to `limit`."""
    (rows,) = yield from ask(statement("count_due", service=service, sagas=list(sagas), most=limit))
    count: int = rows[0][0]
    return count
