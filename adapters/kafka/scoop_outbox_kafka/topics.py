"""Which topics a publisher knows to exist, and which it may not publish on.

librdkafka would find out by itself, but only with messages in hand, and would believe it for minutes.
"""

from __future__ import annotations

import time

from confluent_kafka import KafkaError, KafkaException, Producer

from scoop_outbox.broker import PublishStatus, Receipt

_LOOK_AGAIN = 0.1
_EVERYWHERE = "__consumer_offsets"

_PERHAPS_NEW = {
    KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001 - its public name
    KafkaError.UNKNOWN_TOPIC_OR_PART,
}
OF_TOPIC = {*_PERHAPS_NEW, KafkaError.TOPIC_EXCEPTION, KafkaError.TOPIC_AUTHORIZATION_FAILED}
"""What is wrong with a topic, and not with the messages on it."""


class Topics:
    """The topics of one publisher.

    Args:
        propagation: seconds that a topic may need to become known to the broker that is asked.

    Attributes:
        refused: the topics that cannot be published on, and what becomes of their messages.
    """

    def __init__(self, propagation: float) -> None:
        """Know none yet."""
        self._propagation = propagation
        self._known: set[str] = set()
        self._missing: dict[str, tuple[float, KafkaError]] = {}  # since when, and why
        self.refused: dict[str, Receipt] = {}

    @property
    def to_ask_for(self) -> str:
        """A topic to ask a broker for when all that counts is the answer: nobody creates it by asking."""
        return next(iter(self._known), _EVERYWHERE)

    def look_up(self, producer: Producer, topics: set[str], deadline: float) -> None:
        """Find out of those that are not known whether they can be published on.

        All of them have the same time to become known to the broker that is asked, and messages on topics that exist
        wait as long, but half of the time until the deadline is theirs: then messages on missing topics fail for now.
        What was refused before is refused again at once, unless somebody has created it meanwhile.

        Raises:
            KafkaException: the broker cannot be asked now.
        """
        self.refused = {one: receipt for one, receipt in self.refused.items() if one not in self._missing}
        unknown = topics - self._known
        until = time.monotonic() + (deadline - time.monotonic()) / 2
        while unknown:
            for topic in unknown:
                try:
                    reason = _ask_for(producer, topic, deadline)
                except KafkaException:
                    # Nobody has said for a while that they are missing; who answers next may be a broker that has just
                    # started, and does not know them yet.
                    self._missing.clear()
                    raise
                self._note(topic, reason)
            unknown = (unknown & self._missing.keys()) - self.refused.keys()
            if unknown and time.monotonic() >= until:
                for topic in unknown:
                    self.refused[topic] = Receipt(PublishStatus.RETRIABLE, _refusal(topic, self._missing[topic][1]))
                return
            if unknown:
                time.sleep(_LOOK_AGAIN)

    def _note(self, topic: str, reason: KafkaError | None) -> None:
        """Note what a broker says of a topic that is not known."""
        if reason is None:
            self._known.add(topic)
            self._missing.pop(topic, None)
            self.refused.pop(topic, None)
        elif reason.code() in _PERHAPS_NEW:
            if topic in self.refused:
                return
            since, _ = self._missing.setdefault(topic, (time.monotonic(), reason))
            if time.monotonic() >= since + self._propagation:
                self.refuse(topic, reason)
        elif reason.code() in OF_TOPIC:
            self.refuse(topic, reason)
        # Else it is such as no leader: librdkafka waits for it.

    def refuse(self, topic: str, error: KafkaError) -> None:
        """Note that a topic cannot be published on."""
        self._known.discard(topic)
        self._missing.pop(topic, None)
        self.refused[topic] = Receipt(PublishStatus.PERMANENT, _refusal(topic, error))

    def forget(self) -> None:
        """Ask for each topic again."""
        self._known.clear()


def _ask_for(producer: Producer, topic: str, deadline: float) -> KafkaError | None:
    """Return why a topic cannot be published on just now, or None when it can."""
    try:
        found = producer.list_topics(topic, timeout=max(deadline - time.monotonic(), 0.1) / 2)
    except ValueError:
        return KafkaError(KafkaError.TOPIC_EXCEPTION)
    reason: KafkaError | None = found.topics[topic].error
    return reason


def _refusal(topic: str, error: KafkaError) -> str:
    if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
        return f"it is not permitted to write to the topic {topic}: grant Write and Describe (kafka-acls.sh)"
    if error.code() == KafkaError.TOPIC_EXCEPTION:
        return f"{topic!r} cannot be the name of a topic in Kafka"
    return f"there is no topic {topic}: create it with `scoop-outbox topology apply`, or with kafka-topics.sh"
