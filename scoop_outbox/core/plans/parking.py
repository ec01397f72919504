"""Plans of parked runs: which of them can go on again by themselves."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

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
    if not mine:
        return []
    freed: Rows
    _, freed, _ = yield from ask(BEGIN, statement("unpark", runs=mine, anew=False), COMMIT)
    for run_id, service_name, saga, version, delay in freed:
        hints.mail(service_name, saga, version, run_id, delay)
    return [row[0] for row in freed]


def _can_go_on(
    saga: str, version: str, needs: str, before: Sequence[str], executed: Sequence[str], deployment: Deployment
) -> bool:
    mine = deployment.mine[saga]
    by = executing_version(saga, version, needs, deployment)
    if by is None or by.id != mine.id:
        return False
    return version == mine.id or not left_out(before, mine.steps, needs, executed)


def count_stuck(service: str, limit: int) -> Plan[tuple[int, int, int]]:
    """Return how many runs of a service are parked, were interrupted last, and could not be rolled back.

    Each is counted up to `limit`.
    """
    (rows,) = yield from ask(statement("count_stuck", service=service, most=limit))
    parked, interrupted, stuck = rows[0]
    return parked, interrupted, stuck
