"""Sleeping: a step behind which its run waits until a point in time, without a process that waits."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from scoop_outbox._deadlines import LONGEST
from scoop_outbox._generics import T
from scoop_outbox.errors import DefinitionError, StepError
from scoop_outbox.message import Message
from scoop_outbox.policy import seconds
from scoop_outbox.scope import AsyncScope, BlockingScope
from scoop_outbox.step import STEP_ARGUMENTS, Callback, checked_callback, is_async

_LATEST = datetime(9999, 1, 1, tzinfo=UTC)

Duration: TypeAlias = (
    float
    | timedelta
    | Callable[[BlockingScope, Message[T]], float | timedelta]
    | Callable[[AsyncScope, Message[T]], Coroutine[Any, Any, float | timedelta]]
)
"""How long a run sleeps: seconds or a `timedelta`, or what returns one."""

PointInTime: TypeAlias = (
    datetime
    | Callable[[BlockingScope, Message[T]], datetime]
    | Callable[[AsyncScope, Message[T]], Coroutine[Any, Any, datetime]]
)
"""Until when a run sleeps: a `datetime` with a time zone, or what returns one."""


@dataclass(frozen=True, slots=True)
class Asleep:
    """Returned by a step that sleeps: the run goes on with the next step when the time has come.

    Attributes:
        until: when that is, or how long it takes from now on.
    """

    until: datetime | timedelta

    def wakes_at(self, now: datetime) -> datetime | None:
        """Return when the run goes on; None if the time has come already.

        Args:
            now: by the database's clock.
        """
        until = self.until
        at = min(until if isinstance(until, datetime) else now.astimezone(UTC) + until, _LATEST)
        return at if at > now else None


@dataclass(frozen=True, slots=True)
class FixedSleep:
    """The callback of a step that always sleeps alike. It is of neither colour: nobody has to call it.

    Attributes:
        asleep: what it returns.
    """

    asleep: Asleep

    def __call__(self, *_: object) -> Asleep:
        """Return it."""
        return self.asleep


def sleeping_for(of: str, duration: Duration[T]) -> Callback:
    """Return the callback of a step that sleeps for a time.

    Raises:
        DefinitionError: it is no time.
    """
    return _sleeping(of, duration, _length)


def sleeping_until(of: str, at: PointInTime[T]) -> Callback:
    """Return the callback of a step that sleeps until a point in time.

    Raises:
        DefinitionError: it is none, or has no time zone.
    """
    return _sleeping(of, at, _point)


def _sleeping(of: str, given: Any, read: Callable[[object], datetime | timedelta | str]) -> Callback:
    if not callable(given):
        until = read(given)
        if isinstance(until, str):
            raise DefinitionError(f"{of}: {until}")
        return FixedSleep(Asleep(until))
    checked_callback(given, of, STEP_ARGUMENTS)

    def asleep(found: object) -> Asleep:
        until = read(found)
        if isinstance(until, str):
            raise StepError(f"{of}: {until}")
        return Asleep(until)

    if is_async(given):

        async def sleep_async(scope: AsyncScope, message: Message[Any]) -> Asleep:
            return asleep(await given(scope, message))

        return sleep_async
    return lambda scope, message: asleep(given(scope, message))


def _length(duration: object) -> timedelta | str:
    """Return a time to sleep for, or what is wrong with it."""
    if isinstance(duration, bool) or not isinstance(duration, int | float | timedelta):
        return f"{duration!r} is no time to sleep for: give seconds, or a timedelta"
    try:
        length = seconds(duration)
    except OverflowError:  # of an integer that is no number of seconds any more
        length = math.copysign(LONGEST, duration)  # type: ignore[arg-type]
    if length != length:  # noqa: PLR0124 - no number
        return f"{duration!r} is no time to sleep for: give seconds, or a timedelta"
    return timedelta(seconds=max(min(length, LONGEST), 0.0))


def _point(at: object) -> datetime | str:
    """Return a point in time, or what is wrong with it."""
    if not isinstance(at, datetime):
        return f"{at!r} is no point in time to sleep until: give a datetime with a time zone"
    if at.tzinfo is None or at.utcoffset() is None:
        return f"{at.isoformat()} has no time zone: write datetime(..., tzinfo=UTC), or your own zone"
    return at
