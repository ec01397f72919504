"""The scope: what a callback of a saga is handed, next to its message."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from scoop_outbox.context import Context
from scoop_outbox.errors import PayloadError, ScopeEnded
from scoop_outbox.failure import Frame
from scoop_outbox.headers import CONTENT_TYPE, PREFIX, key_text
from scoop_outbox.limits import Limits
from scoop_outbox.message import Topic, dump_json, encode, saga_names, topic_name, uuid7

if TYPE_CHECKING:  # only the types of what the drivers put in; the scope itself does no I/O
    from psycopg import AsyncConnection, Connection
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

KEY_LIMIT = 1024
CONTENT_TYPE_LIMIT = 255

_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Emission:
    """A message that a step launched, as data: it is written when the step's transaction ends.

    Attributes:
        awaited: False for a message launched on the global scope, which starts a hierarchy of its own.
        context: what the handlers find in `scope.context`, as JSON text.
        launched_at: the line of the launching code; it shows up in the traceback of a failure below it.
        handlers: the sagas that have to be subscribed, none by name if it may be anyone; None if nobody has to be.
        given: whether the id is the caller's: then the message is launched once, however often it is tried.
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
    limits: Limits = _LIMITS,
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
        limits: how large body and context may be.

    Raises:
        DefinitionError: the topic's name, or one in `handled_by`, cannot be used.
        PayloadError: payload, key or a header cannot be encoded, payload or context are too large, or the id is none.
    """
    body, content_type = encode(topic, payload)
    limits.check(len(body), f"the payload for topic {topic_name(topic)!r}")
    limits.check(len(context or ""), "the context")
    others = {}
    for name, value in (headers or {}).items():
        if not _is_text(name) or not _is_text(value):
            raise PayloadError(f"header {name!r}: names and values are text; encode other values yourself")
        if name.lower().startswith(PREFIX):
            raise PayloadError(f"header {name!r}: names that start with {PREFIX!r} are ours; use another name")
        if name.lower() == CONTENT_TYPE:
            content_type = _checked_content_type(value)
        else:
            others[name] = value
    return Emission(
        uuid7() if message_id is None else _checked_id(message_id),
        topic_name(topic),
        _checked_key(key),
        body,
        content_type,
        others,
        context,
        awaited,
        Frame.of_caller(depth + 1),
        _required(topic, require_handlers, handled_by),
        message_id is not None,
    )


def _checked_id(message_id: object) -> uuid.UUID:
    if isinstance(message_id, uuid.UUID) and message_id.int:
        return message_id
    raise PayloadError(f"a message's id is a uuid.UUID, of any version but the nil one, not {message_id!r:.60}")


def _checked_content_type(value: str) -> str:
    # AMQP has so many bytes for it, and Postgres no text with NUL.
    if "\0" in value or len(value.encode()) > CONTENT_TYPE_LIMIT:
        raise PayloadError(
            f"header {CONTENT_TYPE!r}: a content type has at most {CONTENT_TYPE_LIMIT} bytes in UTF-8, without NUL, "
            f"not {value!r:.60}"
        )
    return value


def _required(
    topic: str | Topic[Any], require_handlers: object, handled_by: Sequence[object]
) -> tuple[str, ...] | None:
    """Return who has to be subscribed, to the topic as it is declared and for this launch."""
    names = saga_names(handled_by)
    if isinstance(topic, Topic):
        names = (*topic.handled_by, *names)
        require_handlers = require_handlers or topic.require_handlers
    return names if names or require_handlers else None


def _checked_key(key: object) -> str | None:
    if key is None:
        return None
    if isinstance(key, bytes):
        if len(key) <= KEY_LIMIT:
            return key_text(key)
    elif _is_text(key) and "\0" not in key and len(key.encode()) <= KEY_LIMIT:
        return key_text(key)
    raise PayloadError(
        f"a message key is text of at most {KEY_LIMIT} bytes in UTF-8, without NUL and lone surrogates, or that many "
        f"bytes, not {key!r:.60}"
    )


def _is_text(value: object) -> TypeGuard[str]:
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


@dataclass(frozen=True, slots=True)
class Result:
    """What a committed child left with `scope.set_result` (behaviour Q52)."""

    saga: str
    message_id: uuid.UUID
    value: Any


class Scope:
    """One call of one callback of a run: its transaction, and what it may launch.

    Everything done through it commits or vanishes with the step. It ends with its callback: `session`, `connection`,
    `context`, `launch`, `launch_on_global_scope` and `set_result` raise `ScopeEnded` from then on, and so does what was
    taken from it before. The plain values stay readable.

    Attributes:
        run_id: the run that this call belongs to.
        saga: its saga's name.
        step: the step's name.
        lineage: run ids from the root of the hierarchy to this run.
        results: results of the committed children emitted since the run was last suspended, in order of emission.
        iteration: how often in a row this step has been executed before; callbacks that belong to a step instance
            see that instance's number.
        attempt: how often this very callback has been called before for this instance.
        idempotency_key: the same text each time this callback is called for this step instance, however often it
            is tried: hand it to systems outside the database, where a crash may repeat a call.
    """

    def __init__(
        self,
        *,
        run_id: uuid.UUID,
        saga: str,
        step: str,
        lineage: Sequence[uuid.UUID],
        context: Context,
        results: Sequence[Result],
        iteration: int,
        attempt: int,
        idempotency_key: str,
        limits: Limits = _LIMITS,
    ) -> None:
        """Called by the drivers, and by tests of steps."""
        self.run_id = run_id
        self.saga = saga
        self.step = step
        self.lineage = tuple(lineage)
        self._context = context
        self.results = tuple(results)
        self.iteration = iteration
        self.attempt = attempt
        self.idempotency_key = idempotency_key
        self.emissions: list[Emission] = []
        self.result: str | None = None
        self._ended = False
        self._limits = limits
        self._launched = 0

    @property
    def ended(self) -> bool:
        """Whether the callback has returned or raised."""
        return self._ended

    def end(self) -> None:
        """Called by the drivers when the callback has ended."""
        self._ended = True

    def check(self) -> None:
        """Refuse what comes too late.

        Raises:
            ScopeEnded: the callback has ended.
        """
        if self._ended:
            raise self.late()

    def owns(self, joined: object) -> bool:  # noqa: ARG002 - drivers know
        """Tell whether a session or connection works in the step's transaction; for `Scoop.launch`."""
        return False

    def late(self) -> ScopeEnded:
        """Return what is wrong with using the scope, or what was taken from it, after its end."""
        return ScopeEnded.of(self.step, self.saga, self.run_id)

    @property
    def context(self) -> Context:
        """The cooperation context, a mutable mapping."""
        self.check()
        return self._context

    def left_context(self) -> str | None:
        """Return the context as JSON text, for the drivers, also after the end.

        Raises:
            PayloadError: it cannot be stored, or is too large.
        """
        text = self._context.dumps()
        self._limits.check(len(text or ""), "the context")
        return text

    def launch(
        self,
        topic: str | Topic[Any],
        payload: Any,
        *,
        key: str | bytes | None = None,
        context: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        require_handlers: bool = False,
        handled_by: Sequence[Any] = (),
    ) -> uuid.UUID:
        """Launch a message: the run's next step starts when all its handlers, and all below them, have finished.

        A plain call in both colours: it appends to a list, and the message is written with the step's transaction.

        Args:
            topic: a name, or a typed topic.
            payload: JSON values, a dataclass, a pydantic model, a msgspec struct, or bytes.
            key: orders the message among others of the same key: text, or the bytes of a binary key.
            context: values on top of this run's context, for the handlers of this message.
            headers: text headers that travel with the message.
            require_handlers: the step fails with `UnhandledMessage` if no saga is subscribed to the topic.
            handled_by: sagas, or their names; the step fails with `UnhandledMessage` if one of them is not subscribed.

        Returns:
            The message's id.

        Raises:
            DefinitionError: the topic's name cannot be used.
            PayloadError: payload, key, context or a header cannot be encoded, or is larger than `max_body`; or this
                step launches more than a statement can hold.
            ScopeEnded: the callback has ended.
        """
        text, required = self.context.dumps(**(context or {})), (require_handlers, handled_by)
        return self._launch(topic, payload, key, text, headers, awaited=True, required=required)

    def launch_on_global_scope(
        self,
        topic: str | Topic[Any],
        payload: Any,
        *,
        key: str | bytes | None = None,
        context: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        require_handlers: bool = False,
        handled_by: Sequence[Any] = (),
    ) -> uuid.UUID:
        """Launch a message that starts a hierarchy of its own: nobody waits for it, and no rollback reaches it.

        It is still written with the step's transaction: if the step fails, it was never launched.
        Arguments, return value and errors are those of `launch`; its context holds only what is passed.
        """
        own = None if context is None else dump_json(dict(context), "the context")
        required = require_handlers, handled_by
        return self._launch(topic, payload, key, own, headers, awaited=False, required=required)

    def _launch(
        self,
        topic: str | Topic[Any],
        payload: Any,
        key: str | bytes | None,
        context: str | None,
        headers: Mapping[str, str] | None,
        *,
        awaited: bool,
        required: tuple[bool, Sequence[Any]],
    ) -> uuid.UUID:
        self.check()
        require_handlers, handled_by = required
        launched = emission(
            topic,
            payload,
            key=key,
            headers=headers,
            context=context,
            awaited=awaited,
            depth=2,
            require_handlers=require_handlers,
            handled_by=handled_by,
            limits=self._limits,
        )
        self._limits.check_together(self._launched + len(launched.body), self.step)
        self._launched += len(launched.body)
        self.emissions.append(launched)
        return launched.message_id

    def set_result(self, value: Any) -> None:
        """Leave a JSON value for the parent's next step, which finds it in `scope.results`; the last call counts.

        Raises:
            PayloadError: the value cannot be encoded as JSON, or is larger than `max_body`.
            ScopeEnded: the callback has ended.
        """
        self.check()
        text = dump_json(value, "the result")
        self._limits.check(len(text), "the result")
        self.result = text

    @property
    def session(self) -> Any:
        """An SQLAlchemy session in the step's transaction: an `AsyncSession` in an `async def`, else a `Session`.

        It is flushed when the callback returns. Its `commit()` and `rollback()` reach as far as the session's own
        work: the step's transaction is ended by the engine.
        """
        raise RuntimeError("this scope is not bound to a database; a worker's driver makes one that is")

    @property
    def connection(self) -> Any:
        """The psycopg connection of the step's transaction: `AsyncConnection` in an `async def`, else `Connection`.

        Use `connection.transaction()` for savepoints; never commit or roll back the connection itself.
        """
        raise RuntimeError("this scope is not bound to a database; a worker's driver makes one that is")


class AsyncScope(Scope):
    """The scope of an `async def` callback; annotate with it to have `session` and `connection` typed."""

    if TYPE_CHECKING:

        @property
        def session(self) -> AsyncSession: ...  # noqa: D102
        @property
        def connection(self) -> AsyncConnection[Any]: ...  # noqa: D102


class BlockingScope(Scope):
    """The scope of a plain `def` callback; annotate with it to have `session` and `connection` typed."""

    if TYPE_CHECKING:

        @property
        def session(self) -> Session: ...  # noqa: D102
        @property
        def connection(self) -> Connection[Any]: ...  # noqa: D102
