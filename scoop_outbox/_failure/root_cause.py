"""Root causes: what a step has raised, below all that is said of it by the runs above."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, Self, TypeVar

from scoop_outbox._failure.bounds import REPEATED
from scoop_outbox._failure.traceback import Frame

_OF_THE_ENGINE = frozenset({"ChildRolledBack", "ChildRollbackFailed", "ParentSaidSo", "GaveUp"})
"""Types of failures that only hand on what happened elsewhere."""
_LEFT_OUT = "CausesLeftOut"
"""Type of the failure that stands for others which were cut out."""
_SHOWN = 300
"""How many characters of a message stand in a line."""


class _Failure(Protocol):
    @property
    def type(self) -> str: ...
    @property
    def message(self) -> str | None: ...
    @property
    def source(self) -> str: ...
    @property
    def stack_trace(self) -> Sequence[Frame]: ...
    @property
    def causes(self) -> Sequence[Self]: ...


F = TypeVar("F", bound=_Failure)


class Origin(NamedTuple):
    """Where a failure happened.

    Attributes:
        service: whose saga it was.
        saga: its name.
        step: the step that failed, if it was one.
    """

    service: str
    saga: str
    step: str | None

    def __str__(self) -> str:
        """Return all of it."""
        step = "" if self.step is None else f", step {self.step!r}"
        return f"service {self.service!r}, saga {self.saga!r}{step}"


def root_causes(failure: F) -> list[F]:
    """Return what a failure comes from: what steps have raised, each with all that it was raised from.

    What a handler raised in place of the failure of a child comes from that failure. The first one is the cause of what
    failed first.
    """
    return [trail[-1] for trail in _trails(failure)]


def trail(failure: F) -> list[F]:
    """Return a failure, what it was for, and so on to the first of its root causes."""
    return _trails(failure)[0]


def in_a_line(failure: _Failure, origin: Origin | None = None) -> str:
    """Return type, message and place of a failure, without its causes, in a line."""
    text, *more = (failure.message or "").strip().splitlines() or ["<no message>"]
    if more or len(text) > _SHOWN:
        text = f"{text[:_SHOWN]}..."
    # The source is a saga and, in brackets, a worker.
    place = str(origin) if origin is not None else f"saga {(failure.source.rpartition('[')[0] or failure.source)!r}"
    return f"{failure.type}: {text} ({place})"


def root_cause_text(failure: _Failure, origin: Origin | None = None) -> str:
    """Return the text of a failure behind its root cause; `origin` is where that happened, if it is known."""
    roots = root_causes(failure)
    if roots[0] is not failure:
        more = f" and {len(roots) - 1} more" if len(roots) > 1 else ""
        return f"root cause {in_a_line(roots[0], origin)}{more}; {failure}"
    if origin is None:
        return str(failure)
    head, line_break, rest = str(failure).partition("\n")
    return f"{head} ({origin}){line_break}{rest}"


def _trails(failure: F) -> list[list[F]]:
    """Return the ways from a failure to each of its root causes.

    Where levels were left out of a deep failure, the way goes on with what was kept below them: the root causes.
    """
    handed_on: dict[int, bool] = {}

    def hands_on(one: F) -> bool:
        """Tell whether a failure is one of the engine, or has one below."""
        if id(one) not in handed_on:
            below = [hands_on(cause) for cause in one.causes]
            handed_on[id(one)] = one.type in _OF_THE_ENGINE or any(below)
        return handed_on[id(one)]

    found: list[list[F]] = []
    seen: set[int] = set()

    def follow(way: list[F]) -> None:
        one = way[-1]
        if id(one) in seen:
            return
        seen.add(id(one))
        of_the_engine = one.type in _OF_THE_ENGINE or one.type == _LEFT_OUT
        below = [cause for cause in one.causes if (of_the_engine or hands_on(cause)) and not _stands_for_others(cause)]
        if not below and not (of_the_engine and one.causes):
            found.append(way)
        for cause in below:
            follow([*way, cause])

    follow([failure])
    return found or [[failure]]


def _stands_for_others(failure: _Failure) -> bool:
    """Tell whether a failure was put in place of causes that are elsewhere, or nowhere any more."""
    return (failure.type == _LEFT_OUT and not failure.causes) or tuple(failure.stack_trace) == (REPEATED,)
