"""A message as an adapter got it from its broker becomes a delivery: with an identity, or with a defect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scoop_outbox.broker.protocol import Delivery
from scoop_outbox.message import Envelope
from scoop_outbox.wire import headers as wire
from scoop_outbox.wire import validation


def delivery(
    *,
    topic: str,
    key: bytes | None,
    body: bytes,
    content_type: str | None,
    headers: Mapping[str, str],
    otherwise: str,
    position: str,
    tag: Any,
    published: str | None = None,
    canonical: str | None = None,
    defect: str | None = None,
) -> Delivery:
    """Return a delivery whose message is the same one whenever it comes again.

    Its id is the one in our header, or is made of the identity that a CloudEvents producer gave it, or is `otherwise`.

    What says that it was published elsewhere is no message of ours, whatever else it says. Stream processors
    pass on the headers of what they read with what they write: taken for the message that they read, it was thrown
    away as one that had come before, or its saga ran with the other body.

    Args:
        topic: as sagas name it.
        key: its bytes, if there is one.
        body: bytes, never looked into.
        content_type: media type of the body, if the producer said it.
        headers: all of them, as text in the form of `headers.text`.
        otherwise: the id that the message has without any of its own, from `headers.derived_id`.
        position: where it stood, for people.
        tag: what the adapter needs to acknowledge it.
        published: where it comes from, as the adapter's publisher writes that into our header; None is the topic.
        canonical: the topic in the one form that all ways to write it have; None when there is only one way.
        defect: why it cannot be taken in, if the adapter knows already.
    """
    where = topic if published is None else published
    if headers.get(wire.TOPIC, where) != where:
        headers = {name: value for name, value in headers.items() if not name.startswith(wire.PREFIX)}
    known = headers.get(wire.ID)
    foreign = wire.event_id(headers)
    message_id = otherwise
    if known is not None:
        given = wire.id_of(known)
        message_id = otherwise if given is None else str(given)
    elif foreign is not None:
        # Of a topic: whoever copies an event to another one with its headers wants it handled there, too.
        message_id = wire.derived_id("cloudevents", topic if canonical is None else canonical, foreign)
    text = None if key is None else wire.key_text(key)
    envelope = Envelope(message_id, topic, text, body, content_type or "", dict(headers))
    return Delivery(envelope, position, defect or validation.defect(envelope), tag)
