"""Plans of explaining: what runs wait for besides their children, and what they do next. Nothing is written or locked.

What a run does next is what `decide` answers for a saga that has the steps of the living versions and no code, so with
no compensations, handlers and policies of retries: those are in the processes of the run's service only.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from scoop_outbox._deadlines import earlier
from scoop_outbox.core.decide import decide
from scoop_outbox.core.decision import Decision
from scoop_outbox.core.plans.failures import Known, recall
from scoop_outbox.core.rows import (
    Row,
    body_of,
    children_of,
    deadline_of,
    deadlines_of,
    failure_of,
    failures_of_body,
    failures_of_children,
    failures_of_instance,
    instance_of,
)
from scoop_outbox.core.run import Body, Facts, Instance, Outside, Run, RunState, changed
from scoop_outbox.core.statement import Plan, Rows, Statement, ask, statement
from scoop_outbox.external import FAILED, External
from scoop_outbox.failure import Failure
from scoop_outbox.saga import Saga

UNKNOWN_STEP = "(unknown)"
"""The first step of a saga of which no worker is alive."""

_NO_CODE = "explain"
_FAILURES, _BODY = slice(18, 23), slice(29, 31)


@dataclass(frozen=True, slots=True)
class Workers:
    """What the living workers of a service have.

    Attributes:
        alive: how many there are.
        steps: of each saga that they have, the steps of each of its versions, the newest first.
    """

    alive: int
    steps: Mapping[str, Sequence[Sequence[str]]]

    def know(self, saga: str, step: str) -> bool:
        """Tell whether one of them knows a step."""
        return any(step in steps for steps in self.steps.get(saga, ()))


@dataclass(frozen=True, slots=True)
class Situation:
    """A run, and what it may wait for besides its children.

    Attributes:
        due: what it does next, without its code; None when it has ended.
        cancellation: why somebody has asked it to give up.
        interruptions: how often in a row it has been interrupted.
        interruption: why it was interrupted last.
        ended_at: when it ended or was parked.
        abandoned: whether somebody has abandoned it.
        now: when this was read, by the database's clock.
        mail_due: when its earliest wake-up is due; None when there is none.
        queued: whether it waits for its turn in a lane.
        first: the run whose turn it is there; None when that is this one.
        before: how many runs came before it, counted up to 1000.
        external: whether it is an external participant.
        locked_by: who holds the lock of its row: process, application, user, kind, state, since when, for how long.
        workers: those of its service.
    """

    run: Run
    due: Decision | None
    cancellation: Failure | None
    interruptions: int
    interruption: str | None
    ended_at: datetime | None
    abandoned: bool
    now: datetime
    mail_due: datetime | None
    queued: bool
    first: uuid.UUID | None
    before: int
    external: bool
    locked_by: tuple[Any, ...] | None
    workers: Workers


def read_situations(runs: Sequence[uuid.UUID], known: Known) -> Plan[list[Situation]]:
    """Return what runs may wait for, the oldest first."""
    (rows,) = yield from ask(statement("read_situations", runs=list(runs)))
    facts = yield from _read_facts({row[0]: row[_BODY] for row in rows})
    named = [one for row in rows for one in row[_FAILURES]]
    for children, _, instance, body in facts.values():
        named += failures_of_children(children) + failures_of_instance(instance) + failures_of_body(body)
    failures = yield from recall(named, known)
    workers = yield from read_workers_of(row[2] for row in rows)
    return [_situation(row, facts[row[0]], failures, workers[row[2]]) for row in rows]


def read_workers_of(services: Iterable[str]) -> Plan[Mapping[str, Workers]]:
    """Return what the living workers of services have."""
    found: dict[str, Workers] = {}
    for service in dict.fromkeys(services):
        alive, versions = yield from ask(
            statement("read_workers", service=service), statement("read_versions", service=service)
        )
        steps: dict[str, list[Sequence[str]]] = {}
        for _, saga, names in versions:
            steps.setdefault(saga, []).append(names)
        found[service] = Workers(len(alive), steps)
    return found


def read_stuck_below(message_id: uuid.UUID | None, run_id: uuid.UUID | None, most: int) -> Plan[list[uuid.UUID]]:
    """Return the runs of a message, or a run, and those below that could not be rolled back."""
    (rows,) = yield from ask(statement("read_stuck_below", message=message_id, run=run_id, most=most))
    return [row[0] for row in rows]


def _read_facts(runs: Mapping[uuid.UUID, Row]) -> Plan[Mapping[uuid.UUID, Sequence[Rows]]]:
    """Read of each run what a worker reads when it claims it: its children, what is to be undone, and what finalised.

    Args:
        runs: of each run the execution whose finaliser comes next, and the call of that one.
    """
    if not runs:
        return {}
    asked: list[Statement] = []
    for run, (body_seq, finaliser_seq) in runs.items():
        asked += statement("read_children_without_results", run=run), statement("read_untold", run=run)
        asked.append(statement("read_instance", run=run))
        asked.append(statement("read_body", run=run, body_seq=body_seq, finaliser_seq=finaliser_seq))
    answers = yield from ask(*asked)
    return {run: answers[4 * place : 4 * place + 4] for place, run in enumerate(runs)}


def _situation(row: Row, facts: Sequence[Rows], failures: Mapping[uuid.UUID, Failure], workers: Workers) -> Situation:
    run, cancellation, failed_outside, rest = _run(row, failures)
    (
        interruptions,
        interruption,
        ended_at,
        abandoned,
        now,
        mail_due,
        queued,
        first,
        before,
        external,
        said,
        *locked_by,
    ) = rest
    children, untold, instance, body = facts
    is_open, ended, child_deadline = children_of(children, failures)
    undoing = instance_of(instance, run, failures) if run.state is RunState.ROLLING_BACK else None
    left = body_of(body, failures)
    steps = workers.steps.get(run.saga, ())
    saga = External[Any](run.saga, on=_NO_CODE) if external else _without_code(run, undoing, left, steps)
    deadline = earlier(run.deadlines.happy_path, run.own_deadline) if run.state is RunState.RUNNING else None
    known = Facts(now, is_open, ended, undoing, left, cancellation, untold[0][0], deadline, child_deadline)
    if external and said is not None:
        failed = failed_outside or (Failure(FAILED, None, run.saga) if said == "fail" else None)
        known = replace(known, outside=Outside(failure=failed))
    return Situation(
        run,
        None if run.state.ended else decide(saga, run, known, _NO_CODE),
        None if run.state is not RunState.RUNNING else cancellation,
        interruptions,
        interruption,
        ended_at,
        abandoned,
        now,
        mail_due,
        bool(queued),
        None if first == run.id else first,
        before or 0,
        external,
        None if locked_by[0] is None else tuple(locked_by),
        workers,
    )


def _run(row: Row, failures: Mapping[uuid.UUID, Failure]) -> tuple[Run, Failure | None, Failure | None, Sequence[Any]]:
    """Return the run in a row of `read_situations`, why to give up, why it failed outside, and what follows there."""
    (
        run_id, message_id, service, saga, lineage, parent_run, state, step, next_step, seq, instance, iteration,
        attempt, handled, not_before, undo_seq, compensation_seq, handler_seq, failure, obstacle, giving_up,
        cancellation, failed_outside, reason, version, needs, deadlines, own_deadline, rollback_by, body_seq,
        finaliser_seq, *rest,
    ) = row  # fmt: skip
    run = Run(
        run_id,
        message_id,
        service,
        saga,
        tuple(lineage),
        parent_run,
        RunState(state),
        step=step,
        next_step=next_step,
        seq=seq,
        instance=instance,
        iteration=iteration,
        attempt=attempt,
        handled=handled,
        not_before=not_before,
        undo_seq=undo_seq,
        compensation_seq=compensation_seq,
        handler_seq=handler_seq,
        failure=failure_of(failure, failures),
        obstacle=failure_of(obstacle, failures),
        reason=reason,
        version=version,
        needs=needs,
        giving_up=failure_of(giving_up, failures),
        deadlines=deadlines_of(deadlines),
        own_deadline=deadline_of(own_deadline),
        rollback_by=rollback_by,
        body_seq=body_seq,
        finaliser_seq=finaliser_seq,
    )
    asked = failure_of(cancellation, failures)
    if asked is not None and run.state is RunState.PARKED and run.undo_seq is None:
        run = changed(run, state=RunState.RUNNING, reason=None, needs=None)  # as it is for the worker that claims it
    return run, asked, failure_of(failed_outside, failures), rest


def _without_code(
    run: Run, undoing: Instance | None, body: Body | None, versions: Sequence[Sequence[str]]
) -> Saga[Any]:
    """Return a saga with the steps that living workers know; when none has the saga, with those that are at hand."""
    saga: Saga[Any] = Saga(run.saga, on=_NO_CODE)
    at_hand = (run.step, run.next_step, None if undoing is None else undoing.step, None if body is None else body.step)
    names = [name for steps in versions for name in steps]
    names = names or [name for name in at_hand if name is not None] or [UNKNOWN_STEP]
    for name in dict.fromkeys(names):
        # Those have finalisers whose finaliser is to be called, and a run knows that of itself.
        saga.add_step(name, lambda _scope, _message: None, finally_=lambda _scope, _message: None)
    return saga
