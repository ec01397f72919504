"""A message that one home of a service has received and another one is to handle, as it is said to that one.

Homes of one service share its consumer group or queue: whichever of them the broker gives a message to passes it on to
where it belongs. It is whole, with its own headers and their signature.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scoop_outbox.message import Envelope
from scoop_outbox.wire.members import MalformedControl, is_storable, object_of, text_of, uuid_of


@dataclass(frozen=True, slots=True)
class Forwarded:
    """A message that is passed on.

    Attributes:
        service: whose sagas are to handle it.
        envelope: the message, as it was received.
        elsewhere: sagas of the service that handle it in other homes.
    """

    service: str
    envelope: Envelope
    elsewhere: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the members of the control message."""
        one = self.envelope
        message = {
            "id": one.id,
            "topic": one.topic,
            "key": one.key,
            "contentType": one.content_type,
            "headers": dict(one.headers),
            "body": base64.b64encode(one.body).decode(),
        }
        return {"service": self.service, "message": message, "elsewhere": list(self.elsewhere)}


def read_forwarded(said: Mapping[str, Any]) -> Forwarded:
    """Read the members of the control message.

    Raises:
        MalformedControl: they are none.
    """
    message = object_of(said.get("message"), "message")
    headers = object_of(message.get("headers"), "headers")
    if not all(isinstance(value, str) for value in headers.values()):
        raise MalformedControl("headers holds what is no text")
    content_type = message.get("contentType")
    if not isinstance(content_type, str):
        raise MalformedControl("contentType is no text")
    envelope = Envelope(
        str(uuid_of(message, "id")),
        text_of(message, "topic"),
        None if message.get("key") is None else _key(message["key"]),
        _body(message),
        content_type,
        headers,
    )
    elsewhere = said.get("elsewhere") or []
    if not isinstance(elsewhere, list) or not all(is_storable(saga) for saga in elsewhere):
        raise MalformedControl("elsewhere is no list of texts")
    return Forwarded(text_of(said, "service"), envelope, tuple(elsewhere))


def _key(value: object) -> str:
    if not isinstance(value, str):  # an empty one is a key, too
        raise MalformedControl("key is no text")
    return value


def _body(message: Mapping[str, Any]) -> bytes:
    try:
        return base64.b64decode(message.get("body", ""), validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise MalformedControl("body is no base64") from None
