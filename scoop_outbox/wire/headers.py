"""What scoop_outbox adds to a message on the wire, and how a message from the wire is read. See docs/protocol.md.

Everything of ours is in headers whose names start with `scoop-`; topic, key and body are the user's. The text of
headers and keys is UTF-8; bytes that are not come through unharmed, in a form that can be stored as text.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping

from scoop_outbox.message import Envelope

PREFIX = "scoop-"

ID = "scoop-id"
HOME = "scoop-home"
TOPIC = "scoop-topic"
LINEAGE = "scoop-lineage"
CONTEXT = "scoop-context"
LAUNCHED_AT = "scoop-launched-at"
DEADLINES = "scoop-deadlines"
EXPECTS = "scoop-expects"
"""Which sagas the launching home waits for: a JSON list of lists of a service, a saga, the id of a home and its topic.

Those of its own home are in it, too: another one that has the same service may receive the message, and passes it on. A
list without an id means whichever home takes the message in.
"""
REPLY_TO = "scoop-reply-to"
"""The control topic on which the launching home is told of them."""
SIGNATURE = "scoop-signature"
"""That somebody has sent the message who has one of the keys of homes that cooperate; see `signature`."""

CONTENT_TYPE = "content-type"
"""What a launcher calls the media type of a body in its headers; at the broker it is where programs look for it."""

_EVENT_ID, _EVENT_SOURCE = "ce_id", "ce_source"
_ESCAPE = "\\x"


def text(value: bytes) -> str:
    """Return a header's value as text. Bytes that are no UTF-8 become lone surrogates, as in Python's file names."""
    return value.decode("utf-8", "surrogateescape")


def octets(value: str) -> bytes:
    """Return the bytes that `text` was given, or the UTF-8 of any other text."""
    return value.encode("utf-8", "surrogateescape")


def key_text(key: str | bytes) -> str:
    r"""Return a key as text that Postgres can store: itself, or, if it is binary, `\x` and hexadecimal digits."""
    value = key.encode() if isinstance(key, str) else key
    try:
        plain = value.decode()
    except UnicodeDecodeError:
        return _ESCAPE + value.hex()
    return _ESCAPE + value.hex() if "\0" in plain or plain.startswith(_ESCAPE) else plain


def key_octets(key: str) -> bytes:
    """Return the bytes of a key in the form of `key_text`."""
    return bytes.fromhex(key.removeprefix(_ESCAPE)) if key.startswith(_ESCAPE) else key.encode()


def key_seen(key: str | None) -> str | bytes | None:
    """Return a key in the form of `key_text` as handlers see it: text, or bytes if it is binary."""
    if key is None or not key.startswith(_ESCAPE):
        return key
    value = key_octets(key)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def outgoing(envelope: Envelope) -> dict[str, str]:
    """Return the headers that an adapter writes: those of the envelope, the message's id, and where it is published."""
    return {**envelope.headers, ID: envelope.id, TOPIC: envelope.topic}


def event_id(headers: Mapping[str, str]) -> str | None:
    """Return the identity that a CloudEvents producer gave a message, if it did: unique within its source."""
    one, source = headers.get(_EVENT_ID), headers.get(_EVENT_SOURCE, "")
    # Either may hold whatever could stand between them.
    return None if one is None else f"{len(source)}\n{source}{one}"


def derived_id(*parts: str | bytes, milliseconds: int | None = None) -> str:
    """Return the id of a message that was published without one: the same for the same parts, always.

    Args:
        parts: what tells this message from every other.
        milliseconds: when it was published, since 1970: ids then sort by time, as those of our own messages do.
    """
    digest = hashlib.sha256()
    for part in parts:
        raw = octets(part) if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "big") + raw)
    value = int.from_bytes(digest.digest()[:16], "big")
    if milliseconds is not None and 0 <= milliseconds < 1 << 48:
        value = milliseconds << 80 | value & (1 << 80) - 1
    # Version 8 of RFC 9562: made in a way of our own.
    return str(uuid.UUID(int=value & ~(0xF << 76) & ~(0b11 << 62) | 8 << 76 | 0b10 << 62))


def run_id(message: uuid.UUID, service: str, saga: str) -> uuid.UUID:
    """Return the id of the run of a saga for a message, as whoever takes the message in computes it."""
    digest = hashlib.md5(f"{message}\n{len(service)}\n{service}{saga}".encode(), usedforsecurity=False).hexdigest()
    return uuid.UUID(f"{str(message)[:19]}8{digest[:15]}")


def storable(value: str) -> str:
    """Return text with what Postgres cannot hold written as Python would write it."""
    return value.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


def id_of(value: str) -> uuid.UUID | None:
    """Return the UUID that a header holds, or None when it holds none."""
    try:
        return uuid.UUID(value)
    except ValueError:
        return None
