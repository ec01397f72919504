"""The application: what a service declares, and how the world outside its sagas talks to it."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Literal

from scoop_outbox.broker import plugins
from scoop_outbox.broker.protocol import Broker, Subscription
from scoop_outbox.core.announcing import read_revision, subscribe
from scoop_outbox.core.delivery import launch, launch_and_commit
from scoop_outbox.daemon.service import Daemons, daemons
from scoop_outbox.daemon.signals import Signals
from scoop_outbox.daemon.worker import SLOTS
from scoop_outbox.errors import DatabaseError, DefinitionError
from scoop_outbox.handle import Handle
from scoop_outbox.message import Message, Topic, checked_name, dump_json
from scoop_outbox.outcomes import Outcomes
from scoop_outbox.policy import seconds
from scoop_outbox.saga import Saga
from scoop_outbox.scope import emission
from scoop_outbox.status import Status, read_message, read_status
from scoop_outbox.store import migrate
from scoop_outbox.store.connect import told_to_migrate
from scoop_outbox.store.home import Home
from scoop_outbox.store.joined import AsyncTransaction, Transaction, run_joined, run_joined_blocking
from scoop_outbox.store.schema import DEFAULT_SCHEMA, checked_schema

DATABASE_VARIABLE = "SCOOP_OUTBOX_DATABASE"
BROKER_VARIABLE = "SCOOP_OUTBOX_BROKER"


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

    Raises:
        DefinitionError: a name cannot be used.
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
    ) -> None:
        """Declare a service; nothing is opened."""
        self.service = checked_name("service", service)
        self.group = checked_name("group", service if group is None else group)
        self.start = start
        self._broker_settings = dict(broker_settings or {})
        self._broker = self._connect_to(broker or os.environ.get(BROKER_VARIABLE))
        self._database = database or os.environ.get(DATABASE_VARIABLE)
        self._schema = checked_schema(schema)
        self._sagas: dict[str, Saga] = {}
        self._home: Home | None = None
        self._signals: Signals | None = None
        self._outcomes: Outcomes | None = None
        self._announced: frozenset[str] = frozenset()
        self._running = False
        if self._database is not None:
            self._home = self._open()

    def __repr__(self) -> str:
        """Show the service and its sagas."""
        return f"<Scoop {self.service!r}: {', '.join(map(repr, self._sagas)) or 'no sagas'}>"

    def _open(self) -> Home:
        if self._database is None:
            raise DatabaseError(
                f"service {self.service!r} has no database: pass database='postgresql://...' to Scoop(), "
                f"or set {DATABASE_VARIABLE}"
            )
        return Home(self._database, self._schema, f"scoop_outbox {self.service}"[:63])

    def _connect_to(self, url: str | None) -> Broker | None:
        return None if url is None or plugins.is_builtin(url) else plugins.load(url, self._broker_settings)

    def configure(
        self,
        *,
        database: str | None = None,
        broker: str | None = None,
        broker_settings: Mapping[str, object] | None = None,
    ) -> None:
        """Use another database or broker than was declared, before anything is opened.

        Raises:
            DatabaseError: the database's URL is wrong.
            BrokerError: no installed adapter serves the broker's URL, or the adapter refuses URL or settings.
        """
        self._broker_settings.update(broker_settings or {})
        if broker is not None:
            self._broker = self._connect_to(broker)
        if database is not None:
            self._database = database
            self._home = self._open()
            self._signals = None
            self._outcomes = None
            self._announced = frozenset()

    @property
    def home(self) -> Home:
        """The service's database.

        Raises:
            DatabaseError: none was given.
        """
        if self._home is None:
            self._home = self._open()
        return self._home

    @property
    def signals(self) -> Signals:
        """The hints between the daemons of this process and its launches."""
        if self._signals is None:
            self._signals = Signals(self.home)
        return self._signals

    def _outcomes_of_home(self) -> Outcomes:
        if self._outcomes is None:
            self._outcomes = Outcomes(self.home, self.signals)
        return self._outcomes

    # -- declaring ----------------------------------------------------------------------------------------------

    def saga(self, name: str, on: str | Topic[Any], *, ordered: Literal["key"] | None = None) -> Saga:
        """Declare a saga: a handler of the messages on a topic.

        Args:
            name: unique within the service. It is stored with its runs: renaming a saga strands them.
            on: the topic; several sagas may share one, each gets every message.
            ordered: `"key"` begins with a message when the one of the same key before it has ended: see the guide.

        Raises:
            DefinitionError: the name is taken or cannot be used, or the topic or `ordered` cannot.
        """
        if name in self._sagas:
            raise DefinitionError(
                f"service {self.service!r} has a saga {name!r} already (on {self._sagas[name].topic!r}): "
                "give each saga a name of its own"
            )
        saga = self._sagas[checked_name("saga", name)] = Saga(name, on, ordered=ordered)
        return saga

    @property
    def sagas(self) -> Mapping[str, Saga]:
        """The declared sagas by name."""
        return dict(self._sagas)

    @property
    def _brokered(self) -> bool:
        return self._broker is not None

    @property
    def broker(self) -> Broker | None:
        """The broker; None is the built-in one."""
        return self._broker

    @property
    def subscription(self) -> Subscription:
        """What this service receives."""
        topics = tuple(dict.fromkeys(saga.topic for saga in self._sagas.values()))
        return Subscription(self.service, self.group, topics, self.start)

    def check(self) -> None:
        """Refuse what cannot run, before anything is started.

        Raises:
            DefinitionError: a saga has no steps.
        """
        for saga in self._sagas.values():
            saga.check()

    # -- launching ----------------------------------------------------------------------------------------------

    async def launch(
        self,
        topic: str | Topic[Any],
        payload: Any,
        *,
        key: str | bytes | None = None,
        context: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        session: AsyncTransaction | None = None,
    ) -> Handle:
        """Launch a message from outside any saga: it starts a hierarchy of its own.

        Args:
            topic: a name, or a typed topic.
            payload: JSON values, a dataclass, a pydantic model, or bytes.
            key: orders the message among others of the same key.
            context: what its handlers find in `scope.context`.
            headers: text headers that travel with the message.
            session: launch inside this transaction, to be committed with it and gone with it: an SQLAlchemy
                `AsyncSession` or `AsyncConnection`, or a psycopg `AsyncConnection`, on this service's database.
                Without it the message is launched in a transaction of its own, durably when this returns.

        Raises:
            DefinitionError, PayloadError: nothing is launched; the message says what cannot be encoded.
            DatabaseError: the database cannot be reached or is not migrated, or `session` cannot be joined.
        """
        text = None if context is None else dump_json(dict(context), "the context")
        launched = emission(topic, payload, key=key, headers=headers, context=text, awaited=False, depth=1)
        await self.announce()
        if session is not None:
            with told_to_migrate(self.home.url):
                await run_joined(
                    launch([launched], brokered=self._brokered), session, self.home.queries, self.signals.outbox
                )
        else:
            async with self.home.driver() as driver:
                await driver.run(launch_and_commit([launched], self.signals, brokered=self._brokered))
        return self.handle(launched.message_id)

    def launch_sync(
        self,
        topic: str | Topic[Any],
        payload: Any,
        *,
        key: str | bytes | None = None,
        context: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        session: Transaction | None = None,
    ) -> Handle:
        """Do as `launch`, for code without an event loop; `session` is a blocking session or connection.

        Raises:
            DefinitionError, PayloadError, DatabaseError: as `launch`.
        """
        text = None if context is None else dump_json(dict(context), "the context")
        launched = emission(topic, payload, key=key, headers=headers, context=text, awaited=False, depth=1)
        self.announce_sync()
        if session is not None:
            with told_to_migrate(self.home.url):
                run_joined_blocking(
                    launch([launched], brokered=self._brokered), session, self.home.queries, self.signals.outbox
                )
        else:
            with self.home.blocking_driver() as driver:
                driver.run(launch_and_commit([launched], self.signals, brokered=self._brokered))
        return self.handle(launched.message_id)

    def handle(self, message_id: uuid.UUID) -> Handle:
        """Return the handle of a message whose id was kept."""
        return Handle(message_id, self.home, self._outcomes_of_home())

    # -- asking -------------------------------------------------------------------------------------------------

    async def status(self, message_id: uuid.UUID) -> Status:
        """Return the whole hierarchy below a message, as it stands now.

        Raises:
            UnknownMessage: it has not been taken in here, or has been pruned.
        """
        async with self.home.driver() as driver:
            return await driver.run(read_status(message_id))

    def status_sync(self, message_id: uuid.UUID) -> Status:
        """Do as `status`, for code without an event loop.

        Raises:
            UnknownMessage: it has not been taken in here, or has been pruned.
        """
        with self.home.blocking_driver() as driver:
            return driver.run(read_status(message_id))

    async def message(self, message_id: uuid.UUID) -> Message:
        """Return a message that has been taken in.

        Raises:
            UnknownMessage: it has not been taken in here, or has been pruned.
        """
        async with self.home.driver() as driver:
            return await driver.run(read_message(message_id))

    # -- running ------------------------------------------------------------------------------------------------

    async def migrate(self) -> None:
        """Create or upgrade the tables: the same as `scoop-outbox migrate`.

        Raises:
            DatabaseError: the database cannot be reached, or its user may not create tables.
        """
        await asyncio.to_thread(migrate.migrate, self.home.url, self._schema)

    async def announce(self) -> None:
        """Make the subscriptions of this service's sagas known, so that its messages are waited for.

        Done by `running` and before the first launch.

        Raises:
            DefinitionError: a saga has no steps.
            DatabaseError: the database cannot be reached or is not migrated.
        """
        names = frozenset(self._sagas)
        if names != self._announced:
            self.check()
            async with self.home.driver() as driver:
                await driver.run(subscribe(self.service, list(self._sagas.values())))
            self._announced = names

    def announce_sync(self) -> None:
        """Do as `announce`, for code without an event loop.

        Raises:
            DefinitionError: a saga has no steps.
            DatabaseError: the database cannot be reached or is not migrated.
        """
        names = frozenset(self._sagas)
        if names != self._announced:
            self.check()
            with self.home.blocking_driver() as driver:
                driver.run(subscribe(self.service, list(self._sagas.values())))
            self._announced = names

    @asynccontextmanager
    async def running(
        self, *, relay: bool = True, worker: bool = True, slots: int = SLOTS, grace: float | timedelta = 20.0
    ) -> AsyncIterator[Daemons]:
        """Run relay and worker in this process, for as long as the block lasts.

        Args:
            relay: whether to publish the outbox.
            worker: whether to execute this service's runs.
            slots: how many runs are executed at the same time.
            grace: how long running steps get to finish when the block is left.

        Raises:
            DefinitionError: a saga has no steps, or the service is running in this process already.
            DatabaseError: the database cannot be reached or is not migrated.
            BrokerError: the broker says that this service cannot receive, and what to do about it.
        """
        if slots < 1:
            raise DefinitionError(f"slots={slots}: a worker needs at least one")
        if self._running:
            raise DefinitionError(f"service {self.service!r} is running in this process already: once is enough")
        self.check()
        await self.announce()
        async with self.home.driver() as driver:
            migrate.check(await driver.run(read_revision()), self.home.url)
        self._running = True
        try:
            async with daemons(
                self.home,
                self.subscription,
                self._sagas,
                signals=self.signals,
                broker=self._broker,
                relay=relay,
                worker=worker,
                slots=slots,
                grace=seconds(grace),
            ) as running:
                yield running
        finally:
            self._running = False
            await self.close()

    async def close(self) -> None:
        """Close the connections that launching and asking have left open in this event loop, and the blocking ones.

        `running` does so at its end. What is used afterwards opens anew.
        """
        if self._home is not None:
            await self._home.dispose()

    def close_sync(self) -> None:
        """Close the connections that `launch_sync` and the other blocking calls have left open."""
        if self._home is not None:
            self._home.dispose_blocking()
