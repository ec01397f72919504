"""Policies: plain values that say when to try again. They compute; they never wait."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from scoop_outbox.errors import DefinitionError


def seconds(duration: float | timedelta) -> float:
    """Return a duration given as seconds or as a `timedelta` in seconds."""
    return duration.total_seconds() if isinstance(duration, timedelta) else float(duration)


def exponential(first: float, failures: int, longest: float) -> float:
    """Return how long to wait after so many failures in a row: `first` seconds after one, twice as long each time."""
    return min(first * 2.0 ** min(failures - 1, 60), longest)


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a callback is tried, and how long to wait in between.

    A waiting retry holds no connection, no thread and no slot.

    Args:
        attempts: how often it is called in all; 1 means that nothing is tried again.
        backoff: wait before the second attempt, in seconds or as a `timedelta`; it doubles each time.
        max_backoff: the longest wait.
        jitter: the fraction of each wait that is drawn at random, so that many failures do not come back at once.
        on: only these exceptions are tried again; any other fails at once. `Exception` covers `SystemExit` and a
            `CancelledError` that nobody asked for, too: out of a callback they are failures like any other.
    """

    attempts: int = 3
    backoff: float | timedelta = 1.0
    max_backoff: float | timedelta = 60.0
    jitter: float = 0.5
    on: tuple[type[BaseException], ...] = (Exception,)

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if self.attempts < 1:
            raise DefinitionError(f"Retry(attempts={self.attempts}): a callback is called at least once")
        if seconds(self.backoff) < 0 or seconds(self.max_backoff) < 0 or not 0 <= self.jitter <= 1:
            raise DefinitionError("Retry: backoff and max_backoff are not negative, and jitter is between 0 and 1")

    def allows(self, failed: int, error: BaseException) -> bool:
        """Tell whether to try again after `failed` attempts, of which the last raised `error`."""
        covered = isinstance(error, self.on) or (Exception in self.on and not isinstance(error, Exception))
        return failed < self.attempts and covered

    def delay(self, failed: int, chance: float) -> timedelta:
        """Return the wait after `failed` attempts (1 or more); `chance` in [0, 1) decides the jitter."""
        longest = exponential(seconds(self.backoff), failed, seconds(self.max_backoff))
        return timedelta(seconds=longest * (1 - self.jitter * chance))


ONCE = Retry(attempts=1)
"""What a step gets unless told otherwise: a failure of the business is a failure (behaviour Q34)."""

COMPENSATION = Retry(attempts=3, backoff=1.0)
"""What a compensation gets unless told otherwise (behaviour Q55)."""

ROLLBACK_HANDLER_CALLS = 10
"""How often `on_child_rollback_failure` is called for an instance of a step at most: if what it launches fails each
time, the rollback has failed."""
