"""Messages: what is launched, published and handled.

A body is bytes and a content type. Plain Python values travel as JSON; bytes travel untouched, so that
Avro or Protobuf topics work as they are.
"""

from __future__ import annotations

import builtins
import dataclasses
import json
import os
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, overload

from scoop_outbox._forks import begins_anew
from scoop_outbox._generics import T, T_co
from scoop_outbox.errors import DefinitionError, PayloadError
from scoop_outbox.payloads.types import (
    MisfitError,
    PayloadType,
    UnusableTypeError,
    payload_type,
    struct_values,
    type_name,
)

JSON = "application/json"
BYTES = "application/octet-stream"

NAME_LIMIT = 255
"""Longest name in bytes of UTF-8: what AMQP's short strings carry, the narrowest of the transports."""

_ABOVE_TOPIC = 2
"""Frames from `Topic.__post_init__` to the code that makes a topic, whose local classes it may use."""


def checked_name(kind: str, name: object) -> str:
    """Return `name` if it can be used as the name of a `kind` (a topic, saga, step or service).

    Raises:
        DefinitionError: `name` is not text, is empty, longer than `NAME_LIMIT` bytes, or holds a character
            that cannot be stored (NUL, lone surrogates).
    """
    if not isinstance(name, str):
        raise DefinitionError(f"a {kind} name is text, not {type(name).__name__}: {name!r}")
    if not name.strip():
        raise DefinitionError(f"a {kind} name must not be empty: give it at least one visible character")
    if "\0" in name:
        raise DefinitionError(f"the {kind} name {name!r} holds a NUL character, which Postgres cannot store")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise DefinitionError(f"the {kind} name {name!r} holds a lone surrogate and is not valid text") from None
    if size > NAME_LIMIT:
        raise DefinitionError(
            f"the {kind} name {name[:40]!r}... takes {size} bytes in UTF-8, more than the limit of {NAME_LIMIT}"
        )
    return name


class _Uuid7:
    """UUIDs of version 7 (RFC 9562) that ascend within a process, also within one millisecond."""

    def __init__(self) -> None:
        self._last = 0
        self.begin_anew()
        begins_anew(self)

    def begin_anew(self) -> None:
        """Have a lock that no thread of another process holds."""
        self._lock = threading.Lock()

    def __call__(self) -> uuid.UUID:
        tail = int.from_bytes(os.urandom(8), "big")
        # 48 bits of milliseconds and 12 bits that count within one: read as one 60-bit clock, it only has to grow.
        ticks = (time.time_ns() // 1_000_000) << 12 | tail >> 53
        with self._lock:
            self._last = ticks = max(ticks, self._last + 1)
        high = (ticks >> 12) << 16 | 0x7000 | ticks & 0xFFF
        return uuid.UUID(int=high << 64 | 0b10 << 62 | tail & 0x3FFF_FFFF_FFFF_FFFF)


uuid7 = _Uuid7()


@dataclass(frozen=True)
class Topic(Generic[T]):
    """A topic whose payloads have a type.

    What does not fit it, or would arrive as something of another class, is refused at the launch. Fields that the type
    does not have are ignored in what arrives. Those that it leaves out itself, excluded ones for example, arrive as
    their defaults.

    Args:
        name: the topic as the broker knows it.
        type: what `scope.launch` accepts for this topic, and what `message.payload` is for its sagas: a dataclass, a
            pydantic model, a TypedDict, or what is made of these with lists, unions, `datetime`, `UUID`, `Decimal`,
            `Enum` and the like, by pydantic; or a struct of msgspec. Install `scoop-outbox[pydantic]` or msgspec.
        require_handlers: whether a launch fails if no saga is subscribed to it.
        handled_by: sagas, or their names, that have to be subscribed to it, or a launch fails.

    Raises:
        DefinitionError: the name, the type or a saga's name cannot be used, or pydantic is not installed.
    """

    name: str
    type: Any
    require_handlers: bool = False
    handled_by: Sequence[Any] = ()
    _payloads: PayloadType = field(init=False, repr=False, compare=False)

    if TYPE_CHECKING:  # a union or a list of classes is no class

        @overload
        def __init__(
            self,
            name: str,
            type: builtins.type[T],
            require_handlers: bool = ...,  # noqa: FBT001 - as the dataclass has it
            handled_by: Sequence[Any] = ...,
            timeout: float | timedelta | None = ...,
            deadline: datetime | None = ...,
            rollback_timeout: float | timedelta | None = ...,
        ) -> None: ...
        @overload
        def __init__(
            self: Topic[Any],
            name: str,
            type: Any,
            require_handlers: bool = ...,  # noqa: FBT001 - as above
            handled_by: Sequence[Any] = ...,
            timeout: float | timedelta | None = ...,
            deadline: datetime | None = ...,
            rollback_timeout: float | timedelta | None = ...,
        ) -> None: ...
        def __init__(self, *_: Any, **__: Any) -> None: ...

    def __post_init__(self) -> None:
        """Refuse names and types that could never work."""
        checked_name("topic", self.name)
        object.__setattr__(self, "handled_by", saga_names(self.handled_by))
        try:
            object.__setattr__(self, "_payloads", payload_type(self.type, _ABOVE_TOPIC))
        except UnusableTypeError as error:
            raise DefinitionError(f"topic {self.name!r}: {error}") from error

    def encode(self, payload: T) -> str:
        """Return a payload as JSON text.

        Raises:
            PayloadError: it is not of the type; the message names fields and rules, and no values.
        """
        expected = self._payloads.expected
        if expected is not None and not isinstance(payload, expected):
            raise PayloadError(f"topic {self.name!r} carries {type_name(self.type)}, not {type(payload).__qualname__}")
        what = f"the payload for topic {self.name!r}"
        try:
            text = dump_json(self._payloads.dump(payload), what)
            self._payloads.check(payload, text.encode())
        except MisfitError as error:
            raise PayloadError(f"{what} does not fit {type_name(self.type)}: {error}") from None
        return text

    def decode(self, body: bytes) -> T:
        """Return the payload in `body`.

        Raises:
            PayloadError: the bytes are not what the type expects; the message names fields and rules, and no values.
        """
        try:
            payload: T = self._payloads.load(body)
        except MisfitError as error:
            # Without its cause, which quotes the body: failures are stored with theirs.
            raise PayloadError(
                f"a message on topic {self.name!r} does not fit {type_name(self.type)}: {error}"
            ) from None
        return payload


@dataclass(frozen=True)
class Draft:
    """A message that is to be launched, with others: what `Scoop.launch` takes, for `Scoop.launch_many`.

    Attributes:
        topic: a name, or a typed topic.
        payload: JSON values, a dataclass, a pydantic model, or bytes.
        key: orders the message among others of the same key.
        context: what its handlers find in `scope.context`.
        headers: text headers that travel with the message.
        id: the message's id, a UUID of the caller's; one is drawn unless given.
        require_handlers: refuse to launch if no saga is subscribed to the topic.
        handled_by: sagas, or their names; refuse to launch if one of them is not subscribed to it.
        timeout: seconds within which its hierarchy has to commit, from the launch on.
        deadline: when it has to have committed, with a time zone.
        rollback_timeout: seconds that a rollback of it may take.
        dedup_key: stands for the id, on this topic.
    """

    topic: str | Topic[Any]
    payload: Any
    key: str | bytes | None = None
    context: Mapping[str, Any] | None = None
    headers: Mapping[str, str] | None = None
    id: uuid.UUID | None = None
    require_handlers: bool = False
    handled_by: Sequence[Any] = ()
    timeout: float | timedelta | None = None
    deadline: datetime | None = None
    rollback_timeout: float | timedelta | None = None
    dedup_key: str | None = None

    if TYPE_CHECKING:  # a class of no type of its own: mypy would not look at payloads in a list of them, otherwise

        def __init__(
            self,
            topic: str | Topic[T],
            payload: T,
            key: str | bytes | None = ...,
            context: Mapping[str, Any] | None = ...,
            headers: Mapping[str, str] | None = ...,
            id: uuid.UUID | None = ...,  # noqa: A002 - as the dataclass has it
            require_handlers: bool = ...,  # noqa: FBT001 - as the dataclass has it
            handled_by: Sequence[Any] = ...,
            timeout: float | timedelta | None = ...,
            deadline: datetime | None = ...,
            rollback_timeout: float | timedelta | None = ...,
            dedup_key: str | None = ...,
        ) -> None: ...


def saga_names(sagas: Sequence[Any]) -> tuple[str, ...]:
    """Return the checked names of sagas, or of what is their names already.

    Raises:
        DefinitionError: one is neither.
    """
    if isinstance(sagas, str):
        raise DefinitionError(f"handled_by={sagas!r} is text: pass a list of sagas, or of their names")
    return tuple(checked_name("saga", getattr(one, "name", one)) for one in sagas)


def topic_name(topic: str | Topic[Any]) -> str:
    """Return the checked name of a plain or typed topic."""
    return topic.name if isinstance(topic, Topic) else checked_name("topic", topic)


def encode(topic: str | Topic[Any], payload: Any) -> tuple[bytes, str]:
    """Return `payload` as a body and its content type.

    Raises:
        PayloadError: the payload is not JSON-compatible, bytes, a dataclass or a pydantic model, or is not of the
            type that the topic declares.
    """
    if isinstance(topic, Topic):
        return topic.encode(payload).encode(), JSON
    if isinstance(payload, bytes | bytearray | memoryview):
        return bytes(payload), BYTES
    return dump_json(payload, f"the payload for topic {topic_name(topic)!r}").encode(), JSON


def dump_json(value: Any, what: str) -> str:
    """Return `value` as JSON in plain ASCII, so that NUL and lone surrogates can be stored.

    Raises:
        PayloadError: naming `what`, the value that cannot be encoded.
    """
    try:
        return json.dumps(value, default=_jsonable, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise PayloadError(
            f"{what} cannot be encoded as JSON: {error}. Use plain values, a dataclass, a pydantic model, or bytes"
        ) from error


def _jsonable(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json")
    if hasattr(type(value), "__struct_fields__"):
        return struct_values(value)
    instead = next((text for kinds, text in _INSTEAD if isinstance(value, kinds)), "")
    raise TypeError(f"{type(value).__qualname__} is not JSON serializable{instead}")


_TYPED = "give the topic a type, Topic(name, TheType), which writes it and reads it again"
_INSTEAD: tuple[tuple[Any, str], ...] = (
    ((datetime, date, time_of_day), f": pass value.isoformat(), or {_TYPED}"),
    (timedelta, f": pass value.total_seconds(), or {_TYPED}"),
    ((uuid.UUID, Decimal), f": pass str(value), or {_TYPED}"),
    (Enum, f": pass value.value, or {_TYPED}"),
    ((set, frozenset), f": pass sorted(value), or {_TYPED}"),
    ((bytes, bytearray, memoryview), ": pass base64.b64encode(value).decode(), or the bytes alone as the payload"),
)
"""What to write instead of a value that JSON does not have. A reader without a type would get it back as text."""


def is_json(content_type: str) -> bool:
    """Tell whether bodies of a media type are JSON."""
    media = content_type.partition(";")[0].strip().lower()
    return media == JSON or media.endswith("+json")


@dataclass(frozen=True)
class Message(Generic[T_co]):
    """A message as its handlers see it.

    Attributes:
        id: UUIDv7 given at launch; the same in every service that handles the message.
        topic: where it was published.
        key: what orders it (messages of one key keep their order), or None. Text; bytes if it is no UTF-8.
        body: the bytes as published.
        content_type: media type of the body; empty when the producer did not say.
        headers: what the launcher passed along; ours are left out.
        created_at: when this home took the message in, by the database's clock.
    """

    id: uuid.UUID
    topic: str
    key: str | bytes | None
    body: bytes
    content_type: str
    headers: Mapping[str, str]
    created_at: datetime
    schema: Topic[Any] | None = field(default=None, repr=False, compare=False)

    @property
    def payload(self) -> T_co:
        """The decoded body: the topic's type, what JSON holds, or the bytes of any other content type.

        A body of unknown content type is decoded if it is JSON. Decoded anew at each access, so that a handler that
        changes it cannot surprise another one.

        Raises:
            PayloadError: the body does not fit its content type or the topic's type.
        """
        try:
            payload: T_co = _decode(self.body, self.content_type, self.schema)
        except ValueError as error:
            raise PayloadError(
                f"message {self.id} on topic {self.topic!r} says it is {JSON} but does not parse"
            ) from error
        return payload


def _decode(body: bytes, content_type: str, schema: Topic[Any] | None) -> Any:
    if schema is not None:
        return schema.decode(body)
    if content_type and not is_json(content_type):
        return body
    try:
        return json.loads(body)
    except ValueError:
        if not content_type:
            return body
        raise


class Envelope(NamedTuple):
    """A message on its way: what a relay hands to a broker, and what a broker hands to intake.

    Attributes:
        id: the message's id: a UUID in its usual form, as it is written into a header.
        topic: where it is published.
        key: what orders it, or None; a binary key in the form of `headers.key_text`.
        body: bytes, never looked into.
        content_type: media type of the body.
        headers: the launcher's headers and ours, which start with `scoop-`.
    """

    id: str
    topic: str
    key: str | None
    body: bytes
    content_type: str
    headers: Mapping[str, str]

    def check(self, schema: Topic[Any] | None) -> None:
        """See whether a saga could read the body.

        Args:
            schema: the typed topic that the saga listens on, if it is one.

        Raises:
            PayloadError: it could not; the message says why.
        """
        try:
            _decode(self.body, self.content_type, schema)
        except ValueError as error:
            raise PayloadError(f"its content type is {self.content_type}, but it does not parse as JSON") from error
