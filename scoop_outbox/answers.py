"""Answers: what becomes of something that a person asks of a run. Typed, and never silence (behaviour Q8)."""

from __future__ import annotations

from enum import StrEnum


class Answer(StrEnum):
    """What has become of a request.

    Attributes:
        ACCEPTED: it is carried out.
        ALREADY_REQUESTED: somebody has asked for it before. The first reason counts.
        ALREADY_ROLLED_BACK: everything that it is about has been rolled back.
        NOTHING_TO_DO: the run is in no state in which it could be.
        UNKNOWN: there is no such run, here and now.
    """

    ACCEPTED = "accepted"
    ALREADY_REQUESTED = "already requested"
    ALREADY_ROLLED_BACK = "already rolled back"
    NOTHING_TO_DO = "nothing to do"
    UNKNOWN = "unknown"

    @property
    def fulfils(self) -> bool:
        """Whether what was asked for is carried out, or has been."""
        return self in (Answer.ACCEPTED, Answer.ALREADY_REQUESTED, Answer.ALREADY_ROLLED_BACK)
