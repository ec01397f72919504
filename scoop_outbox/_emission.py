"""What a step launches, checked and encoded: data, until the step's transaction writes it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from scoop_outbox._deadlines import NONE, Deadlines, Timeouts
from scoop_outbox.errors import DefinitionError, PayloadError
from scoop_outbox.failure import Frame
from scoop_outbox.message import Topic, encode, saga_names, topic_name, uuid7
from scoop_outbox.strategy import Participant
from scoop_outbox.wire.control import is_reserved
from scoop_outbox.wire.headers import CONTENT_TYPE, PREFIX
from scoop_outbox.wire.limits import Limits, written
from scoop_outbox.wire.validation import checked_content_type, checked_id, checked_key, is_text

DEFAULT_LIMITS = Limits()

DEDUPLICATION = uuid.UUID("7796022a-0694-4cd3-9c8f-d37fb6550c13")
"""What ids are made from that stand for a topic and a key of the caller's. Never changed: they are stored."""


@dataclass(frozen=True, slots=True)
class Emission:
    """A message that a step launched, as data: it is written when the step's transaction ends.

    Attributes:
        awaited: False for a message launched on the global scope, which starts a hierarchy of its own.
        context: what the handlers find in `scope.context`, as JSON text.
        launched_at: the line of the launching code; it shows up in the traceback of a failure below it.
        handlers: the sagas that have to be subscribed, none by name if it may be anyone; None if nobody has to be.
        given: whether the id is the caller's: then the message is launched once, however often it is tried.
        timeouts: what its launcher says about time.
        deadlines: what this comes to, together with what the launching run is bound by.
        expects: who is waited for, if the strategy of the launching saga says that, and not who is subscribed.
        child_deadline: by when its handlers have to have started, if the launching run has to look after that.
        dedup_key: what the id is made from, if the caller has given that.
    """

    message_id: uuid.UUID
    topic: str
    key: str | None
    body: bytes
    content_type: str
    headers: Mapping[str, str]
    context: str | None
    awaited: bool
    launched_at: Frame
    handlers: tuple[str, ...] | None = None
    given: bool = False
    timeouts: Timeouts | None = None
    deadlines: Deadlines = NONE
    child_deadline: datetime | None = None
    expects: tuple[Participant, ...] | None = None
    dedup_key: str | None = None

    @property
    def size(self) -> int:
        """How many bytes body, context and headers take in the statement that launches it."""
        around = sum(written(name) + written(value) for name, value in self.headers.items())
        return len(self.body) + written(self.context or "") + around


def emission(
    topic: str | Topic[Any],
    payload: Any,
    *,
    key: object,
    headers: Mapping[Any, Any] | None,
    context: str | None,
    awaited: bool,
    depth: int,
    require_handlers: bool = False,
    handled_by: Sequence[object] = (),
    message_id: object = None,
    dedup_key: str | None = None,
    timeouts: Timeouts | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Emission:
    """Check and encode one message to be launched.

    Args:
        topic: a name, or a typed topic.
        payload: JSON values, a dataclass, a pydantic model, a msgspec struct, or bytes.
        key: orders the message among others of the same key: text, or the bytes of a binary key.
        headers: text headers that travel with the message; `content-type` says what the body is instead of `payload`.
        context: the cooperation context of its handlers.
        awaited: whether the launching step's successor waits for it.
        depth: how many frames above the caller the launching code is.
        require_handlers: whether some saga has to be subscribed to the topic.
        handled_by: the sagas that have to be, or their names.
        message_id: the caller's id for it; one is drawn unless given.
        dedup_key: stands for the id, on this topic.
        timeouts: what the launcher says about time.
        limits: how large the body may be; the caller has checked the context.

    Raises:
        DefinitionError: the topic's name, or one in `handled_by`, cannot be used; homes speak on the topic; or id and
            `dedup_key` are both given.
        PayloadError: payload, key or a header cannot be encoded, the payload is too large, or id or `dedup_key` cannot
            be used.
    """
    _check_topic(topic)
    body, content_type = encode(topic, payload)
    limits.check(len(body), f"the payload for topic {topic_name(topic)!r}")
    others, said = _checked_headers(headers or {})
    return Emission(
        _message_id(topic_name(topic), message_id, dedup_key),
        topic_name(topic),
        checked_key(key),
        body,
        content_type if said is None else said,
        others,
        context,
        awaited,
        Frame.of_caller(depth + 1),
        _required(topic, require_handlers, handled_by),
        message_id is not None or dedup_key is not None,
        timeouts,
        dedup_key=dedup_key,
    )


def _check_topic(topic: str | Topic[Any]) -> None:
    if is_reserved(topic_name(topic)):
        raise DefinitionError(f"topic {topic_name(topic)!r} is what homes speak on: nobody else launches there")


def deduplicated_id(topic: str, dedup_key: str) -> uuid.UUID:
    """Return the id of the message that a `dedup_key` stands for on a topic: the same in every process, for ever."""
    return uuid.uuid5(uuid.uuid5(DEDUPLICATION, topic), dedup_key)


def _message_id(topic: str, message_id: object, dedup_key: object) -> uuid.UUID:
    if dedup_key is None:
        return uuid7() if message_id is None else checked_id(message_id)
    if message_id is not None:
        raise DefinitionError("pass id= or dedup_key=: a dedup_key stands for the id of a message on its topic")
    if not is_text(dedup_key) or not dedup_key:
        raise PayloadError(f"a dedup_key is text that is not empty and can be encoded, not {dedup_key!r:.60}")
    return deduplicated_id(topic, dedup_key)


def _checked_headers(headers: Mapping[Any, Any]) -> tuple[dict[str, str], str | None]:
    """Return the launcher's headers, and what they say the body is."""
    others: dict[str, str] = {}
    content_type = None
    for name, value in headers.items():
        if not is_text(name) or not is_text(value):
            raise PayloadError(f"header {name!r}: names and values are text; encode other values yourself")
        if name.lower().startswith(PREFIX):
            raise PayloadError(f"header {name!r}: names that start with {PREFIX!r} are ours; use another name")
        if name.lower() == CONTENT_TYPE:
            content_type = checked_content_type(value)
        else:
            others[name] = value
    return others, content_type


def _required(
    topic: str | Topic[Any], require_handlers: object, handled_by: Sequence[object]
) -> tuple[str, ...] | None:
    """Return who has to be subscribed, to the topic as it is declared and for this launch."""
    names = saga_names(handled_by)
    if isinstance(topic, Topic):
        names = (*topic.handled_by, *names)
        require_handlers = require_handlers or topic.require_handlers
    return names if names or require_handlers else None


class Emissions:
    """What one callback has launched so far, in order, and how large it may be.

    Args:
        limits: those of the service.
        launcher: who launches, in words, for errors.
    """

    def __init__(self, limits: Limits, launcher: str) -> None:
        """Hold nothing yet."""
        self.limits = limits
        self.launched: list[Emission] = []
        self._launcher = launcher
        self._size = 0

    def add(self, launched: Emission) -> None:
        """Take one more.

        Raises:
            PayloadError: together they are more than one statement can hold.
        """
        size = self._size + launched.size
        self.limits.check_together(size, f"{self._launcher} launches")
        self._size = size
        self.launched.append(launched)
