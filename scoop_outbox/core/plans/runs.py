"""Plans of runs as operators list them. Nothing is written."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from scoop_outbox.core.run import RunState
from scoop_outbox.core.statement import Plan, ask, statement
from scoop_outbox.wire.headers import key_text

LIVE = frozenset({RunState.RUNNING, RunState.ROLLING_BACK})
STUCK = frozenset({RunState.PARKED, RunState.ROLLBACK_FAILED})


@dataclass(frozen=True, slots=True)
class RunSelection:
    """Which runs are meant: those that fit all that is given.

    Attributes:
        states: their states; empty is every state if `key` or `text` is given, else what has not ended, is parked, or
            could not be rolled back. Abandoned runs are meant only where `parked` ones are not.
        service: whose.
        saga: of which saga.
        older_than: those whose message was taken in so long ago, or longer.
        text: what the type or the message of their failure has in it, or why they are parked; in any case of letters.
        key: the key of the message. A binary one is given as it is shown: a backslash, an x, hexadecimal digits.
    """

    states: frozenset[RunState] = frozenset()
    service: str | None = None
    saga: str | None = None
    older_than: timedelta | None = None
    text: str | None = None
    key: str | None = None

    @property
    def chosen(self) -> frozenset[RunState]:
        """The states that are meant."""
        if self.states:
            return self.states
        return LIVE | STUCK if self.text is None and self.key is None else frozenset(RunState)


@dataclass(frozen=True, slots=True)
class ListedRun:
    """A run in a list.

    Attributes:
        step: the step that it waits in, that is due, or that is to be undone next; None before the first.
        key: the key of its message; a binary one as hexadecimal digits behind a backslash and an x.
        reason: why it is parked.
        failure_type: of what it failed with: when it could not be rolled back, why not.
        failure_message: the first 200 characters of its message.
        age: the time since its message was taken in, by the database's clock.
        waits_for: the names of other homes in which it waits for children; the id of one that is not known here.
    """

    id: uuid.UUID
    message_id: uuid.UUID
    service: str
    saga: str
    state: RunState
    step: str | None
    key: str | None
    reason: str | None
    failure_type: str | None
    failure_message: str | None
    created_at: datetime
    ended_at: datetime | None
    age: timedelta
    waits_for: tuple[str, ...]


def list_runs(selection: RunSelection, *, most: int) -> Plan[list[ListedRun]]:
    """Return runs, the newest first; the oldest first if they have to be of some age.

    Committed and rolled back ones are found by looking at all runs, and at all messages if there is a key.
    """
    states = selection.chosen
    params: dict[str, Any] = {
        "states": [state.value for state in states],
        "service": selection.service,
        "saga": selection.saga,
        "older": selection.older_than,
        "text": selection.text,
        "keys": [] if selection.key is None else [selection.key, key_text(selection.key)],
        "oldest": selection.older_than is not None,
        "most": most,
    }
    if states <= LIVE | STUCK:
        live, stuck = bool(states & LIVE), bool(states & STUCK)
        found = {"live": live, "stuck": stuck, "abandoned": RunState.PARKED not in states}
        (rows,) = yield from ask(statement("list_found_runs", **found, **params))
    else:
        (rows,) = yield from ask(statement("list_runs", **params))
    return [_listed(*row) for row in rows]


def _listed(run_id: uuid.UUID, message_id: uuid.UUID, service: str, saga: str, state: str, *rest: Any) -> ListedRun:
    *more, waits_for = rest
    told: list[Any] = [*more, tuple(waits_for)]
    return ListedRun(run_id, message_id, service, saga, RunState(state), *told)
