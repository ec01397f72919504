"""Where a group begins that has never been on a topic: said by the user, and laid down before it takes anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import TypeVar

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from scoop_outbox.broker import BrokerError, get_logger
from scoop_outbox_kafka.client import make
from scoop_outbox_kafka.settings import Settings

log = get_logger(__name__)

Part = tuple[str, int]
T = TypeVar("T")

ANSWER = 5.0
"""Seconds in which a broker answers a question."""

_CHOICES = (
    'say Scoop(start=...): "earliest" for all that the topic still has, "latest" for what is published from now on, '
    'a time in ISO 8601 such as "2026-01-31T12:00:00+00:00", or "group:NAME" to go on where another group is'
)
_GROUP = "group:"
_LOOK_AGAIN = 0.1
_PROPAGATION = 1.0
_UNKNOWN = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC)  # noqa: SLF001 - its public name
# After a broker has started or gone, when a cluster has its first group, and when a topic has just been created: who is
# named as leader or coordinator may not know it yet.
_PASSING = {
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    *_UNKNOWN,
}


def parse_start(start: str | None) -> None:
    """See whether a start can be understood.

    Raises:
        BrokerError: it cannot.
    """
    if start is None or start in ("earliest", "latest"):
        return
    if start.startswith(_GROUP):
        if start == _GROUP:
            raise BrokerError(f"the start {start!r} names no group: {_CHOICES}")
        return
    _milliseconds(start)


def _milliseconds(start: str) -> int:
    try:
        time = datetime.fromisoformat(start)
    except ValueError:
        raise BrokerError(f"the start {start!r} means nothing to Kafka: {_CHOICES}") from None
    if time.tzinfo is None:
        raise BrokerError(f'the start {start!r} has no time zone: add one, such as "+00:00" or "Z"')
    return int(time.timestamp() * 1000)


def partitions_of(consumer: Consumer, topic: str, timeout: float) -> list[Part]:
    """Return the partitions of a topic.

    Raises:
        BrokerError: it does not exist, or it is not permitted to see it.
        KafkaException: the broker cannot be asked now.
    """
    deadline = time.monotonic() + _PROPAGATION
    while True:
        found = consumer.list_topics(topic, timeout=timeout).topics[topic]
        if found.error is None:
            return [(topic, partition) for partition in sorted(found.partitions)]
        if found.error.code() not in _UNKNOWN:
            break
        # The broker that is asked may not know it yet, though another one has created it.
        if time.monotonic() >= deadline:
            raise BrokerError(missing_topic(topic))
        time.sleep(_LOOK_AGAIN)
    if found.error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
        raise BrokerError(not_permitted_topic(topic))
    if found.error.code() == KafkaError.TOPIC_EXCEPTION:
        raise BrokerError(f"{topic!r} cannot be the name of a topic in Kafka: use letters, digits, '.', '_' and '-'")
    raise KafkaException(found.error)


def missing_topic(topic: str) -> str:
    """Say that a topic is missing, and how to mend it."""
    return (
        f"there is no topic {topic}: create it with `scoop-outbox topology apply`, "
        f"or with kafka-topics.sh --create --topic {topic} --partitions N --replication-factor N"
    )


def not_permitted_topic(topic: str) -> str:
    """Say that a topic may not be read, and how to mend it."""
    return (
        f"it is not permitted to read the topic {topic}: "
        f"kafka-acls.sh --add --allow-principal User:... --operation Read --operation Describe --topic {topic}"
    )


def not_permitted_group(group: str) -> str:
    """Say that a group may not be used, and how to mend it."""
    return (
        f"it is not permitted to be a consumer of the group {group}: "
        f"kafka-acls.sh --add --allow-principal User:... --operation Read --group {group}"
    )


def committed(consumer: Consumer, group: str, parts: Iterable[Part], timeout: float) -> dict[Part, int]:
    """Return the offsets that a group has committed, of those parts where it has.

    Raises:
        BrokerError: it is not permitted to use the group.
        KafkaException: the broker cannot be asked now.
    """
    wanted = [TopicPartition(*part) for part in parts]
    try:
        found = _patiently(lambda: consumer.committed(wanted, timeout=timeout), timeout)
    except KafkaException as error:
        if error.args[0].code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
            raise BrokerError(not_permitted_group(group)) from None
        raise
    for one in found:
        if one.error is not None:
            if one.error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
                raise BrokerError(not_permitted_group(group))
            if one.error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                raise BrokerError(not_permitted_topic(one.topic))
            raise KafkaException(one.error)
    return {(one.topic, one.partition): one.offset for one in found if one.offset >= 0}


def commit(consumer: Consumer, group: str, offsets: list[TopicPartition]) -> bool:
    """Commit for a group and wait for the broker's word; answer whether it was yes."""
    try:
        answers = consumer.commit(offsets=offsets, asynchronous=False) or []
    except KafkaException as error:
        log.info("kafka: offsets not committed (group %s: %s)", group, error.args[0].str(), extra={"group": group})
        return False
    return all(one.error is None for one in answers)


def explain_silence(error: KafkaError, settings: Settings, group: str, timeout: float) -> None:
    """See whether a group was not answered because it may not be used: librdkafka asks on and on, and does not say.

    Args:
        error: how asking for the group's offsets ended.
        settings: of the client that is told.
        group: which one.
        timeout: seconds for the question.

    Raises:
        BrokerError: it is not permitted.
    """
    if error.code() != KafkaError._TIMED_OUT:  # noqa: SLF001 - its public name
        return
    # Kept until the answer is here: nothing comes of what a client was asked that is gone.
    client = make(AdminClient, settings, settings.for_admin(settings.consumer))
    try:
        asked = client.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)], request_timeout=timeout)
        asked[group].result(timeout)
    except TimeoutError:
        return
    except KafkaException as answer:
        if answer.args[0].code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
            raise BrokerError(not_permitted_group(group)) from None


def _patiently(ask: Callable[[], T], timeout: float) -> T:
    """Ask again while who is asked is only about to know: seconds at most.

    Raises:
        KafkaException: as `ask`.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            return ask()
        except KafkaException as error:
            if error.args[0].code() not in _PASSING or time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_AGAIN)


def unstarted(consumer: Consumer, group: str, topics: Iterable[str], timeout: float) -> list[Part]:
    """Return the partitions of those topics on which a group has never been.

    A topic of which a group knows some partitions is not among them: the others are new, and have no past.

    Raises:
        BrokerError: a topic does not exist, or something is not permitted.
        KafkaException: the broker cannot be asked now.
    """
    parts = [part for topic in topics for part in partitions_of(consumer, topic, timeout)]
    known = {topic for topic, _ in committed(consumer, group, parts, timeout)} if parts else set()
    return [part for part in parts if part[0] not in known]


def bounds(consumer: Consumer, part: Part, timeout: float) -> tuple[int, int]:
    """Return the offset of the oldest message that a partition still has, and that of the next one.

    Raises:
        KafkaException: the broker cannot be asked now.
    """
    found = _patiently(lambda: consumer.get_watermark_offsets(TopicPartition(*part), timeout=timeout), timeout)
    if found is None:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))  # noqa: SLF001 - its public name
    low, high = found
    return low, high


def starts(
    consumer: Consumer,
    settings: Settings,
    configuration: Mapping[str, object],
    group: str,
    parts: list[Part],
    start: str | None,
    timeout: float,
) -> dict[Part, int]:
    """Return the offsets at which a group is to begin.

    Args:
        consumer: of that group, not necessarily a member.
        settings: of the client that is told why there is no answer.
        configuration: what a consumer is made with, for a look at another group.
        group: who begins.
        parts: where it has never been.
        start: what the user said.
        timeout: seconds for each question.

    Raises:
        BrokerError: the start was not said, means nothing, or the group that is named has no offsets.
        KafkaException: the broker cannot be asked now.
    """
    if not parts:
        return {}
    topics = sorted({topic for topic, _ in parts})
    if start is None:
        raise BrokerError(
            f"the group {group} has never been on the topic {', '.join(topics)}, and where to begin was not said: "
            + _CHOICES
        )
    if start in ("earliest", "latest"):
        index = 0 if start == "earliest" else 1
        return {part: bounds(consumer, part, timeout)[index] for part in parts}
    if start.startswith(_GROUP):
        return _of_group(consumer, settings, configuration, parts, start.removeprefix(_GROUP), timeout)
    wanted = [TopicPartition(*part, _milliseconds(start)) for part in parts]
    found = _patiently(lambda: _offsets_for_times(consumer, wanted, timeout), timeout)
    # A partition without a message that late begins at its end.
    return {part: at if (at := found[part]) >= 0 else bounds(consumer, part, timeout)[1] for part in parts}


def _offsets_for_times(consumer: Consumer, wanted: list[TopicPartition], timeout: float) -> dict[Part, int]:
    found = consumer.offsets_for_times(wanted, timeout=timeout)
    for one in found:
        if one.error is not None:  # its offset would read as "no message that late"
            raise KafkaException(one.error)
    return {(one.topic, one.partition): one.offset for one in found}


def _of_group(
    consumer: Consumer,
    settings: Settings,
    configuration: Mapping[str, object],
    parts: list[Part],
    other: str,
    timeout: float,
) -> dict[Part, int]:
    reader = make(Consumer, settings, {**configuration, "group.id": other})
    try:
        found = committed(reader, other, parts, timeout)
    except KafkaException as error:
        explain_silence(error.args[0], settings, other, timeout)
        raise
    finally:
        reader.close()
    for topic in sorted({topic for topic, _ in parts}):
        if not any(part[0] == topic for part in found):
            raise BrokerError(
                f"the group {other}, where to begin was said to be, has no offsets on the topic {topic}: {_CHOICES}"
            )
    # That group has taken nothing from the partitions that it has no offset for.
    return {part: found[part] if part in found else bounds(consumer, part, timeout)[0] for part in parts}
