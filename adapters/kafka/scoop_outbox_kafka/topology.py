"""Topics at the broker: whether they are there, and their creation when somebody asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from concurrent.futures import Future

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from scoop_outbox.broker import BrokerError, Resource
from scoop_outbox_kafka.client import make
from scoop_outbox_kafka.settings import Settings

_ANSWER = 10.0
_REFUSALS = {KafkaError._AUTHENTICATION, KafkaError._SSL}  # noqa: SLF001 - public names


def raise_if_refused(settings: Settings, told: Iterable[KafkaError]) -> None:
    """Tell a broker that refuses us from one that is down.

    Args:
        settings: how it was asked.
        told: what librdkafka has told of the connections.

    Raises:
        BrokerError: it refuses user or certificate.
    """
    for error in told:
        if error.code() in _REFUSALS:
            raise BrokerError(
                settings.redacted(
                    f"Kafka refuses the connection: {error.str()}. See the user and password in the URL, and "
                    "sasl.mechanism, security.protocol and ssl.ca.location"
                )
            )


async def topology(settings: Settings, topics: Sequence[str], *, create: bool) -> list[Resource]:
    """Return the topics, and whether they exist; create what does not if asked to.

    Raises:
        BrokerError: the broker cannot be reached, or does not permit it.
    """
    return await asyncio.to_thread(_topology, settings, list(dict.fromkeys(topics)), create=create)


def _topology(settings: Settings, topics: list[str], *, create: bool) -> list[Resource]:
    told: list[KafkaError] = []
    admin = make(AdminClient, settings, {**settings.for_admin(settings.producer), "error_cb": told.append})
    try:
        items = [Resource(_text(settings, topic), _exists(admin, topic)) for topic in topics]
        missing = [topic for topic, item in zip(topics, items, strict=True) if not item.exists]
        if create and missing:
            _create(admin, settings, missing)
    except KafkaException as error:
        admin.poll(0.1)
        raise_if_refused(settings, told)
        reason = settings.redacted(error.args[0].str())
        raise BrokerError(f"Kafka at {settings.bootstrap} has not answered: {reason}") from None
    return items


def _text(settings: Settings, topic: str) -> str:
    partitions = settings.partitions or "the broker's default number of"
    copies = settings.replication_factor or "the broker's default number of"
    return f"topic {topic} ({partitions} partitions, {copies} replicas)"


def _exists(admin: AdminClient, topic: str) -> bool:
    error = admin.list_topics(topic, timeout=_ANSWER / 2).topics[topic].error
    if error is None:
        return True
    if error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):  # noqa: SLF001 - public
        return False
    if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
        raise BrokerError(
            f"it is not permitted to see the topic {topic}: "
            f"kafka-acls.sh --add --allow-principal User:... --operation Describe --topic {topic}"
        )
    if error.code() == KafkaError.TOPIC_EXCEPTION:
        raise BrokerError(f"{topic!r} cannot be the name of a topic in Kafka: use letters, digits, '.', '_' and '-'")
    raise KafkaException(error)


def _create(admin: AdminClient, settings: Settings, topics: Sequence[str]) -> None:
    new = [
        NewTopic(topic, settings.partitions or -1, settings.replication_factor or -1)  # the broker's own defaults
        for topic in topics
    ]
    made: dict[str, Future[None]] = admin.create_topics(new, operation_timeout=_ANSWER)
    for topic, future in made.items():
        try:
            future.result()
        except KafkaException as error:
            found: KafkaError = error.args[0]
            if found.code() == KafkaError.TOPIC_ALREADY_EXISTS:
                continue  # somebody was quicker
            if found.code() in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED):
                raise BrokerError(
                    f"it is not permitted to create the topic {topic}: "
                    f"kafka-acls.sh --add --allow-principal User:... --operation Create --topic {topic}"
                ) from None
            raise BrokerError(f"the topic {topic} cannot be created: {found.str()}") from None
