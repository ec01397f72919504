"""News: what others have to know about a run, and how they come to know it.

What an execution makes of a run goes through `news` if it concerns somebody else: its parent hears that it has ended,
its children that they are to give up or to roll back, the next run of its lane that the lane is free. News is written
in the transaction of the change, so that neither is ever there without the other. After the commit `pass_on` tells the
processes that have something to do now: a hint, for the mailbox holds the news already.

What concerns a run of another home goes there through the outbox, in the same transaction: a parent that waits in
another home is told by `tell_home`, and the statements that ask children write for each of their homes a message that
asks those that live there. See core/plans/control.py for how they hear of it, and docs/protocol.md for what is said.

Runs that an operator retires (`retire_runs`) end without being executed: that statement tells their parents itself.
That a run has started is written by the statement that takes its message in, with the run itself: `read_children` sees
it, and nobody has anything to do because of it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from scoop_outbox.core.plans.claim import Hints
from scoop_outbox.core.plans.failures import id_of
from scoop_outbox.core.run import Run, RunState
from scoop_outbox.core.statement import Rows, Statement, statement
from scoop_outbox.core.transition import Transition
from scoop_outbox.failure import Failure
from scoop_outbox.wire.control import Order

_POSTS = ("ask_children", "cancel_children", "expire_children", "leave_behind", "tell_parent", "leave_lane")
"""Statements that answer which runs they have posted mail for."""
REPORTS = ("tell_home", "report_reopened", "report_abandoned")
"""Statements that answer whether they have written something to be published."""


def news(change: Transition, *, elsewhere: bool = False) -> Iterator[Statement]:
    """Return the statements that tell others what becomes of a run.

    Args:
        change: what becomes of it; its failures have been written down.
        elsewhere: whether some of the children that are told something live in other homes.
    """
    run = change.run
    if change.asks is not None:
        seq, reason = change.asks
        yield statement(
            "ask_children",
            run=run.id,
            seq=seq,
            failure=id_of(reason),
            context=run.context,
            rollback_by=run.rollback_by,
            reverse=change.reverse,
            order=Order.ROLL_BACK.value,
            reason=_said(reason, elsewhere=elsewhere),
        )
    if change.cancels is not None:
        yield statement("cancel_children", **_cancels(run, change.cancels, elsewhere=elsewhere))
    if change.expires is not None:  # there are few words in this failure
        yield statement("expire_children", **_cancels(run, change.expires, elsewhere=True))
    if change.leaves:
        yield statement(
            "leave_behind",
            run=run.id,
            messages=[child.message_id for child in change.leaves],
            services=[child.participant.service for child in change.leaves],
            sagas=[child.participant.saga for child in change.leaves],
        )
    if not has_ended(run):
        return
    if run.parent_home is not None:
        yield tell_home(run.id, run.message_id, run.state, run.result, run.failure, run.obstacle)
    elif run.parent_run is not None:
        yield statement("tell_parent", **_outcome(run))
    if run.lane is not None:
        yield statement("lock_lane", lane=run.lane)
        yield statement("leave_lane", run=run.id)


def tell_home(
    run_id: uuid.UUID,
    message_id: uuid.UUID,
    state: RunState,
    result: str | None = None,
    failure: Failure | None = None,
    obstacle: Failure | None = None,
) -> Statement:
    """Return the statement that reports a run to the home that waits for it."""
    failed = state is not RunState.COMMITTED
    return statement(
        "tell_home",
        run=run_id,
        message=message_id,
        state=state.value,
        result=None if failed else result,
        failure=failure.dumps() if failed and failure is not None else None,
        obstacle=obstacle.dumps() if failed and obstacle is not None else None,
    )


def pass_on(run: Run, answers: Mapping[str, Rows], hints: Hints) -> None:
    """Tell the processes that have something to do, once the transaction has been committed.

    Args:
        run: as it is now.
        answers: what the statements of `news` have answered, by their names.
        hints: how processes are told.
    """
    for name in _POSTS:
        for run_id, service, saga, version, delay in dict.fromkeys(tuple(row[:5]) for row in answers.get(name, ())):
            hints.mail(service, saga, version, run_id, delay)
    if has_ended(run) and run.parent_run is None:
        hints.ended(run.message_id)
    if any(answers.get(name) for name in REPORTS):
        hints.outbox()


def has_ended(run: Run) -> bool:
    """Tell whether others hear of the end of a run. A parked run has stopped, and may go on."""
    return run.state.ended and run.state is not RunState.PARKED


def _cancels(run: Run, reason: Failure, *, elsewhere: bool) -> dict[str, Any]:
    return {
        "run": run.id,
        "failure": id_of(reason),
        "order": Order.CANCEL.value,
        "reason": _said(reason, elsewhere=elsewhere),
        "context": None,
        "rollback_by": None,
    }


def _said(reason: Failure, *, elsewhere: bool) -> str | None:
    """Return a failure as other homes are told it; within a home it is told by its id, for it may be large."""
    return reason.dumps() if elsewhere else None


def _outcome(run: Run) -> dict[str, Any]:
    failed = run.state is not RunState.COMMITTED
    return {
        "message": run.message_id,
        "service": run.service,
        "saga": run.saga,
        "state": run.state.value,
        "result": None if failed else run.result,
        "failure": id_of(run.failure) if failed else None,
        "obstacle": id_of(run.obstacle) if failed else None,
        "run": run.id,
    }
