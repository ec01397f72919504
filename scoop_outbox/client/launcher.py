"""Launching from outside any saga: one message, or many in one statement; in its own transaction or the caller's."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scoop_outbox._inside import refuse_launch
from scoop_outbox.client.declaration import Declaration
from scoop_outbox.client.handle import Handle
from scoop_outbox.core.plans.claim import Unhandled
from scoop_outbox.core.plans.launch import launch, launch_and_commit
from scoop_outbox.errors import PayloadError
from scoop_outbox.message import Draft, Topic, dump_json
from scoop_outbox.scope import Emission, emission
from scoop_outbox.store.connect import map_missing_tables
from scoop_outbox.store.external_transaction import AsyncTransaction, Transaction, run_joined, run_joined_blocking
from scoop_outbox.wire.limits import CEILING, Limits

MOST_AT_ONCE = 10_000
"""How many messages `launch_many` takes: one statement holds all of them in memory, here and on the server."""

BYTES_AT_ONCE = CEILING
"""How many bytes of bodies, contexts and headers `launch_many` takes. Postgres reads no statement above 1 GiB."""


class Launcher(Declaration):
    """What launches messages; `Scoop` says what the arguments are."""

    async def launch(
        self,
        topic: str | Topic[Any],
        payload: Any,
        *,
        key: str | bytes | None = None,
        context: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        require_handlers: bool = False,
        handled_by: Sequence[Any] = (),
        session: AsyncTransaction | None = None,
        detached: bool = False,
        id: uuid.UUID | None = None,  # noqa: A002 - what everybody calls it
    ) -> Handle:
        """Launch a message from outside any saga: it starts a hierarchy of its own.

        Args:
            topic: a name, or a typed topic.
            payload: JSON values, a dataclass, a pydantic model, a msgspec struct, or bytes.
            key: orders the message among others of the same key.
            context: what its handlers find in `scope.context`.
            headers: text headers that travel with the message.
            require_handlers: refuse to launch if no saga is subscribed to the topic.
            handled_by: sagas, or their names; refuse to launch if one of them is not subscribed to it.
            session: launch inside this transaction, to be committed with it and gone with it: an SQLAlchemy
                `AsyncSession`, `async_scoped_session` or `AsyncConnection`, on psycopg or asyncpg, or a psycopg
                `AsyncConnection`, on this service's database. Without it the message is launched in a transaction of
                its own, durably when this returns.
            detached: inside a step, launch it all the same: it does not belong to the step, and is there even if the
                step fails. A step launches with `scope.launch`.
            id: the message's id, a UUID of the caller's, of any version; one is drawn unless given. The same message
                under the same id is launched once, however often and by however many it is tried: each time the handle
                is that of the one message. Whoever tries while another transaction launches it waits for the end of
                that one: without `session`, three launches at a time in each event loop, and three of blocking code,
                each for 20 s at most, and as long for its turn. Draw ids of your own: one that was drawn here
                (`handle.id`) is that message's, and another message launched under it may be lost.

        Raises:
            StepError: this is called inside a step, neither detached nor with the step's own session.
            DefinitionError, PayloadError: nothing is launched; the message says what cannot be encoded or is too
                large.
            ConflictingMessage: another message has the id: its topic, key or payload is not this one's. Nothing is
                launched.
            UnhandledMessage: nothing is launched, for lack of a subscription that was required.
            DatabaseError: the database cannot be reached or is not migrated, or `session` cannot be joined. Or another
                transaction is launching under the id and does not end: nothing is launched then; try again.
        """
        refuse_launch(session, detached=detached)
        draft = Draft(topic, payload, key, context, headers, id, require_handlers, handled_by)
        launched = [_emission(draft, self._limits, depth=1)]
        await self._launch(launched, session)
        return self.handle(launched[0].message_id)

    def launch_sync(
        self,
        topic: str | Topic[Any],
        payload: Any,
        *,
        key: str | bytes | None = None,
        context: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        require_handlers: bool = False,
        handled_by: Sequence[Any] = (),
        session: Transaction | None = None,
        detached: bool = False,
        id: uuid.UUID | None = None,  # noqa: A002 - what everybody calls it
    ) -> Handle:
        """Do as `launch`, for code without an event loop.

        `session` is an SQLAlchemy `Session`, `scoped_session` or `Connection`, on psycopg or psycopg2, or a psycopg
        `Connection`.

        Raises:
            StepError, DefinitionError, PayloadError, ConflictingMessage, UnhandledMessage, DatabaseError: as `launch`.
        """
        refuse_launch(session, detached=detached)
        draft = Draft(topic, payload, key, context, headers, id, require_handlers, handled_by)
        launched = [_emission(draft, self._limits, depth=1)]
        self._launch_sync(launched, session)
        return self.handle(launched[0].message_id)

    async def launch_many(
        self, messages: Iterable[Draft], *, session: AsyncTransaction | None = None, detached: bool = False
    ) -> list[Handle]:
        """Launch many messages in one statement: all of them or none, in this order.

        Messages of one key are handed over in this order, as always. At most 10,000 messages with 64 MiB of bodies,
        contexts and headers are launched at once: what is more goes into another call, with the same `session` if it
        belongs together.

        Args:
            messages: what `launch` takes for each, as `Draft(topic, payload, key=..., id=...)`.
            session: as for `launch`.
            detached: as for `launch`.

        Returns:
            A handle for each message, in the same order.

        Raises:
            PayloadError: there are more messages or bytes than are launched at once, or one cannot be encoded; nothing
                is launched.
            StepError, DefinitionError, ConflictingMessage, UnhandledMessage, DatabaseError: as `launch`.
        """
        refuse_launch(session, detached=detached)
        launched = _emissions(messages, self._limits)
        if launched:
            await self._launch(launched, session)
        return [self.handle(one.message_id) for one in launched]

    def launch_many_sync(
        self, messages: Iterable[Draft], *, session: Transaction | None = None, detached: bool = False
    ) -> list[Handle]:
        """Do as `launch_many`, for code without an event loop; `session` is a blocking session or connection.

        Raises:
            PayloadError, StepError, DefinitionError, ConflictingMessage, UnhandledMessage, DatabaseError: as
                `launch_many`.
        """
        refuse_launch(session, detached=detached)
        launched = _emissions(messages, self._limits)
        if launched:
            self._launch_sync(launched, session)
        return [self.handle(one.message_id) for one in launched]

    async def _launch(self, launched: Sequence[Emission], session: AsyncTransaction | None) -> None:
        await self._introduce()
        brokered, here = self._carried_by_broker, self._here(launched)
        unhandled: Unhandled
        if session is not None:
            whose = self.home.whose
            with map_missing_tables(self.home.url):
                plan = launch(launched, brokered=brokered, here=here)
                unhandled = await run_joined(plan, session, self.home.queries, self.signals.outbox, whose)
        else:
            async with self.home.claiming_driver() if _claims(launched) else self.home.driver() as driver:
                plan = launch_and_commit(launched, self.signals, brokered=brokered, here=here)
                unhandled = await driver.run(plan)
        self._note_unhandled(unhandled)

    def _launch_sync(self, launched: Sequence[Emission], session: Transaction | None) -> None:
        self._introduce_sync()
        brokered, here = self._carried_by_broker, self._here(launched)
        unhandled: Unhandled
        if session is not None:
            whose = self.home.whose
            with map_missing_tables(self.home.url):
                plan = launch(launched, brokered=brokered, here=here)
                unhandled = run_joined_blocking(plan, session, self.home.queries, self.signals.outbox, whose)
        else:
            with self.home.blocking_claiming_driver() if _claims(launched) else self.home.blocking_driver() as driver:
                plan = launch_and_commit(launched, self.signals, brokered=brokered, here=here)
                unhandled = driver.run(plan)
        self._note_unhandled(unhandled)

    def handle(self, message_id: uuid.UUID) -> Handle:
        """Return the handle of a message whose id was kept."""
        return Handle(message_id, self.home, self._outcomes_of_home())


def _claims(launched: Sequence[Emission]) -> bool:
    """Tell whether the caller has given one of the messages its id, so that others may be launching under it."""
    return any(one.given for one in launched)


def _emissions(drafts: Iterable[Draft], limits: Limits) -> list[Emission]:
    """Return messages that are launched at once, by the caller of whoever calls this."""
    launched: list[Emission] = []
    size = 0
    for draft in drafts:
        launched.append(_emission(draft, limits, depth=2))
        size += launched[-1].size
        # A message that `launch` takes is taken alone.
        if len(launched) > MOST_AT_ONCE or (size > BYTES_AT_ONCE and len(launched) > 1):
            raise PayloadError(
                f"launch_many takes at most {MOST_AT_ONCE} messages with {BYTES_AT_ONCE} bytes of bodies, contexts and "
                "headers at once: launch the others in another call, with the same session if they belong together"
            )
    return launched


def _emission(draft: Draft, limits: Limits, *, depth: int) -> Emission:
    """Return a message that is launched from outside any run, by the code `depth` frames above the caller."""
    text = None if draft.context is None else dump_json(dict(draft.context), "the context")
    limits.check(len(text or ""), "the context")
    one = emission(
        draft.topic,
        draft.payload,
        key=draft.key,
        headers=draft.headers,
        context=text,
        awaited=False,
        depth=depth + 1,
        require_handlers=draft.require_handlers,
        handled_by=draft.handled_by,
        message_id=draft.id,
        limits=limits,
    )
    limits.check_together(one.size, "this launches")
    return one
