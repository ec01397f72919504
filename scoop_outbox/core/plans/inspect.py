"""Plans of looking: how a hierarchy stands, where its messages are, and how it ended. Nothing is written."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from scoop_outbox.core.statement import READ_CLOCK, Plan, Rows, ask, statement


def read_hierarchy(message_id: uuid.UUID) -> Plan[tuple[Rows, bool]]:
    """Return the runs below a message, parents first, and whether it is known here and has not been pruned."""
    runs, known = yield from ask(
        statement("read_hierarchy", message=message_id), statement("is_known", message=message_id)
    )
    return runs, known[0][0]


def read_executions(runs: Sequence[uuid.UUID], message_id: uuid.UUID) -> Plan[tuple[Rows, Rows, Rows]]:
    """Return the executions of runs, in order, what people have done about them, and their children in other homes.

    Args:
        runs: which.
        message_id: at the top: other homes may handle it, too.
    """
    steps, actions, elsewhere = yield from ask(
        statement("read_steps", runs=list(runs)),
        statement("read_actions", runs=list(runs)),
        statement("read_children_elsewhere", runs=[message_id, *runs]),
    )
    return steps, actions, elsewhere


def read_taken_in(message_id: uuid.UUID) -> Plan[tuple[Any, ...] | None]:
    """Return a message that has been taken in, or None."""
    (rows,) = yield from ask(statement("read_taken_in", message=message_id))
    return rows[0] if rows else None


def find_ids(low: uuid.UUID, high: uuid.UUID, most: int) -> Plan[Rows]:
    """Return the messages and runs whose ids lie in a range, at most so many of each.

    The outbox and the dead letters are looked through only if they have to be: for a prefix, and for the id of a
    message that nobody else knows.

    Returns:
        Of each `message` or `run`, its id, and of a run its message.
    """
    (rows,) = yield from ask(statement("find_ids", low=low, high=high, most=most))
    if rows and low == high:
        return rows
    (more,) = yield from ask(statement("find_ids_in_transit", low=low, high=high, most=most))
    return sorted({*rows, *more}, key=lambda row: row[1])


def read_whereabouts(messages: Sequence[uuid.UUID]) -> Plan[Rows]:
    """Return where messages are.

    Returns:
        Of each its id; `taken in`, `pruned`, `outbox` or `dead letter`; topic, key and time; of a dead letter its
        number, who could not take it in, and why.
    """
    (rows,) = yield from ask(statement("read_whereabouts", messages=list(messages)))
    return rows


def read_unstarted(runs: Sequence[uuid.UUID], message_id: uuid.UUID | None) -> Plan[tuple[Rows, datetime]]:
    """Return who was to handle messages and has no run for them, and the time of the database's clock.

    Args:
        runs: who launched them.
        message_id: a message at the top, too.
    """
    rows, clock = yield from ask(statement("read_unstarted", runs=list(runs), message=message_id), READ_CLOCK)
    now: datetime = clock[0][0]
    return rows, now


def read_executing(runs: Sequence[uuid.UUID]) -> Plan[Rows]:
    """Return which of these runs are being executed, and since when, if our user may see that."""
    if not runs:
        return []
    (rows,) = yield from ask(statement("read_executing", runs=list(runs)))
    return rows


def read_roots(messages: Sequence[uuid.UUID]) -> Plan[Rows]:
    """Return who was to handle messages, and how each of these runs stands."""
    (rows,) = yield from ask(statement("read_roots", messages=list(messages)))
    return rows


def read_origins(
    messages: Sequence[uuid.UUID], trails: Sequence[uuid.UUID], origins: Sequence[uuid.UUID]
) -> Plan[Rows]:
    """Return where failures happened.

    Args:
        messages: at the top of the hierarchies.
        trails: the failures on the way down to them.
        origins: the failures that are asked for.

    Returns:
        Of each failure its id, and service, saga and step.
    """
    (rows,) = yield from ask(
        statement("read_origins", messages=list(messages), trails=list(trails), origins=list(origins))
    )
    return rows
