"""Cooperation: whether a home cooperates with others, as a process knows it.

A home that has been named stays so. Until then a process asks again now and then, for another one may name it.
"""

from __future__ import annotations

import time

_ASK_AGAIN = 10.0
"""Seconds after which it is asked again whether a home has been named."""


class Cooperation:
    """What a process knows of the cooperation of its home with others. Safe to be used from any thread.

    Attributes:
        active: whether the home cooperates: what is launched in it is asked who listens in other homes.
    """

    def __init__(self) -> None:
        """Know nothing yet."""
        self.active = False
        self._asked_at: float | None = None

    @property
    def is_due(self) -> bool:
        """Whether it is time to ask."""
        if self.active:
            return False
        return self._asked_at is None or time.monotonic() - self._asked_at > _ASK_AGAIN

    def learn(self, name: str | None) -> None:
        """Note the name that the home has, None if it has none."""
        self.active = self.active or name is not None
        self._asked_at = time.monotonic()
