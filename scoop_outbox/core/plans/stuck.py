"""Plans of stuck runs: what a person does about runs that are parked, or whose rollback has failed.

Each is one transaction under the locks of the run and, where its parent waits for it from then on, of its parent.
Neither is waited for: if somebody holds one, the answer says so. How the runs above go on is in `healing`.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from scoop_outbox.answers import Answer
from scoop_outbox.core.plans.claim import Hints
from scoop_outbox.core.plans.failures import Known, Writing, id_of, recall
from scoop_outbox.core.plans.news import REPORTS
from scoop_outbox.core.run import RunState
from scoop_outbox.core.statement import BEGIN, COMMIT, ROLLBACK, Plan, Statement, ask, statement
from scoop_outbox.failure import Failure
from scoop_outbox.wire.headers import storable

_POSTS = ("unpark", "reopen", "tell_parent", "leave_lane")
"""Statements that answer which runs they have posted mail for."""
_ABANDONED = "RunAbandoned"
PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Seconds after which it is tried again, one after the other, while the answer is `BUSY`: a worker that only looks at a
run, as after the end of a child, is done in no time."""


class Action(StrEnum):
    """What a person does about a run that is stuck."""

    RETRY = "retry"
    SKIP = "skip"
    ABANDON = "abandon"


@dataclass(frozen=True, slots=True)
class Origin:
    """Who does something about a run, and why.

    Attributes:
        source: who.
        note: why, in words.
    """

    source: str
    note: str | None = None


@dataclass(frozen=True, slots=True)
class _Stuck:
    """A run under our lock.

    Attributes:
        requested: whether somebody has retried it, or skipped something of it, before.
        awaits: whether children of it are open.
        body_seq: the execution whose finaliser comes next, or waits for what it has launched.
        finaliser_seq: the call that does.
        parent_home: the home in which it is waited for, if that is another one.
    """

    id: uuid.UUID
    state: RunState
    abandoned: bool
    undoing: bool
    requested: bool
    awaits: bool
    body_seq: int | None
    finaliser_seq: int | None
    message_id: uuid.UUID
    service: str
    saga: str
    lane: uuid.UUID | None
    parent_home: uuid.UUID | None


def carry_out(
    action: Action, run_id: uuid.UUID, origin: Origin, known: Known, hints: Hints | None = None
) -> Plan[Answer]:
    """Do something about a run that is stuck, and answer what has become of that.

    Args:
        action: what.
        run_id: the run.
        origin: who does it, and why.
        known: the failures that this process knows.
        hints: told which runs have mail; None leaves it to the workers to find it.
    """
    match action:
        case Action.RETRY:
            return (yield from _retry_below(run_id, origin, hints))
        case Action.SKIP:
            return (yield from _skip(run_id, origin, hints))
        case Action.ABANDON:
            return (yield from _abandon(run_id, origin, known, hints))


def _retry_below(run_id: uuid.UUID, origin: Origin, hints: Hints | None) -> Plan[Answer]:
    """Retry a run, or the runs below it because of which it has stopped."""
    (rows,) = yield from ask(statement("read_origins_below", run=run_id))
    answers: set[Answer] = set()
    for one in [row[0] for row in rows] or [run_id]:
        answers.add((yield from _retry(one, origin, hints)))
    if Answer.BUSY in answers:
        return Answer.BUSY  # not all of them: asked again, those that are retried already say so
    return Answer.ACCEPTED if Answer.ACCEPTED in answers else min(answers)


def _retry(run_id: uuid.UUID, origin: Origin, hints: Hints | None) -> Plan[Answer]:
    found = yield from _locked(run_id, Action.RETRY)
    if isinstance(found, Answer):
        return found
    parked = found.state is RunState.PARKED
    changes = [statement("unpark", runs=[run_id], anew=True)] if parked else _reopen(found)
    return (yield from _write([*changes, _recorded(found, Action.RETRY, origin)], hints))


def _skip(run_id: uuid.UUID, origin: Origin, hints: Hints | None) -> Plan[Answer]:
    """Count as done what a run could not do: a finaliser, or undoing the children of an execution, or the execution."""
    found = yield from _locked(run_id, Action.SKIP)
    if isinstance(found, Answer):
        return found
    if found.body_seq is not None:
        gone = statement("skip_finaliser", run=run_id, finaliser_seq=found.finaliser_seq)
        recorded = _recorded(found, Action.SKIP, origin, found.body_seq)
        return (yield from _write([gone, *_reopen(found), recorded], hints))
    (phase,) = yield from ask(statement("read_phase", run=run_id))
    if not phase:
        return (yield from _left(Answer.NOTHING_TO_DO))
    seq, compensated, broken, unasked = phase[0]
    if broken and not compensated:
        changes = [statement("consume_failures", run=run_id, seq=seq), *_reopen(found)]
    elif unasked:  # nothing of the user's is in the way: its children are not even asked
        return (yield from _left(Answer.NOTHING_TO_DO))
    else:
        changes = [statement("mark_undone", run=run_id, seq=seq), *_reopen(found, seq - 1)]
    return (yield from _write([*changes, _recorded(found, Action.SKIP, origin, seq)], hints))


def _abandon(run_id: uuid.UUID, origin: Origin, known: Known, hints: Hints | None) -> Plan[Answer]:
    """Leave a run as it is for good; one that is parked ends as one whose rollback has failed."""
    found = yield from _locked(run_id, Action.ABANDON)
    if isinstance(found, Answer):
        return found
    recorded = _recorded(found, Action.ABANDON, origin)
    if found.state is RunState.ROLLBACK_FAILED:
        gone = statement("abandon", run=run_id, failure=None)
        told = yield from _told_abandoned(found, known)
        return (yield from _write([gone, *told, recorded], hints))
    writing = Writing(known)
    obstacle = writing.name(Failure(_ABANDONED, origin.note, origin.source).within_limits())
    *_, ended = yield from ask(*writing.statements(), statement("abandon", run=run_id, failure=id_of(obstacle)))
    news = yield from _news(found, ended[0][0], obstacle, known)
    answer = yield from _write([*news, recorded], hints)
    writing.written()
    return answer


def _news(found: _Stuck, failure: uuid.UUID, obstacle: Failure, known: Known) -> Plan[list[Statement]]:
    """Return the statements that tell others of the end of a run that was parked."""
    state = RunState.ROLLBACK_FAILED
    if found.parent_home is not None:
        why = obstacle if failure == id_of(obstacle) else (yield from recall([failure], known))[failure]
        told = [_report_abandoned(found, why, obstacle)]
    else:
        whose: dict[str, Any] = {"message": found.message_id, "service": found.service, "saga": found.saga}
        ended = {"state": state.value, "result": None, "failure": failure, "obstacle": id_of(obstacle)}
        told = [statement("tell_parent", **whose, run=found.id, **ended)]
    if found.lane is not None:
        told += [statement("lock_lane", lane=found.lane), statement("leave_lane", run=found.id)]
    return told


def _told_abandoned(found: _Stuck, known: Known) -> Plan[list[Statement]]:
    """Return the statement that tells a parent in another home that what it was told of counts as done."""
    if found.parent_home is None:
        return []
    (rows,) = yield from ask(statement("read_why_stuck", run=found.id))
    failures = yield from recall([failure for row in rows for failure in row], known)
    return [_report_abandoned(found, failures.get(why), failures.get(obstacle)) for why, obstacle in rows]


def _report_abandoned(found: _Stuck, failure: Failure | None, obstacle: Failure | None) -> Statement:
    return statement(
        "report_abandoned",
        message=found.message_id,
        run=found.id,
        failure=None if failure is None else failure.dumps(),
        obstacle=None if obstacle is None else obstacle.dumps(),
    )


def _locked(run_id: uuid.UUID, action: Action) -> Plan[_Stuck | Answer]:
    """Lock a run and its parent; the transaction goes on unless an answer is returned."""
    _, locked, parent, rows = yield from ask(
        BEGIN,
        statement("lock_stuck", run=run_id),
        statement("lock_parent", run=run_id),
        statement("read_stuck", run=run_id),  # after the locks: what it sees stays so
    )
    if not rows:
        return (yield from _left(Answer.UNKNOWN))
    state, *rest = rows[0]
    found = _Stuck(run_id, RunState(state), *rest)
    refused = _refused(found, action)
    if refused is None and not (locked and all(row[0] for row in parent)):
        refused = Answer.BUSY
    return found if refused is None else (yield from _left(refused))


def _refused(found: _Stuck, action: Action) -> Answer | None:
    """Return why nothing can be done about a run; None when it can."""
    if found.abandoned:
        return Answer.ALREADY_REQUESTED if action is Action.ABANDON else Answer.ABANDONED
    if found.state is RunState.PARKED:
        return _refused_parked(found, action)
    if action is not Action.ABANDON and found.state is RunState.ROLLBACK_FAILED and found.awaits:
        return Answer.ALREADY_REQUESTED  # what it has stopped for is being rolled back
    if action is not Action.ABANDON and found.state is RunState.ROLLING_BACK and found.requested:
        return Answer.ALREADY_REQUESTED
    return None if found.state is RunState.ROLLBACK_FAILED else Answer.NOTHING_TO_DO


def _refused_parked(found: _Stuck, action: Action) -> Answer | None:
    """Return likewise what is refused of a run that is parked."""
    if action is Action.SKIP and not found.undoing:
        return Answer.NOT_ROLLING_BACK
    return Answer.REFUSED_ACTIVE if action is Action.SKIP and found.awaits else None


def _left(answer: Answer) -> Plan[Answer]:
    """Leave a run as it is."""
    yield from ask(ROLLBACK)
    return answer


def _write(changes: Sequence[Statement], hints: Hints | None) -> Plan[Answer]:
    """Write and commit what is done about a run, and tell who has something to do."""
    answers = yield from ask(*changes, COMMIT)
    for change, posted in zip(changes, answers, strict=False):
        if hints is not None and change.name in _POSTS:
            for run_id, service, saga, version, delay in posted:
                hints.mail(service, saga, version, run_id, delay)
        if hints is not None and change.name in REPORTS and posted:
            hints.outbox()
    return Answer.ACCEPTED


def _reopen(found: _Stuck, undo_seq: int | None = None) -> list[Statement]:
    """Return what has a run roll back further; a parent in another home hears of it if it has been told of the end."""
    reopened = [statement("reopen", run=found.id, undo_seq=undo_seq)]
    if found.parent_home is not None and found.state is RunState.ROLLBACK_FAILED:
        reopened.append(statement("report_reopened", runs=[found.id]))
    return reopened


def _recorded(found: _Stuck, action: Action, origin: Origin, seq: int | None = None) -> Statement:
    note = None if origin.note is None else storable(origin.note)
    return statement(
        "record_action", run=found.id, kind=action.value, note=note, source=storable(origin.source), seq=seq
    )
