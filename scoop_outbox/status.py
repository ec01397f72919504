"""The status of a hierarchy: what ran, how it stands, and why."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from scoop_outbox._deadlines import Deadline, earlier
from scoop_outbox.core.plans.failures import Known, recall
from scoop_outbox.core.plans.inspect import read_executions, read_hierarchy, read_taken_in
from scoop_outbox.core.rows import Failures, Row, deadline_of, deadlines_of, failure_of, message_of
from scoop_outbox.core.run import ChildState, RunState, StepKind
from scoop_outbox.core.statement import Plan
from scoop_outbox.errors import UnknownMessage
from scoop_outbox.failure import Failure
from scoop_outbox.message import Message

# Where `read_hierarchy`, `read_steps` and `read_children_elsewhere` return failures.
_FAILURES, _STEP_FAILURE, _ELSEWHERE_FAILURES = (9, 10, 19), 8, (12, 13)


@dataclass(frozen=True, slots=True)
class StepStatus:
    """One execution of a step, child-failure handler or compensation.

    Attributes:
        state: `committed`, `failed`, or `compensated`.
        undoes: for a compensation, the number of the execution that it undid; for a finaliser, that it is of.
        failure: what it raised, if it failed; of a handler that returned during a rollback, what it was called for.
    """

    seq: int
    step: str
    kind: StepKind
    iteration: int
    attempt: int
    state: str
    undoes: int | None
    failure: Failure | None
    started_at: datetime
    ended_at: datetime
    worker: str


@dataclass(frozen=True, slots=True)
class ActionStatus:
    """What a person has done about a run that was stuck, or said of the work of an external participant.

    Attributes:
        kind: `retry`, `skip` or `abandon`; `complete` or `fail`.
        source: who; None if a statement of SQL did not say.
        note: why, or what was done by hand, if they said so.
        seq: of what was skipped, the number of the execution that was to be undone.
    """

    kind: str
    at: datetime
    source: str | None
    note: str | None
    seq: int | None


@dataclass(frozen=True, slots=True)
class RunStatus:
    """One run of a hierarchy.

    Attributes:
        lineage: run ids from the root of the hierarchy to this run.
        launched_by: the number of its parent's execution that launched the message, None for a root or a late run.
        failure: what it failed with, if it did: when it could not be rolled back, why not.
        rollback_reason: why it rolls back or rolled back, or was to: the same as `failure` unless the rollback failed.
        reason: why it is parked.
        version: the version of its saga that it belongs to; empty before its first step.
        interruptions: how often in a row the machinery has interrupted it since it last made progress, or it said
            "not now" itself.
        interruption: why it was interrupted last.
        steps: its executions in order.
        late: whether its parent does not wait for it, and no rollback reaches it: the parent has left it behind, or its
            saga was subscribed only after the launch. Which execution launched it is not known then.
        giving_up: why it gives up, while it waits for children that it has told to.
        deadline: until when it has to commit, and who says so; what its saga says is known once it has executed a step.
        rollback_by: until when its rollback has to end.
        abandoned: whether somebody has abandoned it: it stays as it is.
        actions: what people have done about it, in order.
        parent_home: the name of the home in which its parent is, if that is another one; or its id.
        sleeps_until: when it goes on, if it sleeps.
    """

    id: uuid.UUID
    service: str
    saga: str
    message_id: uuid.UUID
    topic: str
    state: RunState
    lineage: tuple[uuid.UUID, ...]
    launched_by: int | None
    step: str | None
    next_step: str | None
    failure: Failure | None
    reason: str | None
    created_at: datetime
    ended_at: datetime | None
    steps: tuple[StepStatus, ...]
    rollback_reason: Failure | None = None
    version: str = ""
    interruptions: int = 0
    interruption: str | None = None
    late: bool = False
    giving_up: Failure | None = None
    deadline: Deadline | None = None
    rollback_by: datetime | None = None
    abandoned: bool = False
    actions: tuple[ActionStatus, ...] = ()
    parent_home: str | None = None
    sleeps_until: datetime | None = None

    @property
    def parent(self) -> uuid.UUID | None:
        """The run that launched the message, None for a root."""
        return self.lineage[-2] if len(self.lineage) > 1 else None


@dataclass(frozen=True, slots=True)
class ChildElsewhere:
    """A child that lives in another home, as that has reported it last. What is below it, its own home knows.

    Attributes:
        home: the name of the home; its id if no home of that id is known here.
        state: what the home has reported, or `cancelling` and `rolling_back` from when it has been told to.
        open: whether it is waited for.
        parent: the run whose step launched the message; None when it came from outside any run.
        launched_by: the number of the parent's execution that launched it.
        run_id: its run; None until the home has reported one.
        launched_at: when its message was launched; None when it came from outside any run.
        reported_at: when the home last reported something new of it; None before it has.
        failure: what it failed with: when it could not be rolled back, why not.
    """

    message_id: uuid.UUID
    service: str
    saga: str
    home: str
    state: ChildState
    open: bool
    parent: uuid.UUID | None
    launched_by: int | None
    run_id: uuid.UUID | None
    launched_at: datetime | None
    reported_at: datetime | None
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class Status:
    """Everything below one message, as far as this home knows it.

    Attributes:
        message_id: the message at the top.
        runs: every run here, parents before their children.
        elsewhere: every child of these, and of the message, that lives in another home.
    """

    message_id: uuid.UUID
    runs: tuple[RunStatus, ...]
    elsewhere: tuple[ChildElsewhere, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether nothing will happen any more by itself."""
        return all(run.state.ended for run in self.runs) and not any(one.open for one in self.elsewhere)


def read_status(message_id: uuid.UUID, known: Known) -> Plan[Status]:
    """Read a hierarchy.

    Raises:
        UnknownMessage: the message has not been taken in here, or has been pruned.
    """
    rows, is_known = yield from read_hierarchy(message_id)
    if not is_known:
        raise UnknownMessage(f"message {message_id} has not been taken in here, or it has been pruned")
    steps, actions, elsewhere = yield from read_executions([row[0] for row in rows], message_id)
    named = [row[column] for row in rows for column in _FAILURES] + [row[_STEP_FAILURE] for row in steps]
    named += [row[column] for row in elsewhere for column in _ELSEWHERE_FAILURES]
    failures = yield from recall(named, known)
    by_run: dict[uuid.UUID, list[StepStatus]] = {}
    for row in steps:
        by_run.setdefault(row[0], []).append(_step_of(row, failures))
    done: dict[uuid.UUID, list[ActionStatus]] = {}
    for run_id, *action in actions:
        done.setdefault(run_id, []).append(ActionStatus(*action))
    runs = (_run_of(row, by_run.get(row[0], ()), done.get(row[0], ()), failures) for row in rows)
    return Status(message_id, tuple(runs), tuple(_elsewhere_of(row, failures) for row in elsewhere))


def read_message(message_id: uuid.UUID) -> Plan[Message]:
    """Read a message that has been taken in.

    Raises:
        UnknownMessage: it has not been taken in here, or has been pruned.
    """
    row = yield from read_taken_in(message_id)
    if row is None:
        raise UnknownMessage(f"message {message_id} has not been taken in here, or it has been pruned")
    return message_of(row, None)


def _step_of(row: Row, failures: Failures) -> StepStatus:
    """Return the execution in a row of `read_steps`."""
    _, seq, step, kind, iteration, attempt, state, undoes, failure, *times_and_worker = row
    return StepStatus(
        seq, step, StepKind(kind), iteration, attempt, state, undoes, failure_of(failure, failures), *times_and_worker
    )


def _elsewhere_of(row: Row, failures: Failures) -> ChildElsewhere:
    """Return the child in a row of `read_children_elsewhere`."""
    message_id, service, saga, home, name, state, is_open, parent, launched_by, run_id, *rest = row
    launched_at, reported_at, failure, obstacle = rest
    return ChildElsewhere(
        message_id,
        service,
        saga,
        name or str(home),
        ChildState(state),
        is_open,
        parent,
        launched_by,
        run_id,
        launched_at,
        reported_at,
        failure_of(failure if obstacle is None else obstacle, failures),
    )


def _run_of(row: Row, steps: Sequence[StepStatus], actions: Sequence[ActionStatus], failures: Failures) -> RunStatus:
    """Return the run in a row of `read_hierarchy`."""
    run_id, service, saga, message_id, state, lineage, launched_by, step, next_step, failure, obstacle, *rest = row
    reason, created_at, ended_at, topic, version, interruptions, interruption, late, giving_up, abandoned, *times = rest
    deadlines, own_deadline, rollback_by, parent_home, sleeps_until = times
    return RunStatus(
        run_id,
        service,
        saga,
        message_id,
        topic,
        RunState(state),
        tuple(lineage),
        launched_by,
        step,
        next_step,
        failure_of(failure if obstacle is None else obstacle, failures),
        reason,
        created_at,
        ended_at,
        tuple(steps),
        failure_of(failure, failures),
        version,
        interruptions,
        interruption,
        late,
        failure_of(giving_up, failures),
        earlier(deadlines_of(deadlines).happy_path, deadline_of(own_deadline)),
        rollback_by,
        abandoned,
        tuple(actions),
        parent_home,
        sleeps_until,
    )
