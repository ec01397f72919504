"""Rows and facts: the one place that knows in which order the store's statements return their columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scoop_outbox.core.run import Child, ChildState, Instance, Run, RunState, StepKind
from scoop_outbox.failure import Failure, Frame
from scoop_outbox.headers import key_seen
from scoop_outbox.message import Message, Topic

Row = Sequence[Any]

# Where `claim_run` returns what comes after the run's own columns.
CLOCK, MAIL, MESSAGE = 26, 27, slice(28, 35)


def failure_of(text: str | None) -> Failure | None:
    """Return a stored failure."""
    return None if text is None else Failure.loads(text)


def run_of(row: Row) -> Run:
    """Return the run in a row of `claim_run`, which also holds the clock, the mail and the message."""
    (
        run_id, message_id, service, saga, lineage, parent_run, state, step, next_step, seq, instance, iteration,
        attempt, handled, not_before, undo_seq, compensation_seq, context, inherited, failure, result, launched_at,
        reason, lane, version, troubled, *_,
    ) = row  # fmt: skip
    return Run(
        run_id,
        message_id,
        service,
        saga,
        tuple(lineage),
        parent_run,
        RunState(state),
        step,
        next_step,
        seq,
        instance,
        iteration,
        attempt,
        handled,
        not_before,
        undo_seq,
        compensation_seq,
        context,
        inherited,
        failure_of(failure),
        result,
        None if launched_at is None else Frame.from_json(launched_at),
        reason,
        lane,
        version,
        troubled,
    )


def children_of(rows: Sequence[Row]) -> tuple[bool, list[Child]]:
    """Return whether children are open, and the ended ones that have something to tell, from `read_children`."""
    is_open = bool(rows and rows[0][0])
    children = [
        Child(message_id, saga, ChildState(state), ordinal, result, failure_of(failure), failed_at)
        for _, message_id, saga, state, ordinal, result, failure, failed_at in rows
        if message_id is not None
    ]
    return is_open, children


def instance_of(rows: Sequence[Row]) -> Instance | None:
    """Return the instance to be undone, from `read_instance`: one row a failed child, at least one in all."""
    if not rows:
        return None
    seq, step, kind, iteration, askable, *_ = rows[0]
    failures = [(row[5], failure_of(row[6])) for row in rows if row[5] is not None]
    return Instance(
        seq,
        step,
        StepKind(kind),
        iteration,
        askable,
        tuple(failure for of, failure in failures if of == seq and failure is not None),
        tuple(failure for of, failure in failures if of != seq and failure is not None),
        any(row[5] not in (None, seq) and row[7] == ChildState.ROLLBACK_FAILED for row in rows),
    )


def message_of(row: Row, schema: Topic[Any] | None) -> Message:
    """Return the message in the columns of `read_taken_in`."""
    message_id, topic, key, body, content_type, headers, created_at = row
    return Message(message_id, topic, key_seen(key), bytes(body), content_type, headers, created_at, schema)
