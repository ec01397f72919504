"""Plans of progress: what a hierarchy that has not ended waits for. Nothing is written."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from scoop_outbox.core.run import ChildState, RunState
from scoop_outbox.core.statement import Plan, ask, statement


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that has not ended.

    Attributes:
        parent: the run that waits for it.
        children: how many children it waits for, counted up to 1000.
        idle: seconds since its last execution has ended, or since it was taken in.
        ahead: seconds until it is tried again, or wakes; negative when that is past, None when it is not to be.
        attempt: failed attempts of the callback that is due.
        reason: why it is parked.
        interruptions: how often in a row it has been interrupted.
        interruption: why it was interrupted last.
        queued: whether it waits for its turn in a lane.
        served: whether a worker of its service is alive.
        parent_home: the name of the home in which its parent is, if that is another one.
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
    attempt: int
    reason: str | None
    interruptions: int
    interruption: str | None
    queued: bool
    served: bool
    parent_home: str | None

    @property
    def sleeps(self) -> bool:
        """Whether it goes on at a point in time; what has failed is tried again instead."""
        return self.ahead is not None and self.ahead > 0 and self.attempt == 0


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
class OpenElsewhere:
    """A child in another home that is waited for.

    Attributes:
        parent: the run that waits for it; None when its message was launched from outside.
        state: what its home has reported last, or what it has been told to do since.
        home: the home's id.
        name: its name; None when no home of that id is known here.
        run_id: its run; None before its home has reported one.
        launched: seconds since its message was launched; None when that was from outside any run.
        reported: seconds since its home has last reported something new of it; None before it has.
        heard: seconds since anything was heard of its home, to a minute; None when the home is not known.
    """

    message_id: uuid.UUID
    parent: uuid.UUID | None
    service: str
    saga: str
    state: ChildState
    home: uuid.UUID
    name: str | None
    run_id: uuid.UUID | None
    launched: float | None
    reported: float | None
    heard: float | None


@dataclass(frozen=True, slots=True)
class Progress:
    """What is open.

    Attributes:
        runs: those that have not ended; first those that wait for no other one, the longest idle first.
        missing: messages that have not been taken in.
        elsewhere: children in other homes; first those of which nothing has been heard, then the longest silent.
        left_out: how many more there are of all these.
    """

    runs: tuple[OpenRun, ...]
    missing: tuple[Missing, ...]
    elsewhere: tuple[OpenElsewhere, ...]
    left_out: int


def read_open(message_id: uuid.UUID | None, run_id: uuid.UUID | None, most: int) -> Plan[Progress]:
    """Return what is open below a message or a run.

    Args:
        message_id: the message at the top.
        run_id: the run at the top, in place of a message.
        most: of runs, of messages, and of children in other homes.
    """
    below = {"message": message_id, "run": run_id, "most": most}
    runs, missing, elsewhere = yield from ask(
        statement("read_open_runs", **below),
        statement("read_not_taken_in", **below),
        statement("read_open_elsewhere", **below),
    )
    return Progress(
        tuple(_open_run(*row[:-1]) for row in runs),
        tuple(Missing(*row[:-1]) for row in missing),
        tuple(_open_elsewhere(*row[:-1]) for row in elsewhere),
        sum(rows[0][-1] - len(rows) for rows in (runs, missing, elsewhere) if rows),
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


def _open_elsewhere(
    message_id: uuid.UUID, parent: uuid.UUID | None, service: str, saga: str, state: str, *rest: Any
) -> OpenElsewhere:
    return OpenElsewhere(message_id, parent, service, saga, ChildState(state), *rest)
