"""The plan of healing: a run that has stopped because of children goes on when they have been rolled back after all.

What it raises in the end is what it would have raised had nothing got stuck.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from scoop_outbox.core.decide import child_failure
from scoop_outbox.core.plans.failures import Known, Writing, id_of
from scoop_outbox.core.run import Child, Facts, Run
from scoop_outbox.core.statement import COMMIT, Plan, ask, statement
from scoop_outbox.failure import ChildRollbackFailed, Failure, ParentSaidSo


def heal(run: Run) -> Plan[bool | None]:
    """Open a run again, under its lock, if nothing holds its rollback up any more.

    Args:
        run: one whose rollback has failed.

    Returns:
        Whether it goes on; then the transaction has been committed. None: it would, but at this moment its parent
        decides about it.
    """
    (healed,) = yield from ask(statement("is_healed", run=run.id))
    if not healed[0][0]:
        return False
    (parent,) = yield from ask(statement("lock_parent", run=run.id))
    if not all(row[0] for row in parent):
        return None
    told = [statement("report_reopened", runs=[run.id])] if run.parent_home is not None else []
    yield from ask(statement("reopen", run=run.id, undo_seq=None), *told, COMMIT)
    return True


def failure_anew(run: Run, children: Sequence[Child], now: datetime, source: str) -> Failure | None:
    """Return what a run that rolls back would have failed with had its children been rolled back at once.

    Args:
        run: the run.
        children: those of the step that it was suspended in when it began to roll back; all have ended.
        now: the database's clock.
        source: names this worker in a failure that is made here.

    Returns:
        None if that is what it has failed with. It is another failure when it began to roll back because some of them
        could not be rolled back, all of them have been since, and its handler had put no failure of its own in the
        place of that.
    """
    if run.failure is None or run.step is None or not _is_its_own(run.failure, run.saga, run.step):
        return None
    failed = Facts(now, children=children).failed_children
    # What it has told to roll back, it has not failed for.
    own = [child for child in failed if child.failure is None or child.failure.type != ParentSaidSo.__name__]
    if not own or any(child.stuck for child in failed):
        return None
    anew = child_failure(run.step, own, source)
    return anew if run.launched_at is None else anew.with_launched_at(run.launched_at)


def _is_its_own(failure: Failure, saga: str, step: str) -> bool:
    """Tell whether a run has failed with this because of children that could not be rolled back.

    Such a failure of a child, which a handler may have raised in the place of it, is another one.
    """
    if failure.type != ChildRollbackFailed.__name__ or not failure.source.startswith(f"{saga}["):
        return False
    return failure.message == Failure.child_rollback_failed(step, (), source=failure.source).message


def replace_failure(run: Run, anew: Failure, known: Known) -> Plan[None]:
    """Have a run roll back for another failure, under its lock; the transaction is committed."""
    writing = Writing(known)
    failure = writing.name(anew)
    yield from ask(*writing.statements(), statement("replace_failure", run=run.id, failure=id_of(failure)), COMMIT)
    writing.written()
