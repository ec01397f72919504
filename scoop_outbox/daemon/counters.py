"""What relays and workers have done since they started, in numbers that can be read at any moment, from any thread."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scoop_outbox.core.run import RunState

TOPICS = 100
OTHER = "(other)"
"""Stands for all topics behind the first `TOPICS`: what is kept of a number of topics must not grow without end."""

_CLASSES = (
    ("no_permission", ("permit", "permission", "access refused", "access_refused", "not authorized", "authorization")),
    ("too_large", ("too large", "too_large", "larger than", "size")),
    ("no_topic", ("no topic", "no exchange", "no queue", "unroutable", "not_found", "not found", "name of a topic")),
)


MOMENTS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds for what a machine does."""
HOURS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0, 21600.0, 86400.0)
"""Bounds for what may wait for people."""


class Histogram:
    """Counts durations in buckets.

    Args:
        bounds: the upper bounds of the buckets, ascending.

    Attributes:
        bounds: the upper bound of each bucket in seconds; what is above the last one is in one more.
        counts: how many durations fell into each bucket.
        total: the sum of all durations.
    """

    def __init__(self, bounds: Sequence[float] = MOMENTS) -> None:
        """Have counted nothing."""
        self.bounds = bounds
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, duration: float) -> None:
        """Count a duration in seconds."""
        self.counts[bisect_left(self.bounds, duration)] += 1
        self.total += duration


class RelayCounters:
    """What became of messages that a relay handed to its publisher.

    Attributes:
        published: how many were acknowledged, by topic.
        deleted: how many rows of the outbox were deleted behind that. What another relay has taken over meanwhile is
            acknowledged, and not deleted.
        retriable: how many times a message failed that may go through later.
        dead_letters: how many became dead letters, by class of reason.
        seconds: how long the publisher took for a batch.
    """

    def __init__(self) -> None:
        """Have counted nothing."""
        self.published: Counter[str] = Counter()
        self.deleted = 0
        self.retriable = 0
        self.dead_letters: Counter[str] = Counter()
        self.seconds = Histogram()

    def acknowledged(self, topics: Iterable[str]) -> None:
        """Count messages that the broker has taken, by their topics."""
        for topic, count in Counter(topics).items():
            known = topic in self.published or len(self.published) < TOPICS
            self.published[topic if known else OTHER] += count

    def buried(self, reasons: Iterable[str]) -> None:
        """Count dead letters, by their reasons."""
        self.dead_letters.update(map(reason_class, reasons))


@dataclass(slots=True)
class WorkerCounters:
    """What a worker has done since it started.

    Attributes:
        claims: how many runs it took in hand.
        empty_claims: with how many of them there was nothing to be done.
    """

    claims: int = 0
    empty_claims: int = 0


@dataclass(slots=True)
class IntakeCounters:
    """What became of the messages that a service has received since it started.

    Attributes:
        taken_in: how many were taken in, those that came again too.
        forwarded: how many of these another home of the service was told to handle.
        dead_letters: how many could not be.
    """

    taken_in: int = 0
    forwarded: int = 0
    dead_letters: int = 0


class RunCounters:
    """How runs have ended, and how long they took. Threads and the event loop count at the same time.

    Args:
        sagas: the names of sagas, of which what has not happened is counted, too, as nothing.

    Attributes:
        counts: how many runs got into a state in which they end, by saga and state. One that commits and is rolled
            back later is in both; one that is parked may go on.
        seconds: how long it took, from the taking in of the message, likewise; nothing of parked ones.
    """

    def __init__(self, sagas: Iterable[str]) -> None:
        """Have counted nothing."""
        states = [state for state in RunState if state.ended]
        keys = [(saga, state) for saga in sagas for state in states]
        self._lock = threading.Lock()
        self.counts: Counter[tuple[str, RunState]] = Counter(dict.fromkeys(keys, 0))
        self._seconds: dict[tuple[str, RunState], Histogram] = {}

    @property
    def seconds(self) -> Mapping[tuple[str, RunState], Histogram]:
        """See the class."""
        with self._lock:
            return dict(self._seconds)

    def note(self, saga: str, state: RunState, seconds: float | None) -> None:
        """Count a run; `seconds` is None when it has not really ended."""
        key = saga, state
        with self._lock:
            self.counts[key] += 1
            if seconds is not None:
                if (histogram := self._seconds.get(key)) is None:
                    histogram = self._seconds[key] = Histogram(HOURS)
                histogram.observe(seconds)


def reason_class(reason: str) -> str:
    """Return one word for a broker's reason, of a few that there are: the reason itself may name what it likes."""
    lowered = reason.lower()
    return next((name for name, signs in _CLASSES if any(sign in lowered for sign in signs)), "other")
