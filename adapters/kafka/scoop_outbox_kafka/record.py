"""Envelopes and Kafka's records: what becomes of a key, a null value and headers on the way."""

from __future__ import annotations

from collections.abc import Callable
from operator import methodcaller
from typing import NamedTuple

from confluent_kafka import Message

from scoop_outbox.broker import Delivery, Envelope, delivery, wire

TOMBSTONE = "kafka-tombstone"
"""A message with this header is published with a null value, and one that came with a null value has it."""


# By way of C: at a name that is no UTF-8 the client answers with a broken object and an error at once, and Python looks
# whether there is an error on this way only. An ordinary call looks at first, and not any more once it was made often:
# then the process died.
_headers_of: Callable[[Message], list[tuple[str, str | bytes | None]] | dict[str, str | bytes | None] | None]
_headers_of = methodcaller("headers")

Encoded = list[tuple[str, str | bytes | None]]


class Place(NamedTuple):
    """Where a message stood, for its acknowledgement; `generation` tells assignments of a partition apart."""

    topic: str
    partition: int
    offset: int
    epoch: int
    generation: int


class Records:
    """Makes the values and headers of records, and remembers the headers that the messages of a batch share."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._known: dict[tuple[int, str], tuple[Envelope, Encoded, bool]] = {}

    def of(self, envelope: Envelope) -> tuple[bytes | None, Encoded]:
        """Return the value and the headers of the record that an envelope becomes.

        Raises:
            ValueError: a name cannot be that of a header in Kafka.
        """
        message_id, topic, _, body, content_type, headers = envelope
        known = self._known.get((id(headers), topic))
        # Whose headers are remembered is remembered too, so that nothing else can be at their address.
        if known is None or known[0].content_type != content_type:
            known = envelope, _encoded(envelope), TOMBSTONE in headers
            self._known[id(headers), topic] = known
        _, encoded, is_tombstone = known
        return None if is_tombstone else body, [*encoded, (wire.ID, message_id)]


def _encoded(envelope: Envelope) -> Encoded:
    # Most are ASCII, which the client encodes faster; it knows nothing of what octets() does to the rest.
    found: Encoded = [
        (
            name if name.isascii() and "\0" not in name else _checked(name),
            value if value.isascii() else wire.octets(value),
        )
        for name, value in envelope.headers.items()
        if name not in (TOMBSTONE, wire.CONTENT_TYPE, wire.ID, wire.TOPIC)
    ]
    found.append((wire.TOPIC, wire.octets(envelope.topic)))
    if envelope.content_type and TOMBSTONE not in envelope.headers:
        found.append((wire.CONTENT_TYPE, wire.octets(envelope.content_type)))
    return found


def _checked(name: str) -> str:
    # The client would end the process at a lone surrogate, and end the name at a NUL.
    name.encode()
    if "\0" in name:
        raise ValueError("a header's name holds a NUL character")
    return name


def delivery_of(message: Message, generation: int, identity_header: str | None) -> Delivery:
    """Return the delivery that a record becomes.

    Args:
        message: as librdkafka returned it, without an error.
        generation: which assignment of its partition it belongs to.
        identity_header: the header that identifies messages of other producers.
    """
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None and partition is not None and offset is not None  # noqa: S101, PT018 - it has no error
    key, body = message.key(), message.value()
    defect = None
    try:
        # Kafka allows a name several times, our headers do not: the last one counts.
        headers = {name: wire.text(_octets(value)) for name, value in _pairs(message)}
    except (SystemError, UnicodeDecodeError):
        # So the client says that a name is no UTF-8. It must not be asked again: it would answer with broken objects.
        headers, defect = {}, "the name of one of its headers is no UTF-8"
    content_type = headers.pop(wire.CONTENT_TYPE, None)
    if body is None:
        content_type = None
        headers[TOMBSTONE] = "true"
    _, milliseconds = message.timestamp()
    given = None if identity_header is None else headers.get(identity_header)
    if given is not None:
        # Without the time: a producer that sends it once more gives it another one.
        otherwise = wire.derived_id("kafka-header", topic, identity_header or "", given)
    else:
        # With the time, because offsets begin anew when a topic is deleted and created again.
        coordinates = (str(partition), str(offset), str(milliseconds))
        otherwise = wire.derived_id("kafka", topic, *coordinates, milliseconds=milliseconds)
    epoch = message.leader_epoch()
    return delivery(
        topic=topic,
        key=None if key is None else _octets(key),
        body=_octets(body),
        content_type=content_type,
        headers=headers,
        otherwise=otherwise,
        position=f"{topic}[{partition}]@{offset}",
        tag=Place(topic, partition, offset, -1 if epoch is None else epoch, generation),
        defect=defect,
    )


def _pairs(message: Message) -> list[tuple[str, bytes | str | None]]:
    headers = _headers_of(message)
    return list(headers.items()) if isinstance(headers, dict) else headers or []


def _octets(value: bytes | str | None) -> bytes:
    return value.encode() if isinstance(value, str) else value or b""
