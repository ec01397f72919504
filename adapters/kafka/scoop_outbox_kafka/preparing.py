"""Before a service is announced: whether its group may receive, and where it begins, laid down for whoever joins it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AclOperation, AdminClient  # type: ignore[attr-defined]

from scoop_outbox.broker import BrokerError, Subscription, get_logger
from scoop_outbox_kafka.client import make
from scoop_outbox_kafka.settings import Settings
from scoop_outbox_kafka.start import (
    Part,
    committed,
    explain_silence,
    not_permitted_group,
    not_permitted_topic,
    starts,
    unstarted,
)
from scoop_outbox_kafka.topology import raise_if_refused

log = get_logger(__name__)

_ANSWER = 5.0
_JOINING = 20.0
"""Seconds in which a group lets a new member in: the others have to give way first."""


def prepare(settings: Settings, subscription: Subscription) -> str | None:
    """Commit where a group begins on topics on which it has never been; return what has kept us from it, if anything.

    Raises:
        BrokerError: a topic, a permission or the start is missing, or the broker refuses user or certificate.
    """
    told: list[KafkaError] = []
    group = subscription.group
    configuration = settings.for_consumer(f"scoop-{subscription.service}", group)
    # Not under that name: static membership would take it for the real one.
    configuration.pop("group.instance.id", None)
    consumer = make(Consumer, settings, {**configuration, "error_cb": told.append})
    try:
        fresh = unstarted(consumer, group, subscription.topics, _ANSWER)
        begin = starts(consumer, settings, configuration, group, fresh, subscription.start, _ANSWER)
        _check_reading(settings, subscription.topics)
        if begin and not _lay_down(consumer, settings, configuration, group, begin):
            return f"the group {group} does not take where it begins, for now"
    except KafkaException as error:
        consumer.poll(0.1)  # what is behind it is told to error_cb
        raise_if_refused(settings, told)
        explain_silence(error.args[0], settings, group, _ANSWER)
        return settings.redacted(f"{_who_does_not_answer(error.args[0], settings)}: {error.args[0].str()}")
    finally:
        consumer.close()
    if begin:
        topics = ", ".join(sorted({topic for topic, _ in begin}))
        log.info(
            "kafka: new group starts (group %s, topics %s, start %s)",
            *(group, topics, subscription.start),
            extra={"group": group},
        )
    return None


def _who_does_not_answer(error: KafkaError, settings: Settings) -> str:
    if error.code() < 0:  # librdkafka's own: nobody has answered
        return f"no broker of {settings.bootstrap} can be reached"
    return f"the brokers of {settings.bootstrap} cannot say it now"


def _check_reading(settings: Settings, topics: Sequence[str]) -> None:
    """See whether topics may be read, not only be seen."""
    # By a name: it must live until it is answered.
    admin = make(AdminClient, settings, settings.for_admin(settings.consumer))
    asked = admin.describe_topics(
        TopicCollection(list(topics)), include_authorized_operations=True, request_timeout=_ANSWER
    )
    for topic, future in asked.items():
        allowed = future.result().authorized_operations
        if allowed is not None and AclOperation.READ not in allowed:
            raise BrokerError(not_permitted_topic(topic))


def _lay_down(
    consumer: Consumer, settings: Settings, configuration: Mapping[str, Any], group: str, begin: Mapping[Part, int]
) -> bool:
    """Commit offsets at which a group begins, and answer whether it has."""
    if _commit(consumer, group, begin):
        return True
    # A group that has members takes offsets from nobody else: become one of them, for as long as that takes.
    assigned: list[TopicPartition] = []
    joined = False

    def on_assign(_: Consumer, parts: list[TopicPartition]) -> None:
        nonlocal joined
        joined = True
        assigned.extend(parts)

    member = make(Consumer, settings, configuration)
    try:
        member.subscribe(sorted({topic for topic, _ in begin}), on_assign=on_assign)
        deadline = time.monotonic() + _JOINING
        while not joined:
            if time.monotonic() > deadline:
                log.warning(
                    "kafka: joining the group timed out (group %s, %.0f s)", group, _JOINING, extra={"group": group}
                )
                return False
            # Nothing of what it may read is acknowledged: the group gets all of it.
            member.poll(0.1)
        return _commit(member, group, begin)
    finally:
        member.close()


def _commit(consumer: Consumer, group: str, begin: Mapping[Part, int]) -> bool:
    """Commit where the group has not begun meanwhile, and answer whether the broker has taken it.

    In this order: the offsets were read, then the group is asked. Another process that has laid down the start after
    we asked has announced nothing before that, so ours is not behind a message that its service is waited for.
    """
    known = committed(consumer, group, begin, _ANSWER)
    offsets = [TopicPartition(*part, offset) for part, offset in begin.items() if part not in known]
    if not offsets:
        return True
    try:
        answers = consumer.commit(offsets=offsets, asynchronous=False) or []
    except KafkaException as error:
        if error.args[0].code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
            raise BrokerError(not_permitted_group(group)) from None
        log.info(
            "kafka: start of the group not committed (group %s: %s)", group, error.args[0].str(), extra={"group": group}
        )
        return False
    return all(one.error is None for one in answers)
