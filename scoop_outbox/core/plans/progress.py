"""Plans of progress: what a hierarchy that has not ended waits for. Nothing is written."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from scoop_outbox.core.run import RunState
from scoop_outbox.core.statement import Plan, ask, statement


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that has not ended.

    Attributes:
        parent: the run that waits for it.
        children: how many children it waits for, counted up to 1000.
        idle: seconds since its last execution has ended, or since it was taken in.
        ahead: seconds until it is tried again; negative when that is past, None when it is not to be.
        reason: why it is parked.
        interruptions: how often in a row it has been interrupted.
        interruption: why it was interrupted last.
        queued: whether it waits for its turn in a lane.
        served: whether a worker of its service is alive.
    """

    id: uuid.UUID
    message_id: uuid.UUID
    parent: uuid.UUID | None
    service: str
    saga: str
    state: RunState
    step: str | None
    next_step: str | None
    children: int
    idle: float
    ahead: float | None
    reason: str | None
    interruptions: int
    interruption: str | None
    queued: bool
    served: bool


@dataclass(frozen=True, slots=True)
class Missing:
    """A message that somebody waits for and that has not been taken in.

    Attributes:
        parent: the run that has launched it and waits; None when it is at the top.
        service: who is to take it in; None when nobody knows that.
        saga: which saga is to handle it; None likewise.
        dead_letter: the number of the dead letter that it has become for that service.
        relayed: whether a relay is alive.
    """

    message_id: uuid.UUID
    parent: uuid.UUID | None
    service: str | None
    saga: str | None
    dead_letter: int | None
    relayed: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """What is open.

    Attributes:
        runs: those that have not ended; first those that wait for no other one, the longest idle first.
        missing: messages that have not been taken in.
        left_out: how many more of both there are.
    """

    runs: tuple[OpenRun, ...]
    missing: tuple[Missing, ...]
    left_out: int


def read_open(message_id: uuid.UUID | None, run_id: uuid.UUID | None, most: int) -> Plan[Progress]:
    """Return what is open below a message or a run.

    Args:
        message_id: the message at the top.
        run_id: the run at the top, in place of a message.
        most: of runs and of messages.
    """
    runs, missing = yield from ask(
        statement("read_open_runs", message=message_id, run=run_id, most=most),
        statement("read_not_taken_in", message=message_id, run=run_id, most=most),
    )
    return Progress(
        tuple(_open_run(*row[:-1]) for row in runs),
        tuple(Missing(*row[:-1]) for row in missing),
        sum(rows[0][-1] - len(rows) for rows in (runs, missing) if rows),
    )


def _open_run(
    run_id: uuid.UUID,
    message_id: uuid.UUID,
    parent: uuid.UUID | None,
    service: str,
    saga: str,
    state: str,
    *rest: Any,
) -> OpenRun:
    return OpenRun(run_id, message_id, parent, service, saga, RunState(state), *rest)
