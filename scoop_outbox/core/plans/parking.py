"""Plans of parked runs: which of them can go on again, by themselves or because somebody says so."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from scoop_outbox.answers import Answer
from scoop_outbox.core.plans.claim import Hints
from scoop_outbox.core.statement import BEGIN, COMMIT, Plan, Rows, ask, statement
from scoop_outbox.core.versions import Deployment, executing_version, left_out

AT_ONCE = 500
"""How many parked runs are looked at together; more of them follow with the next look."""


@dataclass(frozen=True, slots=True)
class ParkedRun:
    """A run that is parked.

    Attributes:
        reason: why.
        needs: the step without which it cannot go on; None when it waits for a person.
        since: since when.
    """

    id: uuid.UUID
    saga: str
    reason: str
    needs: str | None
    since: datetime


def list_parked(service: str, limit: int) -> Plan[list[ParkedRun]]:
    """Return parked runs of a service, at most `limit` of them."""
    (rows,) = yield from ask(statement("list_parked", service=service, most=limit))
    return [ParkedRun(*row) for row in rows]


def retry(run_id: uuid.UUID, hints: Hints | None = None) -> Plan[Answer]:
    """Take a parked run on again; one that no living version could take over goes on under whichever takes it."""
    (state,) = yield from ask(statement("read_state", run=run_id))
    if not state:
        return Answer.UNKNOWN
    freed = yield from _unpark([run_id], hints, anew=True)
    return Answer.ACCEPTED if freed else Answer.NOTHING_TO_DO


def unpark(service: str, deployment: Deployment, hints: Hints) -> Plan[list[uuid.UUID]]:
    """Let runs go on that were parked because nobody knew what they need, and that this process can execute now."""
    known = [(version.saga, step) for version in deployment.mine.values() for step in version.steps]
    sagas, steps = [saga for saga, _ in known], [step for _, step in known]
    (rows,) = yield from ask(statement("read_parked", service=service, sagas=sagas, steps=steps, most=AT_ONCE))
    mine = [
        run_id
        for run_id, saga, version, needs, undoing, before, executed in rows
        if _can_go_on(saga, version, needs, () if undoing else before or (), executed, deployment)
    ]
    return (yield from _unpark(mine, hints, anew=False)) if mine else []


def _can_go_on(
    saga: str, version: str, needs: str, before: Sequence[str], executed: Sequence[str], deployment: Deployment
) -> bool:
    mine = deployment.mine[saga]
    by = executing_version(saga, version, needs, deployment)
    if by is None or by.id != mine.id:
        return False
    return version == mine.id or not left_out(before, mine.steps, needs, executed)


def _unpark(runs: Sequence[uuid.UUID], hints: Hints | None, *, anew: bool) -> Plan[list[uuid.UUID]]:
    freed: Rows
    _, freed, _ = yield from ask(BEGIN, statement("unpark", runs=list(runs), anew=anew), COMMIT)
    if hints is not None:
        for run_id, service, saga, version, delay in freed:
            hints.mail(service, saga, version, run_id, delay)
    return [row[0] for row in freed]


def count_stuck(service: str, limit: int) -> Plan[tuple[int, int, int]]:
    """Return how many runs of a service are parked, were interrupted last, and could not be rolled back.

    Each is counted up to `limit`.
    """
    (rows,) = yield from ask(statement("count_stuck", service=service, most=limit))
    parked, interrupted, stuck = rows[0]
    return parked, interrupted, stuck
