"""Deadlines: until when something may take, who has said so, and how what several have said combines. Values only.

The idea of deadlines that go down with the work, and are only tightened on the way, is that of gRPC's and Trio's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from scoop_outbox.errors import DefinitionError
from scoop_outbox.policy import seconds

TRACE_LIMIT = 20
"""How many of the deadlines that others have set are kept next to the one that counts."""
LONGEST = 100 * 365 * 86_400.0
"""Seconds that a timeout is cut to: a hundred years."""
_LATEST = datetime(9999, 1, 1, tzinfo=UTC)
_EARLIEST = datetime(1900, 1, 1, tzinfo=UTC)
_HAPPY_PATH, _ROLLBACK = "happyPath", "rollback"


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in time until which a run has to commit, or it gives up.

    Attributes:
        at: by the database's clock.
        source: who has set it.
        trace: what others have set, and is later.
    """

    at: datetime
    source: str
    trace: tuple[Deadline, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return its stored form."""
        trace = [one.to_json() for one in self.trace]
        return {"deadline": self.at.astimezone(UTC).isoformat(), "source": self.source, "trace": trace}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the deadline of a stored form.

        Raises:
            ValueError, TypeError, KeyError, AttributeError, OverflowError: it is none.
        """
        # What is in a trace has none: whoever combines two puts theirs side by side.
        trace = tuple(cls(_time(one["deadline"]), str(one["source"])) for one in data.get("trace", ())[:TRACE_LIMIT])
        return cls(_time(data["deadline"]), str(data["source"]), trace)

    @property
    def missed(self) -> str:
        """What is told of a run that has missed it."""
        trace = json.dumps([{_HAPPY_PATH: one.to_json()} for one in self.trace])
        return f"Missed happy path deadline of {self.source} at {self.to_json()['deadline']}. Deadline trace: {trace}"


def earlier(one: Deadline | None, other: Deadline | None) -> Deadline | None:
    """Return the earlier of two deadlines, with the other one in its trace; the first if they are equal."""
    if one is None or other is None:
        return one or other
    first, second = (one, other) if one.at <= other.at else (other, one)
    trace = dict.fromkeys((*first.trace, replace(second, trace=()), *second.trace))
    return replace(first, trace=tuple(trace)[:TRACE_LIMIT])


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a rollback may take, from when the outermost run begins to roll back.

    Attributes:
        timeout: in seconds.
        source: who has set it.
    """

    timeout: float
    source: str


@dataclass(frozen=True, slots=True)
class Deadlines:
    """What goes down a hierarchy with its messages: header `scoop-deadlines`.

    Attributes:
        happy_path: until when the runs have to commit.
        rollback: how long their rollback may take.
    """

    happy_path: Deadline | None = None
    rollback: Budget | None = None

    def within(self, above: Deadlines) -> Deadlines:
        """Return these, tightened by those of the run above."""
        rollback = [one for one in (above.rollback, self.rollback) if one is not None]
        return Deadlines(
            earlier(above.happy_path, self.happy_path), min(rollback, key=lambda one: one.timeout, default=None)
        )

    def dumps(self) -> str | None:
        """Return the stored form as JSON text; None if there are none."""
        data: dict[str, Any] = {}
        if self.happy_path is not None:
            data[_HAPPY_PATH] = self.happy_path.to_json()
        if self.rollback is not None:
            data[_ROLLBACK] = {"timeout": self.rollback.timeout, "source": self.rollback.source}
        return json.dumps(data, allow_nan=False) if data else None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the deadlines of a stored form.

        Raises:
            ValueError, TypeError, KeyError, AttributeError, OverflowError: they are none.
        """
        happy_path, rollback = data.get(_HAPPY_PATH), data.get(_ROLLBACK)
        budget = None if rollback is None else Budget(float(rollback["timeout"]), str(rollback["source"]))
        if budget is not None and not 0 < budget.timeout <= LONGEST:
            raise ValueError("a rollback takes some time, and not for ever")
        return cls(None if happy_path is None else Deadline.from_json(happy_path), budget)


NONE = Deadlines()


@dataclass(frozen=True, slots=True)
class Timeouts:
    """What a launch, a saga or a step says about time.

    Attributes:
        timeout: seconds from the launch until the happy path has to end.
        deadline: when it has to end.
        rollback_timeout: how many seconds a rollback may take.
    """

    timeout: float | None = None
    deadline: datetime | None = None
    rollback_timeout: float | None = None

    @classmethod
    def of(
        cls, timeout: float | timedelta | None, deadline: datetime | None, rollback_timeout: float | timedelta | None
    ) -> Timeouts | None:
        """Return what a caller says, checked; None if that is nothing.

        Raises:
            DefinitionError: a duration is not positive, or a point in time has no time zone.
        """
        if timeout is None and deadline is None and rollback_timeout is None:
            return None
        return cls(positive("timeout", timeout), _checked(deadline), positive("rollback_timeout", rollback_timeout))

    @property
    def asks_the_clock(self) -> bool:
        """Whether it takes the database's clock to say until when."""
        return self.timeout is not None

    def resolve(self, now: datetime, source: str) -> Deadlines:
        """Return the deadlines that these are at `now`, set by `source`."""
        happy_path = None if self.deadline is None else Deadline(self.deadline, source)
        if self.timeout is not None:
            happy_path = earlier(Deadline(_after(now, self.timeout), source), happy_path)
        return Deadlines(happy_path, self.budget(source))

    def budget(self, source: str) -> Budget | None:
        """Return how long a rollback may take, said by `source`."""
        return None if self.rollback_timeout is None else Budget(self.rollback_timeout, source)


def positive(name: str, duration: float | timedelta | None) -> float | None:
    """Return a duration in seconds, cut to `LONGEST`; None if there is none.

    Raises:
        DefinitionError: it is no duration, or not above 0.
    """
    if duration is None:
        return None
    try:
        value = seconds(duration)
    except (TypeError, ValueError):
        raise DefinitionError(f"{name}={duration!r}: pass seconds, or a timedelta") from None
    if not value > 0:
        raise DefinitionError(f"{name}={duration!r}: pass more than 0 seconds")
    return min(value, LONGEST)


def _checked(deadline: object) -> datetime | None:
    """Return a deadline in UTC, which every time zone can be told from."""
    if deadline is None:
        return None
    if not isinstance(deadline, datetime) or deadline.tzinfo is None:
        raise DefinitionError(f"deadline={deadline!r}: pass a datetime with a time zone, as datetime.now(UTC) has")
    try:
        return min(max(deadline.astimezone(UTC), _EARLIEST), _LATEST)
    except OverflowError:
        return _EARLIEST if deadline.year == 1 else _LATEST


def _time(text: str) -> datetime:
    """Return a point in time that was stored or sent."""
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("a deadline has a time zone")
    at = at.astimezone(UTC)
    if not _EARLIEST <= at <= _LATEST:
        raise ValueError("a deadline is a time that calendars agree on")
    return at


def _after(now: datetime, timeout: float) -> datetime:
    return min(now.astimezone(UTC) + timedelta(seconds=timeout), _LATEST)
