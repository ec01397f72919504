"""The application: what a service declares, and how the world outside its sagas talks to it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, Unpack

from scoop_outbox._generics import R, T
from scoop_outbox._retention import REMEMBERED, Retention
from scoop_outbox.answers import Answer, RollbackAnswer
from scoop_outbox.broker.protocol import Resource
from scoop_outbox.client.announce import announce, announce_sync
from scoop_outbox.client.external import (
    AsyncCompleteOptions,
    AsyncFailOptions,
    BlockingCompleteOptions,
    BlockingFailOptions,
    complete,
    complete_sync,
    fail,
    fail_sync,
)
from scoop_outbox.client.handle import Handle
from scoop_outbox.client.launcher import Launcher
from scoop_outbox.client.requests import cancel, cancel_sync, roll_back, roll_back_sync
from scoop_outbox.client.serve import serve
from scoop_outbox.client.servers import Servers
from scoop_outbox.client.service import Service, checked_callback
from scoop_outbox.client.stuck import act, act_sync
from scoop_outbox.core.plans.external import ExternalOrName
from scoop_outbox.core.plans.pruner import ArchivedHierarchy
from scoop_outbox.core.plans.rollback import IfActive
from scoop_outbox.core.plans.stuck import Action
from scoop_outbox.daemon.intake.backpressure import HIGH_WATER
from scoop_outbox.daemon.running import Running
from scoop_outbox.daemon.tuning import Tuning
from scoop_outbox.daemon.worker.alerts import StuckRun
from scoop_outbox.daemon.worker.interruptions import MOST
from scoop_outbox.daemon.worker.slow_steps import SLOW_AFTER
from scoop_outbox.daemon.worker.worker import SLOTS
from scoop_outbox.external import External, ExternalOptions
from scoop_outbox.message import Draft, Message, Topic
from scoop_outbox.policy import seconds
from scoop_outbox.saga import Saga, SagaOptions
from scoop_outbox.status import Status, read_message, read_status
from scoop_outbox.store.external_transaction import AsyncTransaction, Transaction
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from scoop_outbox.wire.limits import MAX_BODY


class Scoop:
    """One service: its sagas, its database, its broker.

    Everything can be imported and declared without a running database.

    Args:
        service: the service's name; it owns one queue of work, which all its processes share.
        database: a PostgreSQL URL; the environment's SCOOP_OUTBOX_DATABASE unless given.
        broker: `kafka://`, `amqp://`; the environment's SCOOP_OUTBOX_BROKER unless given, and without either the
            built-in broker, which needs no server besides the database.
        schema: the Postgres schema of our tables.
        group: the consumer group (Kafka) or queue (RabbitMQ) that the service's processes share; the service's name
            unless given.
        start: where a group begins that has never been at the broker: `earliest`, `latest`, a time in ISO 8601, or
            `group:NAME`, at the offsets of another group. Kafka has to be told; a queue has a beginning of its own.
        broker_settings: passed on to the broker's client, on top of those in the URL: see docs/kafka.md and
            docs/rabbitmq.md.
        max_body: the most bytes that a body, a context or a result may have, 64 MiB or less: more is refused where it
            is launched, and what comes in from a broker becomes a dead letter.
        home: the name under which this database cooperates with those of other services; the environment's
            SCOOP_OUTBOX_HOME unless given. Once given, it stays, and is that of all processes of the database. Without
            one only services that share the database cooperate. Letters, digits and `-`, `_`, `.`; 100 at most. See
            docs/homes.md.
        control_keys: secrets that homes which cooperate share, as `id:secret`: the first one signs what this home says
            to others, and what others say has to be signed with one of them. The environment's
            SCOOP_OUTBOX_CONTROL_KEYS, or the file that SCOOP_OUTBOX_CONTROL_KEYS_FILE names, unless given; without
            keys nothing is signed or verified. See docs/security.md.

    Raises:
        DefinitionError: a name or a key cannot be used.
        DatabaseError: the database's URL is wrong.
        BrokerError: no installed adapter serves the broker's URL, or the adapter refuses URL or settings.
    """

    def __init__(
        self,
        service: str,
        *,
        database: str | None = None,
        broker: str | None = None,
        schema: str = DEFAULT_SCHEMA,
        group: str | None = None,
        start: str | None = None,
        broker_settings: Mapping[str, object] | None = None,
        max_body: int = MAX_BODY,
        home: str | None = None,
        control_keys: str | Iterable[str] | None = None,
    ) -> None:
        """Declare a service; nothing is opened."""
        servers = Servers(
            service,
            database=database,
            broker=broker,
            broker_settings=broker_settings,
            schema=schema,
            max_body=max_body,
            home_name=home,
            keys=control_keys,
        )
        self._service = Service(service, servers, group=group, start=start)
        self._launcher = Launcher(self._service)
        self.service = self._service.name

    def __repr__(self) -> str:
        """Show the service and its sagas."""
        return f"<Scoop {self.service!r}: {', '.join(map(repr, self.sagas)) or 'no sagas'}>"

    def configure(
        self,
        *,
        database: str | None = None,
        broker: str | None = None,
        broker_settings: Mapping[str, object] | None = None,
        group: str | None = None,
        start: str | None = None,
        home: str | None = None,
    ) -> None:
        """Use another database or broker than was declared, before anything is opened.

        Args:
            database: instead of the one declared.
            broker: instead of the one declared.
            broker_settings: on top of those declared.
            group: the consumer group or queue, instead of the one declared.
            start: where a new group begins, instead of what was declared.
            home: the name under which the database cooperates with others, instead of the one declared.

        Raises:
            DefinitionError: the name of the group or of the home cannot be used.
            DatabaseError: the database's URL is wrong.
            BrokerError: no installed adapter serves the broker's URL, or the adapter refuses URL or settings.
        """
        self._service.configure(
            database=database, broker=broker, broker_settings=broker_settings, group=group, start=start, home=home
        )

    def saga(self, name: str, on: str | Topic[T], **options: Unpack[SagaOptions]) -> Saga[T]:
        """Declare a saga: a handler of the messages on a topic.

        Args:
            name: unique within the service. It is stored with its runs.
            on: the topic; several sagas may share one, each gets every message.
            options: see `SagaOptions`.

        Raises:
            DefinitionError: the name is taken or cannot be used, or the topic or an option cannot; or this process runs
                the service already, and would not execute the saga.
        """
        return self._service.saga(name, on, options)

    def external(self, name: str, on: str | Topic[T], **options: Unpack[ExternalOptions]) -> External[T]:
        """Declare an external participant: a handler of the messages on a topic whose work is done elsewhere.

        Each message on the topic is a piece of work for somebody outside: a person, another system, a program in
        another language. Whoever launched it waits until `complete` or `fail` says how that ended. Until then it is
        listed, cancelled and late like any run of a saga; giving up takes no more than that. It has no steps.

        Args:
            name: unique within the service, among its sagas, too. It is stored with its runs.
            on: the topic; others may handle it as well.
            options: see `ExternalOptions`.

        Raises:
            DefinitionError: the name is taken or cannot be used, or a topic or `formerly` cannot; or this process runs
                the service already.
        """
        return self._service.external(name, on, options)

    @property
    def sagas(self) -> Mapping[str, Saga]:
        """The declared sagas by name."""
        return dict(self._service.sagas)

    async def launch(
        self,
        topic: str | Topic[T],
        payload: T,
        *,
        key: str | bytes | None = None,
        context: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        require_handlers: bool = False,
        handled_by: Sequence[Any] = (),
        timeout: float | timedelta | None = None,  # noqa: ASYNC109 - not of this call
        deadline: datetime | None = None,
        rollback_timeout: float | timedelta | None = None,
        session: AsyncTransaction | None = None,
        detached: bool = False,
        id: uuid.UUID | None = None,  # noqa: A002 - what everybody calls it
        dedup_key: str | None = None,
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
            timeout: seconds within which its hierarchy has to commit, from this launch on; or it gives up, and waiting
                for it raises `GaveUp`.
            deadline: likewise, as a time with a time zone.
            rollback_timeout: seconds that a rollback of the hierarchy may take; or it is `rollback_failed`.
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
            dedup_key: likewise, as text: it stands for an id of its own on each topic, so pass one or the other.

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
        times = timeout, deadline, rollback_timeout
        draft = Draft(topic, payload, key, context, headers, id, require_handlers, handled_by, *times, dedup_key)
        return (await self._launcher.launch([draft], session, detached=detached))[0]

    def launch_sync(
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
        session: Transaction | None = None,
        detached: bool = False,
        id: uuid.UUID | None = None,  # noqa: A002 - what everybody calls it
        dedup_key: str | None = None,
    ) -> Handle:
        """Do as `launch`, for code without an event loop.

        `session` is an SQLAlchemy `Session`, `scoped_session` or `Connection`, on psycopg or psycopg2, or a psycopg
        `Connection`.

        Raises:
            StepError, DefinitionError, PayloadError, ConflictingMessage, UnhandledMessage, DatabaseError: as `launch`.
        """
        times = timeout, deadline, rollback_timeout
        draft = Draft(topic, payload, key, context, headers, id, require_handlers, handled_by, *times, dedup_key)
        return self._launcher.launch_sync([draft], session, detached=detached)[0]

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
        return await self._launcher.launch(messages, session, detached=detached)

    def launch_many_sync(
        self, messages: Iterable[Draft], *, session: Transaction | None = None, detached: bool = False
    ) -> list[Handle]:
        """Do as `launch_many`, for code without an event loop; `session` is a blocking session or connection.

        Raises:
            PayloadError, StepError, DefinitionError, ConflictingMessage, UnhandledMessage, DatabaseError: as
                `launch_many`.
        """
        return self._launcher.launch_sync(messages, session, detached=detached)

    @property
    def unhandled(self) -> Mapping[str, int]:
        """How many messages this process has launched on topics that no saga is subscribed to, by topic."""
        return self._service.hints.unhandled.counts

    def handle(self, message_id: uuid.UUID) -> Handle:
        """Return the handle of a message whose id was kept."""
        return self._launcher.handle(message_id)

    async def status(self, message_id: uuid.UUID) -> Status:
        """Return the whole hierarchy below a message, as it stands now.

        Raises:
            UnknownMessage: it has not been taken in here, or has been pruned.
        """
        async with self._service.home.driver() as driver:
            return await driver.run(read_status(message_id, self._service.home.failures))

    def status_sync(self, message_id: uuid.UUID) -> Status:
        """Do as `status`, for code without an event loop.

        Raises:
            UnknownMessage: it has not been taken in here, or has been pruned.
        """
        with self._service.home.blocking_driver() as driver:
            return driver.run(read_status(message_id, self._service.home.failures))

    async def message(self, message_id: uuid.UUID) -> Message:
        """Return a message that has been taken in.

        Raises:
            UnknownMessage: it has not been taken in here, or has been pruned.
        """
        async with self._service.home.driver() as driver:
            return await driver.run(read_message(message_id))

    async def cancel(self, id: uuid.UUID, *, reason: str | None = None, source: str | None = None) -> Answer:  # noqa: A002
        """Ask a hierarchy, or a part of one, to give up: the same as `scoop-outbox cancel`.

        What has not started never will. A step that is being executed is not interrupted: what it has done is undone
        when it ends, and the run gives up then, as do those that wait for children, for a retry or for their turn, at
        once. From the bottom to the top, everything that had committed is rolled back. Waiting for the message raises
        `GaveUp`, caused by `CancellationRequested` with the reason. A parent that was not asked itself sees the failure
        of a child, and may handle it.

        No lock is waited for: the request is stored, and the runs find it. A run that ends before it does has ended.
        A rollback is not cancelled.

        Args:
            id: of a message, as in `Handle.id`: all runs that handle it; or of a run, as in `status`.
            reason: in words; part of the failure.
            source: who asks; the service's name unless given.

        Returns:
            `ACCEPTED`; `ALREADY_REQUESTED`, and the first reason counts; `NOTHING_TO_DO` when all of it has ended, or
            is rolling back; `ALREADY_ROLLED_BACK`; `UNKNOWN` when this database has no such message or run;
            `EXPIRED` when it had, and its hierarchy has been pruned.

        Raises:
            DatabaseError: the database cannot be reached or is not migrated.
        """
        return await cancel(self._service, id, reason, source)

    def cancel_sync(self, id: uuid.UUID, *, reason: str | None = None, source: str | None = None) -> Answer:  # noqa: A002
        """Do as `cancel`, for code without an event loop.

        Raises:
            DatabaseError: the database cannot be reached or is not migrated.
        """
        return cancel_sync(self._service, id, reason, source)

    async def rollback(
        self,
        id: uuid.UUID,  # noqa: A002
        *,
        reason: str | None = None,
        source: str | None = None,
        if_active: IfActive = "refuse",
        session: AsyncTransaction | None = None,
    ) -> RollbackAnswer:
        """Undo a hierarchy that has committed, or a part of it: the same as `scoop-outbox rollback`.

        Everything below it is compensated in exact reverse order. Compensations are told `RollbackRequested` with the
        reason, those of children `ParentSaidSo`, caused by it; they see the context with which their run has committed.
        Waiting for the message raises `RollbackRequested`.

        A part that is undone by the id of its own run stays undone: its parent stays committed, and is not told. A
        rollback of the whole afterwards passes it by. Sagas that handle a message of the hierarchy and have not begun
        execute nothing.

        Args:
            id: of a message, as in `Handle.id`: all runs that handle it; or of a run, as in `status`.
            reason: in words; part of the failure.
            source: who asks; the service's name unless given.
            if_active: what becomes of the request when a run at, above or below it has not ended. `"refuse"` does
                nothing. `"wait"` stores it: some worker of this database carries it out within seconds after the last
                of them has ended, or within a minute if others than its own have kept it waiting for long. `"cancel"`
                does so, too, and cancels what is active, with the same reason and source; runs above are not
                cancelled, and if only they are active, it is refused.
            session: ask inside this transaction, as `launch` does: the request is there if and only if it commits, and
                some worker carries it out within seconds. The answer is about what others could see before; it cannot
                be combined with `"cancel"`.

        Returns:
            An object with the `answer`: `ACCEPTED`; `REFUSED_ACTIVE`, with the runs that are `active`;
            `REFUSED_ROLLBACK_FAILED` when a run could not be rolled back before, `ABANDONED` when it was given up;
            `ASK_ELSEWHERE` when another home has launched the message, `UNANSWERED` when another home has been asked
            about runs above and has not answered within five seconds, each with the name of that `home`;
            `ALREADY_REQUESTED`; `ALREADY_ROLLED_BACK`; `NOTHING_TO_DO` when nobody has handled the message; `UNKNOWN`
            when this database has no such message or run; `EXPIRED` when it had, and its hierarchy has been pruned, or
            its payload erased.

        Raises:
            DatabaseError: the database cannot be reached or is not migrated, or `session` is on another one.
            ValueError: `if_active` is none of these words, or `"cancel"` with a `session`.
        """
        return await roll_back(self._service, id, reason, source, if_active, session)

    def rollback_sync(
        self,
        id: uuid.UUID,  # noqa: A002
        *,
        reason: str | None = None,
        source: str | None = None,
        if_active: IfActive = "refuse",
        session: Transaction | None = None,
    ) -> RollbackAnswer:
        """Do as `rollback`, for code without an event loop.

        Raises:
            DatabaseError: the database cannot be reached or is not migrated, or `session` is on another one.
            ValueError: `if_active` is none of these words, or `"cancel"` with a `session`.
        """
        return roll_back_sync(self._service, id, reason, source, if_active, session)

    async def retry(self, run_id: uuid.UUID, *, note: str | None = None, source: str | None = None) -> Answer:
        """Execute again what a stuck run failed with: the same as `scoop-outbox retry`.

        A run whose rollback has failed calls what failed again, a compensation or a handler, with all its attempts.
        When it has been rolled back, the runs above that had stopped because of it go on, one after the other. If it
        has itself stopped because of runs below it, these are retried. A run that is parked goes on where it was
        parked; one that no living version of its saga could take over goes on under whichever does.

        Args:
            run_id: the run, as in `status`.
            note: why, in words; kept with who, and when.
            source: who asks; the service's name unless given.

        Returns:
            `ACCEPTED`; `ALREADY_REQUESTED` while what failed is tried again; `NOTHING_TO_DO` when the run is not stuck;
            `ABANDONED` when it has been abandoned; `BUSY` when somebody decides about it or its parent at this moment;
            `UNKNOWN` when there is no such run in this database.

        Raises:
            DatabaseError: the database cannot be reached or is not migrated.
        """
        return await act(self._service, Action.RETRY, run_id, note, source)

    def retry_sync(self, run_id: uuid.UUID, *, note: str | None = None, source: str | None = None) -> Answer:
        """Do as `retry`, for code without an event loop.

        Raises:
            DatabaseError: the database cannot be reached or is not migrated.
        """
        return act_sync(self._service, Action.RETRY, run_id, note, source)

    async def skip(self, run_id: uuid.UUID, *, note: str | None = None, source: str | None = None) -> Answer:
        """Count as compensated what a stuck run could not undo, because somebody did it: as `scoop-outbox skip`.

        If a compensation failed, it is left out. If children could not be rolled back, they count as compensated, and
        the compensation of the step that launched them is next. The rollback goes on from there, as with `retry`.

        Args:
            run_id: the run, as in `status`.
            note: what was done by hand; kept with who, when, and the execution that it is about.
            source: who asks; the service's name unless given.

        Returns:
            As `retry`; `NOT_ROLLING_BACK` for a run that was parked before it rolled back: cancel it, or retry it; and
            `REFUSED_ACTIVE` for one whose children are still being rolled back.

        Raises:
            DatabaseError: the database cannot be reached or is not migrated.
        """
        return await act(self._service, Action.SKIP, run_id, note, source)

    def skip_sync(self, run_id: uuid.UUID, *, note: str | None = None, source: str | None = None) -> Answer:
        """Do as `skip`, for code without an event loop.

        Raises:
            DatabaseError: the database cannot be reached or is not migrated.
        """
        return act_sync(self._service, Action.SKIP, run_id, note, source)

    async def abandon(self, run_id: uuid.UUID, *, note: str | None = None, source: str | None = None) -> Answer:
        """Leave a stuck run as it is, for good: the same as `scoop-outbox abandon`.

        Nothing more is executed or undone of it. A parked one ends as one whose rollback has failed. To its parent it
        is a child that could not be rolled back. What has stopped because of it stays so: retry, skip or abandon that.

        Args:
            run_id: the run, as in `status`.
            note: why, in words; kept with who, and when.
            source: who asks; the service's name unless given.

        Returns:
            `ACCEPTED`, `ALREADY_REQUESTED`, `NOTHING_TO_DO` when the run is not stuck, `BUSY` or `UNKNOWN`.

        Raises:
            DatabaseError: the database cannot be reached or is not migrated.
        """
        return await act(self._service, Action.ABANDON, run_id, note, source)

    def abandon_sync(self, run_id: uuid.UUID, *, note: str | None = None, source: str | None = None) -> Answer:
        """Do as `abandon`, for code without an event loop.

        Raises:
            DatabaseError: the database cannot be reached or is not migrated.
        """
        return act_sync(self._service, Action.ABANDON, run_id, note, source)

    async def complete(self, id: uuid.UUID, name: ExternalOrName, **said: Unpack[AsyncCompleteOptions]) -> Answer:  # noqa: A002
        """Say that the work of an external participant is done: the same as `scoop-outbox complete`.

        Any process may say so that reaches the database. It is said once: asked again, it answers so and changes
        nothing. What was `ACCEPTED` counts, also if somebody cancels the work afterwards, or its deadline comes. Then
        it is undone like any child that has committed.

        Args:
            id: of the message that is the work, as `scope.launch` returns it; or of the run that handles it.
            name: the participant, or its name.
            said: see `CompleteOptions`; and `session`, to say it inside this transaction, as `launch` does: it is said
                if and only if that commits. The answer is about what others could see before: what is cancelled or
                late meanwhile has given up.

        Returns:
            `ACCEPTED`, also when the message is still on its way: then it counts when it comes. `ALREADY_REQUESTED`,
            and the first result counts; `ALREADY_FAILED`; `GAVE_UP` when it was cancelled or late before; `UNKNOWN`
            when nobody of that name handles the message in this database; `NOT_EXTERNAL` when a saga does;
            `AMBIGUOUS` when several services do; `NOT_YET` when the message is still on its way, and there is a
            `session`; `EXPIRED` when its hierarchy has been pruned.

        Raises:
            DefinitionError: that is no name.
            PayloadError: the result cannot be encoded as JSON, or is larger than `max_body`.
            DatabaseError: the database cannot be reached or is not migrated, or `session` is on another one.
        """
        return await complete(self._service, id, name, **said)

    def complete_sync(self, id: uuid.UUID, name: ExternalOrName, **said: Unpack[BlockingCompleteOptions]) -> Answer:  # noqa: A002
        """Do as `complete`, for code without an event loop.

        Raises:
            DefinitionError, PayloadError, DatabaseError: as `complete`.
        """
        return complete_sync(self._service, id, name, **said)

    async def fail(self, id: uuid.UUID, name: ExternalOrName, **said: Unpack[AsyncFailOptions]) -> Answer:  # noqa: A002
        """Say that the work of an external participant has failed: the same as `scoop-outbox fail`.

        To whoever launched the message, a child has failed and rolled back. It is said once, as with `complete`.

        Args:
            id: as for `complete`.
            name: as for `complete`.
            said: see `FailOptions`; and `session`, as for `complete`.

        Returns:
            As `complete`, but `ALREADY_REQUESTED` when it has failed before, and `ALREADY_COMPLETED`.

        Raises:
            DefinitionError: that is no name.
            ValueError: there are a reason and an error.
            DatabaseError: the database cannot be reached or is not migrated, or `session` is on another one.
        """
        return await fail(self._service, id, name, **said)

    def fail_sync(self, id: uuid.UUID, name: ExternalOrName, **said: Unpack[BlockingFailOptions]) -> Answer:  # noqa: A002
        """Do as `fail`, for code without an event loop.

        Raises:
            DefinitionError, ValueError, DatabaseError: as `fail`.
        """
        return fail_sync(self._service, id, name, **said)

    def on_stuck(self, callback: Callable[[StuckRun], R]) -> Callable[[StuckRun], R]:
        """Have a callback told of each run of this service that needs a person from now on.

        A worker in this process calls it with a `StuckRun` when it has committed that a run is `rollback_failed` or
        `parked`; it is a decorator, too. An `async def` is called on the event loop, a `def` in a thread; no
        transaction is open, and no run waits for it. What it raises is logged. It is called at most once for each time
        that a run gets stuck, and not at all if the process dies in between: the metrics do not forget.

        Args:
            callback: a function of one argument.

        Raises:
            DefinitionError: it cannot be called.
        """
        self._service.alerts.append(checked_callback("on_stuck", callback))
        return callback

    def on_archive(self, callback: Callable[[ArchivedHierarchy], R]) -> Callable[[ArchivedHierarchy], R]:
        """Have a callback handed each hierarchy that is about to be pruned, or whose payload is about to be erased.

        It is called by the process that prunes: one of those that relay, so all of them need it. It is a decorator,
        too. An `async def` is called on the event loop, a `def` in a thread; no transaction is open. Nothing goes
        before it has returned: when it raises, that is logged, and tried again a minute later. If the process dies in
        between, or somebody undoes the hierarchy at this moment, it is called again.

        Args:
            callback: a function of one argument, an `ArchivedHierarchy`.

        Raises:
            DefinitionError: it cannot be called.
        """
        self._service.archives.append(checked_callback("on_archive", callback))
        return callback

    async def topology(self, *topics: str | Topic[Any]) -> list[Resource]:
        """Tell what has to exist at the broker for this service, and whether it does; create nothing.

        Args:
            topics: what the service publishes on. What its sagas listen on is known.

        Returns:
            Topics, exchanges, queues and bindings, `exists` of each being None where the broker cannot be asked;
            nothing with the built-in broker, which needs nothing.

        Raises:
            DefinitionError: a topic cannot be used.
            BrokerError: the broker cannot be reached, does not permit it, or has something else of that name.
        """
        return await self._service.topology(topics, create=False)

    async def apply_topology(self, *topics: str | Topic[Any]) -> list[Resource]:
        """Create what does not exist of `topology`: the same as `scoop-outbox topology apply`. Can be run again.

        Returns:
            As `topology`: what `exists` was there before.

        Raises:
            DefinitionError, BrokerError: as `topology`.
        """
        return await self._service.topology(topics, create=True)

    async def migrate(self, *, wait: float | timedelta = 300.0, lock_timeout: float | timedelta = 2.0) -> None:
        """Create or upgrade the tables: the same as `scoop-outbox migrate`.

        Args:
            wait: for how long it is tried to lock tables that others use, in seconds or as a `timedelta`.
            lock_timeout: for how long at a time others may have to wait behind that.

        Raises:
            DatabaseError: the database cannot be reached, its user may not create tables, or others used the tables all
                the time; it names them.
        """
        from scoop_outbox.store.migrate import migrate  # noqa: PLC0415 - nothing else needs Alembic

        await asyncio.to_thread(
            migrate, self._service.home.url, self._service.servers.schema, wait=wait, lock_timeout=lock_timeout
        )

    async def announce(self) -> None:
        """Make the subscriptions of this service's sagas known, so that its messages are waited for.

        `running` does so before it works. With the built-in broker, so does the first launch. With Kafka or RabbitMQ
        the broker is asked first, and where a new group begins is laid down there: what can receive is announced, and
        nothing else. Launching asks no broker.

        Raises:
            DefinitionError: a saga has no steps, or a former name is another saga's.
            DatabaseError: the database cannot be reached or is not migrated.
            BrokerError: the broker says that the service cannot receive, and what to do about it, or cannot be reached.
        """
        await announce(self._service)

    def announce_sync(self) -> None:
        """Do as `announce`, for code without an event loop.

        Raises:
            DefinitionError: a saga has no steps, or a former name is another saga's.
            DatabaseError: the database cannot be reached or is not migrated.
            BrokerError: the broker says that the service cannot receive, and what to do about it, or cannot be reached.
        """
        announce_sync(self._service)

    @asynccontextmanager
    async def running(
        self,
        *,
        relay: bool = True,
        worker: bool = True,
        slots: int = SLOTS,
        high_water: int = HIGH_WATER,
        max_interruptions: int = MOST,
        slow_step_after: float | timedelta = SLOW_AFTER,
        grace: float | timedelta = 20.0,
        retention: float | timedelta | None = None,
        retain_payload: float | timedelta | None = None,
        remember: float | timedelta = REMEMBERED,
    ) -> AsyncIterator[Running]:
        """Run relay and worker in this process, for as long as the block lasts.

        Sagas and steps are declared before it begins: meanwhile they are refused. What it gives tells how it is
        (`ready`, `problems`, `metrics`).

        Args:
            relay: whether to publish the outbox.
            worker: whether to execute this service's runs.
            slots: how many runs are executed at the same time.
            high_water: no more is taken in from a broker while so many runs lie waiting for a slot, until there are
                half as many.
            max_interruptions: a run that the machinery interrupts so often in a row, without progress, is parked.
            slow_step_after: seconds after which the log says that a step without a `timeout` is still being executed.
            grace: how long running steps get to finish when the block is left.
            retention: with `relay`, how long hierarchies are kept of sagas that do not say so themselves, from when
                they have ended; for ever unless given.
            retain_payload: likewise, what they hold.
            remember: how long a message whose hierarchy has been pruned starts nothing if it comes again; 7 days at
                least.

        Raises:
            DefinitionError: a saga has no steps, the service is running in this process already, or a number or period
                cannot be used.
            DatabaseError: the database cannot be reached or is not migrated.
            BrokerError: the broker says that this service cannot receive, and what to do about it; then it has not
                been announced. Or this service has a broker, or this process relays and others of the database have
                one, and it was not told of it: say `postgresql://` to do without on purpose.
        """
        tuning = Tuning(slots, high_water, max_interruptions, seconds(slow_step_after), seconds(grace))
        kept = Retention.of(retention, retain_payload, remember)
        async with serve(self._service, tuning, relay=relay, worker=worker, retention=kept) as running:
            yield running

    async def close(self) -> None:
        """Close the connections that launching and asking have left open in this event loop, and the blocking ones.

        `running` does so at its end. What is used afterwards opens anew.
        """
        await self._service.servers.close()

    def close_sync(self) -> None:
        """Close the connections that `launch_sync` and the other blocking calls have left open."""
        self._service.servers.close_sync()


def service_of(app: Scoop) -> Service:
    """Return what an application is made of, for the commands, the demonstration, the contract of adapters and tests.

    Users have no need of it: everything that they may do is a method of `Scoop`.
    """
    return app._service  # noqa: SLF001 - the one door to it
