"""A hierarchy as operators see it: its runs, and who has not begun."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime

from scoop_outbox.core.plans.failures import Known
from scoop_outbox.core.plans.inspect import read_executing, read_unstarted, read_whereabouts
from scoop_outbox.core.rows import Row
from scoop_outbox.core.run import ChildState
from scoop_outbox.core.statement import Plan
from scoop_outbox.errors import UnknownMessage
from scoop_outbox.operations.prefixes import find
from scoop_outbox.status import ChildElsewhere, RunStatus, Status, read_status

# Where `read_whereabouts` returns the number of a dead letter.
_DEAD_LETTER = 5


@dataclass(frozen=True, slots=True)
class Unstarted:
    """A saga that was to handle a message, and has no run for it.

    Attributes:
        state: `waiting`, or how it has ended without one: its saga was forgotten, or its parent has given up.
        parent: the run whose step launched the message; None when it came from outside any run.
        launched_by: the number of the parent's execution that launched it.
    """

    message_id: uuid.UUID
    service: str
    saga: str
    state: ChildState
    parent: uuid.UUID | None
    launched_by: int | None


@dataclass(frozen=True, slots=True)
class Executing:
    """A run that is being executed.

    Attributes:
        since: since when; None if our user may not see that.
    """

    run_id: uuid.UUID
    since: datetime | None


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Everything below one message or one run.

    Attributes:
        message_id: the message at the top, or the one that the run at the top handles.
        run_id: the run at the top; None when it is the message.
        topic: of that message.
        key: of that message; a binary one as hexadecimal digits behind a backslash and an x.
        taken_in_at: when it was taken in; None while it is on its way, or given up.
        dead_letters: the numbers of the dead letters that it has become.
        runs: every run, parents before their children.
        unstarted: who was to handle a message and has no run for it.
        executing: which runs were being executed when this was read.
        at: when this was read, by the database's clock.
        pruned_at: when it was pruned: then nothing else is known of it.
        elsewhere: children of these runs, and of the message, that live in other homes.
    """

    message_id: uuid.UUID
    run_id: uuid.UUID | None
    topic: str | None
    key: str | None
    taken_in_at: datetime | None
    dead_letters: tuple[int, ...]
    runs: tuple[RunStatus, ...]
    unstarted: tuple[Unstarted, ...]
    executing: tuple[Executing, ...]
    at: datetime
    pruned_at: datetime | None = None
    elsewhere: tuple[ChildElsewhere, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether nothing will happen any more by itself. What is parked counts as ended."""
        if any(one.open for one in self.elsewhere):
            return False
        if self.taken_in_at is None and not self.elsewhere:
            return bool(self.dead_letters) or self.pruned_at is not None
        waiting = any(one.state is ChildState.WAITING for one in self.unstarted)
        return not waiting and all(run.state.ended for run in self.runs)


def show(sought: uuid.UUID | str, known: Known) -> Plan[Hierarchy]:
    """Read a hierarchy.

    Args:
        sought: the id of the message or the run at its top, or how it begins.
        known: what is known of failures.

    Raises:
        DefinitionError, UnknownMessage, AmbiguousId: as `find`.
    """
    found = yield from find(sought)
    whereabouts = yield from read_whereabouts([found.message_id])
    try:
        status = yield from read_status(found.message_id, known)
    except UnknownMessage:
        status = Status(found.message_id, ())
    runs = tuple(run for run in status.runs if found.run_id is None or found.run_id in run.lineage)
    top, shown = found.message_id if found.run_id is None else None, {run.id for run in runs}
    unstarted, now = yield from read_unstarted([run.id for run in runs], top)
    executing = yield from read_executing([run.id for run in runs if not run.state.ended])
    topic, key, taken_in_at = next(
        ((topic, key, at if where == "taken in" else None) for _, where, topic, key, at, *_ in whereabouts),
        (None, None, None),
    )
    return Hierarchy(
        found.message_id,
        found.run_id,
        topic,
        key,
        taken_in_at,
        tuple(row[_DEAD_LETTER] for row in whereabouts if row[_DEAD_LETTER] is not None),
        runs,
        tuple(_unstarted(row) for row in unstarted),
        tuple(Executing(*row) for row in executing),
        now,
        next((at for _, where, _, _, at, *_ in whereabouts if where == "pruned"), None),
        tuple(one for one in status.elsewhere if top is not None or one.parent in shown),
    )


def _unstarted(row: Row) -> Unstarted:
    """Return who has not begun, from a row of `read_unstarted`."""
    message_id, service, saga, state, parent, launched_by = row
    return Unstarted(message_id, service, saga, ChildState(state), parent, launched_by)
