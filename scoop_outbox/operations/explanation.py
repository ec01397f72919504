"""Explanations: what runs and messages wait for, as data."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from scoop_outbox.core.run import RunState
from scoop_outbox.store.blockers import Blocker


class Cause(StrEnum):
    """Why something does not go on.

    Attributes:
        OUTBOX: the message has not been published.
        INTAKE: its service has not taken it in.
        DEAD_LETTER: it was given up.
        NO_WORKER: no living worker can execute the run, or take the message in.
        EXECUTING: a worker executes the run at this moment.
        ROW_LOCK: another transaction holds the lock of the run's row.
        LANE: another run of its key comes first.
        SLEEP: it sleeps until a point in time.
        RETRY: a failed attempt is made again later.
        INTERRUPTED: it was interrupted, and is executed again later.
        HOME: it lives in another home, which is waited for.
        HOME_SILENT: that home has not been heard of for a while.
        HOME_UNKNOWN: no home of that id is known here.
        OUTSIDE: somebody has to complete the work of an external participant, or to say that it failed.
        DUE: it waits for a slot, or for its time.
        NO_MAIL: nothing makes a worker look at it.
        CANCELLED: somebody has asked it to give up, and it has not done so yet.
        DEADLINE: until when it has to have committed, or its rollback to have ended.
        PARKED: it cannot go on by itself.
        ROLLBACK_FAILED: it could not be rolled back.
        ENDED: it has committed or rolled back.
    """

    OUTBOX = "outbox"
    INTAKE = "intake"
    DEAD_LETTER = "dead_letter"
    NO_WORKER = "no_worker"
    EXECUTING = "executing"
    ROW_LOCK = "row_lock"
    LANE = "lane"
    SLEEP = "sleep"
    RETRY = "retry"
    INTERRUPTED = "interrupted"
    HOME = "home"
    HOME_SILENT = "home_silent"
    HOME_UNKNOWN = "home_unknown"
    OUTSIDE = "outside"
    DUE = "due"
    NO_MAIL = "no_mail"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    PARKED = "parked"
    ROLLBACK_FAILED = "rollback_failed"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason why something does not go on.

    Attributes:
        text: all of it in words.
        at: since when it is so; of a sleep, a retry, an interruption or what is due, the time when it is due.
        run_id: the run that comes first in the lane.
        dead_letter: the number of a dead letter.
        process: who holds the lock of the run's row.
    """

    cause: Cause
    text: str
    at: datetime | None = None
    run_id: uuid.UUID | None = None
    dead_letter: int | None = None
    process: Blocker | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A run, a message that has not been taken in, or a child in another home, and what it waits for.

    Attributes:
        run_id: the run; None for a message, and for a child in another home before that has reported its run.
        parent: the run that waits for it.
        service: whose it is; None when nobody knows that.
        state: of a run here.
        text: how it stands, in words.
        next: what the run does when nothing keeps it from it, as far as can be told without its code.
        children: how many children it waits for: they are explained, too.
        reasons: why it does not go on; none when it waits for children alone.
        home: of a child in another home, the name of that; its id if no home of that id is known here.
    """

    run_id: uuid.UUID | None
    message_id: uuid.UUID
    parent: uuid.UUID | None
    service: str | None
    saga: str | None
    state: RunState | None
    text: str
    next: str | None
    children: int
    reasons: tuple[Reason, ...]
    home: str | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a run, or the hierarchy below a message, waits for.

    Attributes:
        message_id: the message at the top, or the one that the run at the top handles.
        run_id: the run at the top; None when it is the message.
        waiting: first what waits for nothing else that is explained here, the longest idle first. When all has ended:
            how it ended.
        left_out: how many more there are.
    """

    message_id: uuid.UUID
    run_id: uuid.UUID | None
    waiting: tuple[Waiting, ...]
    left_out: int
