"""Answers: what becomes of something that a person asks of a run. Typed, and never silence (behaviour Q8)."""

from __future__ import annotations

from enum import StrEnum


class Answer(StrEnum):
    """What has become of a request.

    Attributes:
        ACCEPTED: it is carried out.
        NOTHING_TO_DO: the run is in no state in which it could be.
        UNKNOWN: there is no such run, here and now.
    """

    ACCEPTED = "accepted"
    NOTHING_TO_DO = "nothing to do"
    UNKNOWN = "unknown"
