"""What keeps a consumer from receiving, as librdkafka tells it: no broker, or something wrong with a topic."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from confluent_kafka import Consumer, KafkaError, KafkaException

from scoop_outbox_kafka.settings import Settings

_LOOK_AGAIN = 1.0

# Under their public names.
_CAUSES = {KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError._RESOLVE}  # noqa: SLF001
_UNREACHABLE = {KafkaError._ALL_BROKERS_DOWN, *_CAUSES}  # noqa: SLF001


class Problems:
    """The problems of one consumer, whichever client it has just now.

    They are noted on the thread of the client, which calls `on_error` while it is polled, and read on the event loop's.

    Args:
        settings: for the secrets that an error must not show.
    """

    def __init__(self, settings: Settings) -> None:
        """Know of none yet."""
        self._settings = settings
        self._since: datetime | None = None
        self._why = ""
        self._topics: dict[str, str] = {}
        self._look_at = 0.0

    @property
    def outage(self) -> str | None:
        """Since when no broker can be reached, and why; None while one can."""
        if (since := self._since) is None:
            return None
        return f"no broker can be reached since {since:%Y-%m-%d %H:%M:%S} UTC: {self._why}"

    @property
    def of_topics(self) -> list[str]:
        """What is wrong with topics."""
        return list(self._topics.values())

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return self._since is not None or bool(self._topics)

    def on_error(self, error: KafkaError) -> None:
        """Hear from librdkafka what is wrong with its connections; it calls this on the client's thread."""
        if error.code() in _UNREACHABLE:
            self.unreachable(error)

    def unreachable(self, error: KafkaError) -> None:
        """Note that no broker has answered."""
        if self._since is None:
            self._since = datetime.now(UTC)
            self._why = ""
        if not self._why or error.code() in _CAUSES:
            self._why = self._settings.redacted(error.str())

    def reached(self) -> None:
        """Note that a broker has answered."""
        self._since = None

    def look(self, client: Consumer, topic: str) -> None:
        """See whether a broker can be reached again; librdkafka tells only when none can."""
        if self._since is None or time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_AGAIN
        try:
            client.list_topics(topic, timeout=0.3)
        except KafkaException:
            return
        self._since = None

    def note_topic(self, topic: str, what: str) -> None:
        """Note what is wrong with a topic."""
        self._topics[topic] = what

    def clear_topic(self, topic: str) -> None:
        """Note that a topic can be read."""
        self._topics.pop(topic, None)
