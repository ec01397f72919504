"""The scope: what a callback of a saga is handed, next to its message."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from scoop_outbox._deadlines import Timeouts
from scoop_outbox._emission import DEFAULT_LIMITS, Emission, Emissions, emission
from scoop_outbox._generics import T
from scoop_outbox.context import Context
from scoop_outbox.errors import ScopeEnded, StepError
from scoop_outbox.message import Topic, dump_json
from scoop_outbox.wire.limits import Limits

if TYPE_CHECKING:  # only the types of what the drivers put in; the scope itself does no I/O
    from psycopg import AsyncConnection, Connection
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session


@dataclass(frozen=True, slots=True)
class Result:
    """What a committed child left with `scope.set_result` (behaviour Q52)."""

    saga: str
    message_id: uuid.UUID
    value: Any


_UNBOUND = "this scope is not bound to a database; a worker's driver makes one that is"


@dataclass(slots=True)
class _Left:
    """What a callback leaves, besides what it launches, and what its run is like."""

    undoes: bool
    late: bool
    result: str | None = None
    asks: Timeouts | None = None


class Scope:
    """One call of one callback of a run: its transaction, and what it may launch.

    Everything done through it commits or vanishes with the step. It ends with its callback: `session`, `connection`,
    `context`, `launch`, `launch_on_global_scope`, `set_deadline`, `set_result` and `checkpoint` raise `ScopeEnded` from
    then on, and so does what was taken from it before. The plain values stay readable.

    Attributes:
        run_id: the run that this call belongs to.
        saga: its saga's name.
        step: the step's name.
        lineage: run ids from the root of the hierarchy to this run.
        results: results of the committed children emitted since the run was last suspended, in order of emission.
        iteration: how often in a row this step has been executed before; callbacks that belong to a step instance
            see that instance's number.
        attempt: how often this very callback has been called before for this instance; with
            `rollback_children="reverse"`, for this message of it.
        idempotency_key: the same text each time this callback is called for this step instance, however often it
            is tried: hand it to systems outside the database, where a crash may repeat a call. A handler of rollback
            failures has one for each message whose children are undone together, and one for the compensation.
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
        limits: Limits = DEFAULT_LIMITS,
        handles: bool = False,
        undoes: bool = False,
        late: bool = False,
    ) -> None:
        """Called by the drivers, and by tests of steps.

        `handles` says that the callback is there for a failure, `undoes` that its run rolls back, `late` that nobody
        waits for it.
        """
        self.run_id = run_id
        self.saga = saga
        self.step = step
        self.lineage = tuple(lineage)
        self._context = context
        self.results = tuple(results)
        self.iteration = iteration
        self.attempt = attempt
        self.idempotency_key = idempotency_key
        self._emissions = Emissions(limits, f"step {step!r}")
        self._left = _Left(undoes, late)
        self._ended = False
        if handles:
            context.exempt()

    @property
    def ended(self) -> bool:
        """Whether the callback has returned or raised."""
        return self._ended

    @property
    def late(self) -> bool:
        """Whether nobody waits for this run, and no rollback reaches it: see `RunStatus.late`."""
        return self._left.late

    @property
    def result(self) -> str | None:
        """What `set_result` left, as JSON text; for the drivers, and for tests of steps."""
        return self._left.result

    @property
    def asks(self) -> Timeouts | None:
        """What `set_deadline` said; for the drivers, and for tests of steps."""
        return self._left.asks

    @property
    def emissions(self) -> Sequence[Emission]:
        """What has been launched so far, in order; for the drivers, and for tests of steps."""
        return self._emissions.launched

    def end(self) -> None:
        """Called by the drivers when the callback has ended."""
        self._ended = True

    def check(self) -> None:
        """Refuse what comes too late.

        Raises:
            ScopeEnded: the callback has ended.
        """
        if self._ended:
            raise self.too_late()

    def owns(self, joined: object) -> bool:  # noqa: ARG002 - drivers know
        """Tell whether a session or connection works in the step's transaction; for `Scoop.launch`."""
        return False

    def too_late(self) -> ScopeEnded:
        """Return what is wrong with using the scope, or what was taken from it, after its end."""
        return ScopeEnded.of(self.step, self.saga, self.run_id)

    @property
    def context(self) -> Context:
        """The cooperation context, a mutable mapping."""
        self.check()
        return self._context

    def left_context(self) -> str | None:
        """Return the context as JSON text, for the drivers, also after the end.

        What was inherited is not measured: it was launched with a higher limit, and a lower one would fail steps that
        did not touch it. Nor is anything in compensations and failure handlers: a rollback has to go on.

        Raises:
            PayloadError: it cannot be stored, or the step has made it too large.
        """
        text = self._context.dumps()
        size = len(text or "")
        if size > self._emissions.limits.most and self._context.has_grown():
            self._emissions.limits.check(size, "the context")
        return text

    def launch(
        self,
        topic: str | Topic[T],
        payload: T,
        *,
        key: str | bytes | None = None,
        context: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        require_handlers: bool = False,
        handled_by: Sequence[Any] = (),
        timeout: float | timedelta | None = None,
        deadline: datetime | None = None,
        rollback_timeout: float | timedelta | None = None,
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
            timeout: seconds within which its handlers, and all below them, have to commit, from the commit of this
                step on; or they give up. What binds this run binds them, too: it can only be tightened.
            deadline: likewise, as a time with a time zone.
            rollback_timeout: seconds that a rollback of its handlers, with all below them, may take.

        Returns:
            The message's id.

        Raises:
            DefinitionError: the topic's name cannot be used, or a duration or a time cannot.
            PayloadError: payload, key, context or a header cannot be encoded, or is larger than `max_body`; or this
                step launches more than a statement can hold.
            ScopeEnded: the callback has ended.
        """
        self.check()
        own = self.left_context()
        if context:
            # Only what is added here: what was inherited is not this launch's to answer for.
            self._emissions.limits.check(len(dump_json(dict(context), "the context")), "the context")
            own = self._context.dumps(**context)
        timeouts = Timeouts.of(timeout, deadline, rollback_timeout)
        required = require_handlers, handled_by
        return self._launch(topic, payload, key, own, headers, timeouts, awaited=True, required=required)

    def launch_on_global_scope(
        self,
        topic: str | Topic[T],
        payload: T,
        *,
        key: str | bytes | None = None,
        context: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        require_handlers: bool = False,
        handled_by: Sequence[Any] = (),
        timeout: float | timedelta | None = None,
        deadline: datetime | None = None,
        rollback_timeout: float | timedelta | None = None,
    ) -> uuid.UUID:
        """Launch a message that starts a hierarchy of its own: nobody waits for it, and no rollback reaches it.

        It is still written with the step's transaction: if the step fails, it was never launched.
        Arguments, return value and errors are those of `launch`; its context holds only what is passed, and it has no
        deadlines but those.
        """
        own = None if context is None else dump_json(dict(context), "the context")
        self._emissions.limits.check(len(own or ""), "the context")
        timeouts = Timeouts.of(timeout, deadline, rollback_timeout)
        required = require_handlers, handled_by
        return self._launch(topic, payload, key, own, headers, timeouts, awaited=False, required=required)

    def _launch(
        self,
        topic: str | Topic[Any],
        payload: Any,
        key: str | bytes | None,
        context: str | None,
        headers: Mapping[str, str] | None,
        timeouts: Timeouts | None,
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
            timeouts=timeouts,
            limits=self._emissions.limits,
        )
        self._emissions.add(launched)
        return launched.message_id

    def set_deadline(self, *, timeout: float | timedelta | None = None, deadline: datetime | None = None) -> None:
        """Have this run give up unless it has committed by then, with all below it; without arguments, lift that.

        It replaces what the run has set itself before. What its launcher, or its saga, has set stays. Children that
        this callback launches are bound by it; those that were launched before are told when the run gives up. It
        counts from the end of the callback on: what the run had set before may still discard this very step.

        Args:
            timeout: in so many seconds from the end of this callback on.
            deadline: at this time, with a time zone.

        Raises:
            DefinitionError: the duration or the time cannot be used.
            StepError: the run rolls back, which no deadline of its own ends: see `rollback_timeout`.
            ScopeEnded: the callback has ended.
        """
        self.check()
        if self._left.undoes:
            raise StepError(
                f"set_deadline() while step {self.step!r} of saga {self.saga!r} is rolled back: a rollback is not "
                "given up. How long it may take is said by rollback_timeout=, at the launch or for the saga"
            )
        self._left.asks = Timeouts.of(timeout, deadline, None) or Timeouts()

    def set_result(self, value: Any) -> None:
        """Leave a JSON value for the parent's next step, which finds it in `scope.results`; the last call counts.

        Raises:
            PayloadError: the value cannot be encoded as JSON, or is larger than `max_body`.
            ScopeEnded: the callback has ended.
        """
        self.check()
        text = dump_json(value, "the result")
        self._emissions.limits.check(len(text), "the result")
        self._left.result = text

    def checkpoint(self) -> Any:
        """Stop here if the run gives up, because it was cancelled or is late: `await` it in an `async def`.

        A step is not interrupted. One that takes long asks now and then, in its own transaction, and spares itself the
        rest. Nothing happens in what is shielded, in a step that completes on giving up, and during a rollback.

        Raises:
            RunCancelled: the run gives up. What the step has done is undone; let it through.
            ScopeEnded: the callback has ended.
        """
        raise RuntimeError(_UNBOUND)

    @property
    def session(self) -> Any:
        """An SQLAlchemy session in the step's transaction: an `AsyncSession` in an `async def`, else a `Session`.

        It is flushed when the callback returns. Its `commit()` and `rollback()` reach as far as the session's own
        work: the step's transaction is ended by the engine.
        """
        raise RuntimeError(_UNBOUND)

    @property
    def connection(self) -> Any:
        """The psycopg connection of the step's transaction: `AsyncConnection` in an `async def`, else `Connection`.

        Use `connection.transaction()` for savepoints; never commit or roll back the connection itself.
        """
        raise RuntimeError(_UNBOUND)


class AsyncScope(Scope):
    """The scope of an `async def` callback; annotate with it to have `session` and `connection` typed."""

    if TYPE_CHECKING:

        @property
        def session(self) -> AsyncSession: ...  # noqa: D102
        async def checkpoint(self) -> None: ...  # noqa: D102
        @property
        def connection(self) -> AsyncConnection[Any]: ...  # noqa: D102


class BlockingScope(Scope):
    """The scope of a plain `def` callback; annotate with it to have `session` and `connection` typed."""

    if TYPE_CHECKING:

        @property
        def session(self) -> Session: ...  # noqa: D102
        def checkpoint(self) -> None: ...  # noqa: D102
        @property
        def connection(self) -> Connection[Any]: ...  # noqa: D102
