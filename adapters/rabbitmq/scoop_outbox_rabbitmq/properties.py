"""Envelopes become AMQP messages, and AMQP messages become deliveries; bodies are left alone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from pamqp.commands import Basic
from pamqp.header import ContentHeader

from scoop_outbox.broker import BrokerError, Delivery, Envelope, delivery, uuid7, wire
from scoop_outbox_rabbitmq.frames import UNREADABLE
from scoop_outbox_rabbitmq.route import Arrival, Route, route

KEY = "scoop-key"
EXCHANGE, ROUTING_KEY, MESSAGE_ID = "amqp-exchange", "amqp-routing-key", "amqp-message-id"

_PREFIX, _TYPE, _TIMESTAMP = "amqp-", "amqp-type", "amqp-timestamp"
_PERSISTENT = 2
_LONGEST_NAME = 128
_MOST_DIGITS = 100
_MOST_A_BYTE_TAKES = 4
_FRAME = 8

_TEXTS = ("correlation_id", "reply_to", "message_type", "app_id", "expiration", "user_id", "content_encoding")
# What the broker changes between two deliveries of one message.
_CHANGING = ("x-delivery-count", "x-acquired-count", "x-death", "x-first-death-", "x-last-death-")
_CLOUD_EVENTS = ("cloudEvents:", "cloudEvents_")


class UnpublishableError(Exception):
    """AMQP has no room for something in a message."""


def outgoing(envelope: Envelope, where: Route) -> Basic.Properties:
    """Return the properties and headers of a message.

    Args:
        envelope: the message.
        where: the exchange and the routing key that its topic stands for here. Other services may have another name for
            them, or listen on a pattern: what the message says of where it was published is not the topic's name.

    Raises:
        UnpublishableError: AMQP cannot carry one of them; the message says which.
    """
    given: dict[str, Any] = {}
    table: dict[str, Any] = {}
    for name, value in {**wire.outgoing(envelope), wire.TOPIC: str(where)}.items():
        if name.startswith(_PREFIX) and _property(name, value, given):
            continue
        if len(name.encode("utf-8", "surrogatepass")) > _LONGEST_NAME:
            raise UnpublishableError(f"the header name {name[:40]!r}... is longer than {_LONGEST_NAME} bytes")
        try:
            table[name] = _wire_value(wire.octets(value))
        except UnicodeEncodeError:
            raise UnpublishableError(f"the header {name} holds a lone surrogate, which no bytes stand for") from None
    if envelope.key is not None:
        table[KEY] = _wire_value(wire.key_octets(envelope.key))
    if "timestamp" in given:
        table[_TIMESTAMP] = envelope.headers[_TIMESTAMP]  # to tell it from the one that every message gets
    chosen = bool(given)
    given.setdefault("timestamp", datetime.fromtimestamp(int(time.time()), UTC))
    properties = Basic.Properties(
        content_type=envelope.content_type or None,
        delivery_mode=_PERSISTENT,
        message_id=envelope.id,
        headers=table,
        **given,
    )
    if chosen:
        _encoded(properties)
    return properties


def _encoded(properties: Basic.Properties) -> bytes:
    try:
        return ContentHeader(body_size=0, properties=properties).marshal()
    except Exception as error:  # noqa: BLE001 - see below
        # The client raises whatever it stumbles over. One time before 1970 kept a relay from publishing anything.
        raise UnpublishableError(f"its headers cannot be written as AMQP: {error}") from None


def _wire_value(value: bytes) -> str | bytearray:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return bytearray(value)


def _property(name: str, value: str, given: dict[str, Any]) -> bool:
    """Set the property that a header stands for, if it does; tell whether the header is dealt with."""
    attribute = "message_type" if name == _TYPE else name.removeprefix(_PREFIX).replace("-", "_")
    if name in (EXCHANGE, ROUTING_KEY, MESSAGE_ID):
        return True  # of the message that this one was made from
    if attribute in _TEXTS:
        given[attribute] = value
    elif attribute == "priority":
        # Python reads no number of thousands of digits.
        if not value.isdecimal() or len(value) > _MOST_DIGITS or int(value) > 255:  # noqa: PLR2004 - one byte
            raise UnpublishableError(f"the header {name} is {value[:40]!r}: it has to be a number from 0 to 255")
        given[attribute] = int(value)
    elif attribute == "timestamp":
        try:
            given[attribute] = datetime.fromisoformat(value)
        except ValueError:
            raise UnpublishableError(f"the header {name} is {value[:40]!r}: it has to be a time in ISO 8601") from None
    else:
        return False
    return True


def check_size(envelope: Envelope, properties: Basic.Properties, frame_max: int) -> None:
    """See whether the headers fit into the one frame that AMQP gives them: the broker would drop the connection.

    Args:
        envelope: the message.
        properties: its properties and headers.
        frame_max: the most bytes of a frame; 0 when there is no limit.

    Raises:
        UnpublishableError: they do not, or one is no text that AMQP can carry.
    """
    if not frame_max:
        return
    most = sum(len(name) + len(value) + _FRAME for name, value in envelope.headers.items()) * _MOST_A_BYTE_TAKES
    if most + len(envelope.key or "") * _MOST_A_BYTE_TAKES + 2048 < frame_max:
        return
    size = len(_encoded(properties)) + _FRAME
    if size > frame_max:
        raise UnpublishableError(f"its headers take {size} bytes, and the broker takes {frame_max} (frame_max)")


def incoming(
    *,
    queue: str,
    found: Arrival,
    arrived: Route,
    home: Route | None,
    properties: Basic.Properties,
    body: bytes,
    by_content: bool,
    tag: Any,
    number: int,
) -> Delivery:
    """Return what has come out of a queue as a delivery.

    Args:
        queue: which one.
        found: the topic whose message it is.
        arrived: where it was published.
        home: where else a message of ours may say that it was published, because it was moved from there; None when
            it was not moved.
        properties: its properties and headers.
        body: its bytes.
        by_content: whether a message without any id is the same as another one that says the same.
        tag: what is needed to acknowledge it.
        number: its delivery tag.
    """
    table = {str(name): _text(value) for name, value in (properties.headers or {}).items()}
    key = table.pop(KEY, None)
    seen = {**table, **_cloud_event(table), **_shown(properties, ours=wire.ID in table)}
    if not found.exactly:
        seen.update({EXCHANGE: arrived.exchange, ROUTING_KEY: arrived.key})
    one = delivery(
        topic=found.topic,
        key=None if key is None else wire.octets(key),
        body=body,
        content_type=properties.content_type,
        headers=seen,
        otherwise=_identity(found.canonical, arrived, properties, table, body, by_content=by_content),
        published=_published(arrived, home, table.get(wire.TOPIC)),
        canonical=found.canonical,
        position=f"{queue}#{number} (published on {str(arrived)!r})",
        tag=tag,
    )
    if UNREADABLE in table:
        return Delivery(one.envelope, one.position, "its AMQP properties or headers cannot be decoded", tag)
    return one


def _published(arrived: Route, home: Route | None, said: str | None) -> str:
    """Return where a message was published, when `said` is where it says so itself."""
    if home is None or said is None:
        return str(arrived)
    try:
        at_home = home.matches(route(said, ""))
    except BrokerError:
        at_home = False
    # Taken for a stranger, a message of ours had another id, and the run that waited for it waited for ever.
    return said if at_home else str(arrived)


def _shown(properties: Basic.Properties, *, ours: bool) -> dict[str, str]:
    """Return the properties as headers; without those that our publisher gives to every message."""
    shown = {
        _TYPE if name == "message_type" else f"{_PREFIX}{name.replace('_', '-')}": _text(value)
        for name in (*_TEXTS, "priority", *(() if ours else ("timestamp",)))
        if (value := getattr(properties, name)) is not None
    }
    if properties.message_id is not None and not ours:
        shown[MESSAGE_ID] = properties.message_id
    return shown


def _cloud_event(table: Mapping[str, str]) -> dict[str, str]:
    return {
        f"ce_{name.removeprefix(prefix)}": value
        for name, value in table.items()
        for prefix in _CLOUD_EVENTS
        if name.startswith(prefix)
    }


def _identity(
    topic: str, arrived: Route, properties: Basic.Properties, table: Mapping[str, str], body: bytes, *, by_content: bool
) -> str:
    if properties.message_id:
        # Without the time: a producer that sends it once more gives it another one.
        return wire.derived_id("amqp", properties.app_id or "", topic, properties.message_id)
    if not by_content:
        return str(uuid7())
    sent = properties.timestamp
    told = [(name, value) for name, value in sorted(table.items()) if not name.startswith(_CHANGING)]
    shown = sorted(_shown(properties, ours=False).items())
    return wire.derived_id(
        "amqp content",
        properties.content_type or "",
        arrived.exchange,
        arrived.key,
        # Each on its own: whatever separated names from values, or headers from properties, could be part of one.
        str(len(told)),
        *(part for pair in (*told, *shown) for part in pair),
        body,
        milliseconds=None if sent is None else int(sent.timestamp() * 1000),
    )


_TEXT_OF: dict[type, Callable[[Any], str]] = {
    str: lambda value: value,
    bytes: wire.text,
    bytearray: lambda value: wire.text(bytes(value)),
    bool: lambda value: "true" if value else "false",
    int: str,
    float: repr,
    datetime: lambda value: value.isoformat(),
    type(None): lambda _: "",
}


def _text(value: Any) -> str:
    """Return any value that AMQP can carry in a header as text."""
    convert = _TEXT_OF.get(type(value))
    if convert is not None:
        return convert(value)
    if isinstance(value, dict | list):
        return json.dumps(value, default=_text, separators=(",", ":"))
    return str(value)
