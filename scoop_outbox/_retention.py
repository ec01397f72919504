"""How long things are kept: values, as sagas and processes declare them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from scoop_outbox._deadlines import positive
from scoop_outbox.errors import DefinitionError

LONGEST = timedelta(days=100 * 365)
"""As good as for ever; much more would be further back than there are dates."""
REMEMBERED = timedelta(days=7)
"""For how long it is known at least, and unless more is asked for, that a hierarchy has been pruned."""

Period = float | timedelta | None


@dataclass(frozen=True, slots=True)
class SagaRetention:
    """For how long a saga wants hierarchies to be kept whose first message it handles; None says nothing.

    Attributes:
        hierarchies: the hierarchies.
        payload: what they hold.
    """

    hierarchies: timedelta | None = None
    payload: timedelta | None = None

    @classmethod
    def of(cls, retention: Period, retain_payload: Period) -> SagaRetention:
        """Return what a saga declares.

        Raises:
            DefinitionError: a period is none, or not above 0.
        """
        return cls(_period("retention", retention), _period("retain_payload", retain_payload))


@dataclass(frozen=True, slots=True)
class Retention:
    """For how long hierarchies are kept, after the last of their runs has ended.

    Attributes:
        hierarchies: those of sagas that say nothing; None is for ever.
        payload: what they hold, likewise; None is as long as they are kept.
        at_least: also those of sagas that want less; None is as they say.
        remembered: how long it is known what has been pruned, so that its message starts nothing when it comes again.
    """

    hierarchies: timedelta | None = None
    payload: timedelta | None = None
    at_least: timedelta | None = None
    remembered: timedelta = REMEMBERED

    @classmethod
    def of(cls, retention: Period, retain_payload: Period, remember: float | timedelta) -> Retention:
        """Return what a process is told.

        Raises:
            DefinitionError: a period is none, or not above 0, or `remember` is too short.
        """
        remembered = _period("remember", remember)
        hierarchies, payload = _period("retention", retention), _period("retain_payload", retain_payload)
        return cls(hierarchies, payload, None, remembered or REMEMBERED).checked()

    def checked(self) -> Retention:
        """Return the same with periods that can be calculated with.

        Raises:
            DefinitionError: `remembered` is too short, or a period is negative.
        """
        if self.remembered < REMEMBERED:
            raise DefinitionError(
                f"remember={self.remembered}: what has been pruned is remembered for {REMEMBERED.days} days at least"
            )
        given = (self.hierarchies, self.payload, self.at_least)
        if any(one is not None and one < timedelta(0) for one in given):
            raise DefinitionError("a period for which something is kept is not negative")
        hierarchies, payload, at_least = (None if one is None else min(one, LONGEST) for one in given)
        return Retention(hierarchies, payload, at_least, min(self.remembered, LONGEST))


FOR_EVER = Retention()


def _period(name: str, duration: Period) -> timedelta | None:
    seconds = positive(name, duration)
    return None if seconds is None else timedelta(seconds=seconds)
