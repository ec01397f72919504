"""Validation: what may be launched, and which messages from a broker can be taken in."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Sequence
from typing import TypeGuard

from scoop_outbox._deadlines import Deadlines
from scoop_outbox.errors import PayloadError
from scoop_outbox.message import Envelope
from scoop_outbox.wire.control import is_control_topic
from scoop_outbox.wire.headers import (
    CONTENT_TYPE,
    CONTEXT,
    DEADLINES,
    EXPECTS,
    HOME,
    ID,
    LAUNCHED_AT,
    LINEAGE,
    REPLY_TO,
    id_of,
    key_text,
)

KEY_LIMIT = 1024
CONTENT_TYPE_LIMIT = 255
_PAIR = 2

_LINEAGE = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(,[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})*")


def checked_id(message_id: object) -> uuid.UUID:
    """Return a message's id that a caller gives.

    Raises:
        PayloadError: it is none.
    """
    if isinstance(message_id, uuid.UUID) and message_id.int:
        return message_id
    raise PayloadError(f"a message's id is a uuid.UUID, of any version but the nil one, not {message_id!r:.60}")


def checked_content_type(value: str) -> str:
    """Return a media type that goes along with a body.

    Raises:
        PayloadError: it is too long, or cannot be stored.
    """
    # AMQP has so many bytes for it, and Postgres no text with NUL.
    if "\0" in value or len(value.encode()) > CONTENT_TYPE_LIMIT:
        raise PayloadError(
            f"header {CONTENT_TYPE!r}: a content type has at most {CONTENT_TYPE_LIMIT} bytes in UTF-8, without NUL, "
            f"not {value!r:.60}"
        )
    return value


def checked_key(key: object) -> str | None:
    """Return a key as it is stored.

    Raises:
        PayloadError: it is none, too long, or cannot be stored.
    """
    if key is None:
        return None
    if isinstance(key, bytes):
        if len(key) <= KEY_LIMIT:
            return key_text(key)
    elif is_text(key) and "\0" not in key and len(key.encode()) <= KEY_LIMIT:
        return key_text(key)
    raise PayloadError(
        f"a message key is text of at most {KEY_LIMIT} bytes in UTF-8, without NUL and lone surrogates, or that many "
        f"bytes, not {key!r:.60}"
    )


def is_text(value: object) -> TypeGuard[str]:
    """Tell whether a value is text that can be written in UTF-8."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def defect(envelope: Envelope) -> str | None:
    """Say why no service can take a message in, if so: a malformed `scoop-*` header, or text that cannot be stored."""
    return _malformed_header(envelope) or unstorable(envelope)


def _malformed_header(envelope: Envelope) -> str | None:
    for name, is_right, otherwise in _RULES:
        value = envelope.headers.get(name)
        if value is not None and not is_right(value):
            return f"its header {name} {otherwise}"
    return None


def unstorable(envelope: Envelope) -> str | None:
    """Say what in a message is text that Postgres cannot hold, or None."""
    texts = {
        "topic": envelope.topic,
        "key": envelope.key,
        "content type": envelope.content_type,
        f"header {CONTEXT}": envelope.headers.get(CONTEXT),
        f"header {LAUNCHED_AT}": envelope.headers.get(LAUNCHED_AT),
        f"header {DEADLINES}": envelope.headers.get(DEADLINES),
        f"header {REPLY_TO}": envelope.headers.get(REPLY_TO),
    }
    for what, value in texts.items():
        if value is not None and ("\0" in value or not is_text(value)):
            return f"its {what} is no text that can be stored: it holds NUL, or bytes that are no UTF-8"
    return None


def _are_deadlines(value: str) -> bool:
    try:
        return Deadlines.from_json(json.loads(value)) is not None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return False


def _are_pairs(value: str) -> bool:
    try:
        pairs = json.loads(value)
    except (ValueError, RecursionError):
        return False
    return isinstance(pairs, list) and all(isinstance(pair, list) and _is_pair(pair) for pair in pairs)


def _is_pair(pair: list[object]) -> bool:
    """Tell whether these are a service and a saga, perhaps the id of a home and its control topic, and more."""
    if len(pair) < _PAIR:
        return False
    names, (home, reply_to) = pair[:_PAIR], [*pair[_PAIR:], None, None][:_PAIR]
    return (
        all(is_text(name) and "\0" not in name for name in names)
        and (home is None or (isinstance(home, str) and id_of(home) is not None))
        and (reply_to is None or (is_text(reply_to) and "\0" not in reply_to and is_control_topic(reply_to)))
    )


def _is_json_object(value: str) -> bool:
    try:
        return isinstance(json.loads(value), dict)
    except (ValueError, RecursionError):
        return False


_RULES: Sequence[tuple[str, Callable[[str], bool], str]] = (
    (ID, lambda value: id_of(value) is not None, "is no UUID"),
    (HOME, lambda value: id_of(value) is not None, "is no UUID"),
    (LINEAGE, lambda value: _LINEAGE.fullmatch(value) is not None, "is no list of run ids"),
    (EXPECTS, _are_pairs, "is no list of services and sagas"),
    (REPLY_TO, is_control_topic, "is no control topic"),
    (CONTEXT, _is_json_object, "is no JSON object"),
    (LAUNCHED_AT, _is_json_object, "is no JSON object"),
    (DEADLINES, _are_deadlines, "holds no deadlines"),
)
"""What a header of ours has to be."""
