"""The plan of healing: a run that has stopped because of children goes on when they have been rolled back after all."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from scoop_outbox.core.decide import child_failure
from scoop_outbox.core.plans.failures import Known, Writing, id_of
from scoop_outbox.core.run import Child, Facts, Run
from scoop_outbox.core.statement import COMMIT, Plan, ask, statement
from scoop_outbox.failure import ChildRollbackFailed, Failure


def heal(run: Run, children: Sequence[Child], now: datetime, source: str, known: Known) -> Plan[bool | None]:
    """Open a run again, under its lock, if nothing holds its rollback up any more.

    Args:
        run: one whose rollback has failed.
        children: those of the step that it was suspended in when it began to roll back.
        now: the database's clock.
        source: names this worker in a failure that is made here.
        known: the failures that this process knows.

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
    writing = Writing(known)
    failure = writing.name_any(_failure_anew(run, Facts(now, children=children).failed_children, source))
    reopen = statement("reopen", run=run.id, undo_seq=None, failure=id_of(failure))
    yield from ask(*writing.statements(), reopen, COMMIT)
    writing.written()
    return True


def _failure_anew(run: Run, failed: Sequence[Child], source: str) -> Failure | None:
    """Return what a run would have failed with had its children been rolled back at once; None if that is no other.

    It is, when it began to roll back because they could not be, and nobody put another failure in the place of that.
    """
    failure = run.failure
    if failure is None or failure.type != ChildRollbackFailed.__name__ or failure != run.obstacle:
        return None
    if run.step is None or not failed or any(child.stuck for child in failed):
        return None
    anew = child_failure(run.step, failed, source)
    return anew if run.launched_at is None else anew.with_launched_at(run.launched_at)
