"""The plan of healing: a run that has stopped because of children goes on when they have been rolled back after all."""

from __future__ import annotations

import uuid

from scoop_outbox.core.statement import COMMIT, Plan, ask, statement


def heal(run_id: uuid.UUID) -> Plan[bool | None]:
    """Open a run again, under its lock, if nothing holds its rollback up any more.

    Returns:
        Whether it goes on; then the transaction has been committed. None: it would, but at this moment its parent
        decides about it.
    """
    (healed,) = yield from ask(statement("is_healed", run=run_id))
    if not healed[0][0]:
        return False
    (parent,) = yield from ask(statement("lock_parent", run=run_id))
    if not all(row[0] for row in parent):
        return None
    yield from ask(statement("reopen", run=run_id, undo_seq=None), COMMIT)
    return True
