"""Launches on topics that no saga listens to: such a message is waited for by nobody, and perhaps nobody knows."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping

from scoop_outbox._log import get_logger
from scoop_outbox.daemon.counters import OTHER, TOPICS

log = get_logger(__name__)

TOLD = 1000
"""Topics of which a process tells: their names may be made of something that there is no end of."""


class UnhandledLaunches:
    """Counts them by topic, and tells once of each topic. Safe to be called from any thread."""

    def __init__(self) -> None:
        """Have counted nothing."""
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._told: set[str] = set()

    @property
    def counts(self) -> Mapping[str, int]:
        """How many messages were launched, by topic; behind the first topics, all others are `(other)`."""
        with self._lock:
            return dict(self._counts)

    def note(self, topics: Iterable[str], service: str, *, via_broker: bool) -> None:
        """Note messages without a listener.

        Args:
            topics: the topic of each.
            service: who has launched.
            via_broker: whether a broker carries the messages, so that others may listen there.
        """
        for topic, count in Counter(topics).items():
            with self._lock:
                known = topic in self._counts or len(self._counts) < TOPICS
                self._counts[topic if known else OTHER] += count
                new = topic not in self._told and len(self._told) < TOLD
                if new:
                    self._told.add(topic)
                last = new and len(self._told) == TOLD
            if new:
                # No warning: it may be meant so, as a step of its own that others may hook into.
                text = _VIA_BROKER if via_broker else _BUILTIN
                log.info(text, service, topic, extra={"service": service, "topic": topic})
            if last:
                log.info("launch: too many topics without a subscription, no more are logged (%d were)", TOLD)


_VIA_BROKER = (
    "launch: topic without a subscription (service %r, topic %r: its messages are published; nothing in this database "
    "handles them or waits for them)"
)
_BUILTIN = (
    "launch: topic without a subscription (service %r, topic %r: its messages are not handled; a saga is subscribed "
    "once its service has run, or has launched something)"
)
