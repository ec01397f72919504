"""Answers: what becomes of something that a person asks of a run. Typed, and never silence (behaviour Q8)."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from enum import StrEnum


class Answer(StrEnum):
    """What has become of a request.

    Attributes:
        ACCEPTED: it is carried out.
        ALREADY_REQUESTED: somebody has asked for it before, or for what it depends on. The first reason counts.
        ALREADY_ROLLED_BACK: everything that it is about has been rolled back.
        NOTHING_TO_DO: the run is in no state in which it could be.
        REFUSED_ACTIVE: runs that it concerns have not ended; nothing was done, and it can be asked for again.
        REFUSED_ROLLBACK_FAILED: a run could not be rolled back before: that has to be dealt with first.
        NOT_ROLLING_BACK: only a run that rolls back has something to skip. Cancel this one, or retry it.
        ABANDONED: the run was abandoned, which is final.
        EXPIRED: its hierarchy has been pruned, or its payload erased: it can be undone no more.
        BUSY: somebody decides about the run, or its parent, at this moment. Ask again.
        UNKNOWN: there is no such run, here and now.
        ALREADY_COMPLETED: somebody has completed it before: it cannot fail any more.
        ALREADY_FAILED: somebody has said before that it failed: it cannot be completed any more.
        GAVE_UP: it was cancelled, or was late, before it was completed: nobody waits for it.
        NOT_YET: its message has not been taken in, and inside a session nothing is kept for it. Ask again.
        NOT_EXTERNAL: a saga of that name handles the message, which ends when its steps have.
        ASK_ELSEWHERE: another home knows: the message was launched there, or is handled there. Ask there, or by the id
            of a run.
        UNANSWERED: other homes were asked whether the runs above have ended, and have not answered yet. Nothing was
            done. Ask again.
        AMBIGUOUS: several services handle the message under that name. Say which is meant.
    """

    ACCEPTED = "accepted"
    ALREADY_REQUESTED = "already requested"
    ALREADY_ROLLED_BACK = "already rolled back"
    NOTHING_TO_DO = "nothing to do"
    REFUSED_ACTIVE = "refused: active"
    REFUSED_ROLLBACK_FAILED = "refused: rollback failed"
    NOT_ROLLING_BACK = "not rolling back"
    ABANDONED = "abandoned"
    EXPIRED = "expired"
    BUSY = "busy"
    UNKNOWN = "unknown"
    ALREADY_COMPLETED = "already completed"
    ALREADY_FAILED = "already failed"
    GAVE_UP = "gave up"
    NOT_YET = "not yet"
    NOT_EXTERNAL = "not external"
    AMBIGUOUS = "ambiguous"
    ASK_ELSEWHERE = "ask elsewhere"
    UNANSWERED = "unanswered"

    @property
    def fulfils(self) -> bool:
        """Whether what was asked for is carried out, or has been."""
        return self in (Answer.ACCEPTED, Answer.ALREADY_REQUESTED, Answer.ALREADY_ROLLED_BACK)


@dataclass(frozen=True, slots=True)
class ActiveRun:
    """A run that has not ended: it is executed, waits, rolls back, or is parked.

    Attributes:
        state: `running`, `rolling_back` or `parked`.
    """

    id: uuid.UUID
    service: str
    saga: str
    state: str


@dataclass(frozen=True, slots=True, eq=False)
class RollbackAnswer:
    """What has become of a request to roll back. It equals its `answer`: whoever compares the two means that.

    Attributes:
        answer: as for any request.
        active: with `REFUSED_ACTIVE` the runs that have not ended, at most `MOST_ACTIVE` of them.
        home: with `ASK_ELSEWHERE` the name of the home to ask, with `UNANSWERED` of the one that was asked.
    """

    answer: Answer
    active: tuple[ActiveRun, ...] = ()
    home: str | None = None

    @property
    def fulfils(self) -> bool:
        """Whether what was asked for is carried out, or has been."""
        return self.answer.fulfils

    def __eq__(self, other: object) -> bool:
        """Compare it with another one, or with what any request is answered."""
        if isinstance(other, RollbackAnswer):
            return (self.answer, self.active, self.home) == (other.answer, other.active, other.home)
        return self.answer is other if isinstance(other, Answer) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.answer)


MOST_ACTIVE = 100
"""How many active runs an answer names."""
