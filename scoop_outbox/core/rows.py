"""Rows and facts: the one place that knows in which order the store's statements return their columns."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from scoop_outbox._deadlines import NONE, Deadline, Deadlines
from scoop_outbox.core.run import Body, Child, ChildState, Instance, Run, RunState, StepKind
from scoop_outbox.failure import Failure, Frame
from scoop_outbox.message import Message, Topic
from scoop_outbox.wire.headers import key_seen

Row = Sequence[Any]
Failures = Mapping[uuid.UUID, Failure]
"""Those that the rows at hand name, by id."""

# Where `claim_run` returns what comes after the run's own columns.
CLOCK, MAIL, CANCELLATION, MESSAGE = 38, 39, 40, slice(41, 48)

_FAILURES = (20, 21, 28, 35, CANCELLATION)
_CHILD_FAILURES, _DEADLINE = slice(6, 8), 10
# Where `read_instance` returns a child, as `read_children` does.
_INSTANCE = 7
# Where `read_body` does.
_BODY = 3


def failure_of(failure_id: uuid.UUID | None, failures: Failures) -> Failure | None:
    """Return a failure that a row names."""
    return None if failure_id is None else failures[failure_id]


def failures_of_run(row: Row, children: Sequence[Row]) -> list[uuid.UUID]:
    """Return the failures that a row of `claim_run` and rows of `read_children` name."""
    return [row[one] for one in _FAILURES if row[one] is not None] + failures_of_children(children)


def failures_of_children(rows: Sequence[Row]) -> list[uuid.UUID]:
    """Return the failures that rows of `read_children` name."""
    return [one for row in rows for one in row[_CHILD_FAILURES] if one is not None]


def failures_of_instance(rows: Sequence[Row]) -> list[uuid.UUID]:
    """Return the failures that rows of `read_instance` name."""
    handled = [row[_INSTANCE - 1] for row in rows[:1] if row[_INSTANCE - 1] is not None]
    return handled + failures_of_children([row[_INSTANCE:] for row in rows])


def failures_of_body(rows: Sequence[Row]) -> list[uuid.UUID]:
    """Return the failures that rows of `read_body` name."""
    return failures_of_children([row[_BODY:] for row in rows])


def run_of(row: Row, failures: Failures) -> Run:
    """Return the run in a row of `claim_run`, which also holds the clock, the mail and the message."""
    (
        run_id, message_id, service, saga, lineage, parent_run, state, step, next_step, seq, instance, iteration,
        attempt, handled, not_before, undo_seq, compensation_seq, handler_seq, context, inherited, failure, obstacle,
        result, launched_at, reason, lane, version, interrupted, giving_up,
        deadlines, own_deadline, rollback_by, body_seq, finaliser_seq, undo_from, unresolved, created_at, parent_home,
        *_,
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
        handler_seq,
        context,
        inherited,
        failure_of(failure, failures),
        failure_of(obstacle, failures),
        result,
        None if launched_at is None else Frame.from_json(launched_at),
        reason,
        lane,
        version,
        interrupted,
        giving_up=failure_of(giving_up, failures),
        deadlines=deadlines_of(deadlines),
        own_deadline=deadline_of(own_deadline),
        rollback_by=rollback_by,
        body_seq=body_seq,
        finaliser_seq=finaliser_seq,
        undo_from=undo_from,
        unresolved=failure_of(unresolved, failures),
        created_at=created_at,
        parent_home=parent_home,
    )


def deadlines_of(text: str | None) -> Deadlines:
    """Return the deadlines that came with a run's message."""
    return NONE if text is None else Deadlines.from_json(json.loads(text))


def deadline_of(text: str | None) -> Deadline | None:
    """Return the deadline that a run has set itself."""
    return None if text is None else Deadline.from_json(json.loads(text))


def children_of(rows: Sequence[Row], failures: Failures) -> tuple[bool, list[Child], datetime | None]:
    """Return what `read_children` tells of children.

    Returns:
        Whether some are open, the ended ones that have something to tell, and by when the next one has to have started.
    """
    is_open, deadline = (bool(rows[0][0]), rows[0][_DEADLINE]) if rows else (False, None)
    return is_open, [_child_of(row, failures) for row in rows if row[1] is not None], deadline


def _child_of(row: Row, failures: Failures) -> Child:
    _, message_id, saga, state, ordinal, result, failure, obstacle, failed_at, delivered, *_ = row
    return Child(
        message_id,
        saga,
        ChildState(state),
        ordinal,
        result,
        failure_of(failure, failures),
        failure_of(obstacle, failures),
        failed_at,
        delivered,
    )


def instance_of(rows: Sequence[Row], run: Run, failures: Failures) -> Instance | None:
    """Return the instance to be undone, from `read_instance`: one row a failed child, at least one in all."""
    if not rows:
        return None
    seq, step, kind, iteration, askable, elsewhere, handled, *_ = rows[0]
    children = [(row[_INSTANCE], _child_of(row[_INSTANCE:], failures)) for row in rows if row[_INSTANCE] is not None]

    def of(execution: int | None) -> tuple[Child, ...]:
        return tuple(child for launched_by, child in children if launched_by == execution)

    return Instance(
        seq,
        step,
        StepKind(kind),
        iteration,
        askable,
        of(seq),
        of(run.compensation_seq),
        of(run.handler_seq),
        failure_of(handled, failures),
        elsewhere,
    )


def body_of(rows: Sequence[Row], failures: Failures) -> Body | None:
    """Return the execution whose finaliser is to be called, from `read_body`: one row a failed child, one at least."""
    if not rows:
        return None
    seq, step, iteration, *_ = rows[0]
    children = tuple(_child_of(row[_BODY:], failures) for row in rows if row[_BODY] is not None)
    return Body(seq, step, iteration, children)


def message_of(row: Row, schema: Topic[Any] | None) -> Message:
    """Return the message in the columns of `read_taken_in`."""
    message_id, topic, key, body, content_type, headers, created_at = row
    return Message(message_id, topic, key_seen(key), bytes(body), content_type, headers, created_at, schema)
