"""The application: what a service declares, and how the world outside its sagas talks to it."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from scoop_outbox.answers import Answer
from scoop_outbox.broker.protocol import Broker, Resource, Subscription
from scoop_outbox.client.launcher import Launcher
from scoop_outbox.core.plans import parking
from scoop_outbox.core.plans.subscriptions import read_revision
from scoop_outbox.daemon.announcer import note
from scoop_outbox.daemon.intake import HIGH_WATER
from scoop_outbox.daemon.process import daemons
from scoop_outbox.daemon.running import Running
from scoop_outbox.daemon.worker.interruptions import MOST
from scoop_outbox.daemon.worker.worker import SLOTS
from scoop_outbox.errors import BrokerError, DefinitionError
from scoop_outbox.message import Message, Topic, topic_name
from scoop_outbox.policy import seconds
from scoop_outbox.status import Status, read_message, read_status
from scoop_outbox.store import revisions

log = logging.getLogger(__name__)


class Scoop(Launcher):
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

    Raises:
        DefinitionError: a name cannot be used.
        DatabaseError: the database's URL is wrong.
        BrokerError: no installed adapter serves the broker's URL, or the adapter refuses URL or settings.
    """

    # -- asking -------------------------------------------------------------------------------------------------

    async def status(self, message_id: uuid.UUID) -> Status:
        """Return the whole hierarchy below a message, as it stands now.

        Raises:
            UnknownMessage: it has not been taken in here, or has been pruned.
        """
        async with self.home.driver() as driver:
            return await driver.run(read_status(message_id, self.home.failures))

    def status_sync(self, message_id: uuid.UUID) -> Status:
        """Do as `status`, for code without an event loop.

        Raises:
            UnknownMessage: it has not been taken in here, or has been pruned.
        """
        with self.home.blocking_driver() as driver:
            return driver.run(read_status(message_id, self.home.failures))

    async def message(self, message_id: uuid.UUID) -> Message:
        """Return a message that has been taken in.

        Raises:
            UnknownMessage: it has not been taken in here, or has been pruned.
        """
        async with self.home.driver() as driver:
            return await driver.run(read_message(message_id))

    # -- operating ----------------------------------------------------------------------------------------------

    async def retry(self, run_id: uuid.UUID) -> Answer:
        """Take a parked run on again, where it was parked: the same as `scoop-outbox retry`.

        A run that was parked because no living version of its saga could take it over goes on under whichever does.

        Args:
            run_id: the run, as in `status`.

        Returns:
            `ACCEPTED`; `NOTHING_TO_DO` when it is not parked; `UNKNOWN` when there is no such run in this database.

        Raises:
            DatabaseError: the database cannot be reached or is not migrated.
        """
        async with self.home.driver() as driver:
            answer = await driver.run(parking.retry(run_id, self.signals))
        log.info("retry of run %s asked by service %s: %s", run_id, self.service, answer)
        return answer

    # -- at the broker ------------------------------------------------------------------------------------------

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
        return await self._topology(topics, create=False)

    async def apply_topology(self, *topics: str | Topic[Any]) -> list[Resource]:
        """Create what does not exist of `topology`: the same as `scoop-outbox topology apply`. Can be run again.

        Returns:
            As `topology`: what `exists` was there before.

        Raises:
            DefinitionError, BrokerError: as `topology`.
        """
        return await self._topology(topics, create=True)

    async def _topology(self, topics: Iterable[str | Topic[Any]], *, create: bool) -> list[Resource]:
        published = list(dict.fromkeys(map(topic_name, topics)))
        if self.broker is None or not (published or self.sagas):
            return []
        return await self.broker.topology(published, self.subscription if self.sagas else None, create=create)

    # -- running ------------------------------------------------------------------------------------------------

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

        await asyncio.to_thread(migrate, self.home.url, self._schema, wait=wait, lock_timeout=lock_timeout)

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
        self.check()
        async with self.home.driver() as driver:
            await driver.run(self._guard(relay=False))
            if not await self.announcer.announce(driver):
                raise BrokerError(self._unasked)

    def announce_sync(self) -> None:
        """Do as `announce`, for code without an event loop.

        Raises:
            DefinitionError: a saga has no steps, or a former name is another saga's.
            DatabaseError: the database cannot be reached or is not migrated.
            BrokerError: the broker says that the service cannot receive, and what to do about it, or cannot be reached.
        """
        self.check()
        announcer = self.announcer
        if announcer.done:
            return
        with self.home.blocking_driver() as driver:
            driver.run(self._guard(relay=False))
            if self._broker is not None:
                with ThreadPoolExecutor(1) as thread:
                    # This thread may have a loop that runs.
                    preparing = thread.submit(asyncio.run, _prepared(self._broker, self.subscription))
                    announcer.problem = preparing.result()
                if announcer.problem is not None:
                    raise BrokerError(self._unasked)
            note(self.service, driver.run(announcer.plan()))
        announcer.done = True

    @asynccontextmanager
    async def running(
        self,
        *,
        relay: bool = True,
        worker: bool = True,
        slots: int = SLOTS,
        high_water: int = HIGH_WATER,
        max_interruptions: int = MOST,
        grace: float | timedelta = 20.0,
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
            grace: how long running steps get to finish when the block is left.

        Raises:
            DefinitionError: a saga has no steps, or the service is running in this process already.
            DatabaseError: the database cannot be reached or is not migrated.
            BrokerError: the broker says that this service cannot receive, and what to do about it; then it has not
                been announced. Or this service has a broker, or this process relays and others of the database have
                one, and it was not told of it: say `postgresql://` to do without on purpose.
        """
        _check_numbers(slots, high_water, max_interruptions)
        if self._running:
            raise DefinitionError(f"service {self.service!r} is running in this process already: once is enough")
        self.check()
        self._seal(running=True)
        try:
            async with self.home.driver() as driver:
                revisions.check(await driver.run(read_revision()), self.home.url)
                await driver.run(self._guard(relay=relay))
            async with daemons(
                self.home,
                self.subscription,
                self._sagas,
                signals=self.signals,
                announcer=self.announcer,
                broker=self._broker,
                relay=relay,
                worker=worker,
                slots=slots,
                high_water=high_water,
                max_interruptions=max_interruptions,
                grace=seconds(grace),
            ) as running:
                yield running
        finally:
            self._seal(running=False)
            await self.close()

    async def close(self) -> None:
        """Close the connections that launching and asking have left open in this event loop, and the blocking ones.

        `running` does so at its end. What is used afterwards opens anew.
        """
        try:
            if self._signals is not None:
                await self._signals.close()
        finally:
            if self._home is not None:
                await self._home.dispose()

    def close_sync(self) -> None:
        """Close the connections that `launch_sync` and the other blocking calls have left open."""
        if self._signals is not None:
            self._signals.close_blocking()
        if self._home is not None:
            self._home.dispose_blocking()


async def _prepared(broker: Broker, subscription: Subscription) -> str | None:
    return await broker.prepare(subscription)


def _check_numbers(slots: int, high_water: int, max_interruptions: int) -> None:
    if slots < 1:
        raise DefinitionError(f"slots={slots}: a worker needs at least one")
    if high_water < 1:
        raise DefinitionError(f"high_water={high_water}: nothing would ever be taken in; it is at least 1")
    if max_interruptions < 1:
        raise DefinitionError(f"max_interruptions={max_interruptions}: every run would be parked; it is at least 1")
