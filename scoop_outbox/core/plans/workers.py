"""Plans of workers: who is alive, what each knows, and what a worker sees around it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta

from scoop_outbox.core.statement import BEGIN, COMMIT, Plan, Rows, ask, statement
from scoop_outbox.core.versions import Version


def register_worker(
    worker: uuid.UUID,
    service: str,
    sagas: Sequence[str],
    versions: Sequence[Version],
    alive: timedelta,
    *,
    pooled: bool,
) -> Plan[datetime]:
    """Say that a worker is alive and what it knows; return the time of the database's clock.

    Args:
        worker: its id.
        service: whose.
        sagas: the names of its sagas.
        versions: the version of each.
        alive: for how long it counts as alive from now on.
        pooled: whether its connection is a pooler's, by whose end its death is not noticed.
    """
    _, rows, _ = yield from ask(
        BEGIN,
        statement(
            "register_worker",
            worker=worker,
            service=service,
            sagas=list(sagas),
            versions=[version.id for version in versions],
            steps=[json.dumps(version.steps) for version in versions],
            alive=alive,
            pooled=pooled,
        ),
        COMMIT,
    )
    now: datetime = rows[0][0]
    return now


def unregister_worker(worker: uuid.UUID) -> Plan[None]:
    """Say that a worker has ended, so that others need not wait for it."""
    yield from ask(statement("unregister_worker", worker=worker))


def forget_dead_workers(service: str) -> Plan[None]:
    """Remove the workers of a service that have not been alive for long."""
    yield from ask(statement("forget_dead_workers", service=service))


def read_workers(service: str) -> Plan[tuple[Rows, Rows]]:
    """Return the living workers of a service, and the versions that they have.

    Returns:
        Of each worker its id, its sagas, the versions of these, and whether its connection is there; of each version
        its id, its saga and its steps.
    """
    workers, versions = yield from ask(
        statement("read_workers", service=service), statement("read_versions", service=service)
    )
    return workers, versions


def is_relayed() -> Plan[bool]:
    """Tell whether a relay owns a part of the outbox just now."""
    (rows,) = yield from ask(statement("is_relayed"))
    answer: bool = rows[0][0]
    return answer


def read_strangers(service: str, sagas: Sequence[str], most: int) -> Plan[Rows]:
    """Return the subscriptions of a service for other sagas than these.

    Returns:
        Of each the saga, the topic, and whether a living worker has the saga.
    """
    (rows,) = yield from ask(statement("read_strangers", service=service, sagas=list(sagas), most=most))
    return rows
