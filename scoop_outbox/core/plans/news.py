"""News: what others have to know about a run, and how they come to know it.

What an execution makes of a run goes through `news` if it concerns somebody else: its parent hears that it has ended,
its children that they are to give up or to roll back, the next run of its lane that the lane is free. News is written
in the transaction of the change, so that neither is ever there without the other. After the commit `pass_on` tells the
processes that have something to do now: a hint, for the mailbox holds the news already.

Runs that an operator retires (`retire_runs`) end without being executed: that statement tells their parents itself.
That a run has started is written by the statement that takes its message in, with the run itself: `read_children` sees
it, and nobody has anything to do because of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scoop_outbox.core.plans.claim import Hints
from scoop_outbox.core.plans.failures import id_of
from scoop_outbox.core.run import Run, RunState
from scoop_outbox.core.statement import Rows, Statement, statement
from scoop_outbox.core.transition import Transition

_POSTS = ("ask_children", "cancel_children", "expire_children", "leave_behind", "tell_parent", "leave_lane")
"""Statements that answer which runs they have posted mail for."""


def news(change: Transition) -> Iterator[Statement]:
    """Return the statements that tell others what becomes of a run.

    Args:
        change: what becomes of it; its failures have been written down.
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
        )
    if change.cancels is not None:
        yield statement("cancel_children", run=run.id, failure=id_of(change.cancels))
    if change.expires is not None:
        yield statement("expire_children", run=run.id, failure=id_of(change.expires))
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
    if run.parent_run is not None:
        yield statement("tell_parent", **_outcome(run))
    if run.lane is not None:
        yield statement("lock_lane", lane=run.lane)
        yield statement("leave_lane", run=run.id)


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


def has_ended(run: Run) -> bool:
    """Tell whether others hear of the end of a run. A parked run has stopped, and may go on."""
    return run.state.ended and run.state is not RunState.PARKED


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
