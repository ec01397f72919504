"""A service whose sagas are scattered over homes: each saga in a service and a database of its own.

Tests declare their sagas, launch, and look at what has become of it as if all of that were one service.
"""

import asyncio
import dataclasses
import itertools
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import psycopg

from scoop_outbox import (
    Answer,
    External,
    Handle,
    Message,
    RollbackAnswer,
    RunStatus,
    Saga,
    Scoop,
    Status,
    UnknownMessage,
)
from scoop_outbox.app import service_of
from scoop_outbox.daemon.running import Running
from scoop_outbox.message import topic_name
from tests.carriers import Carrier
from tests.waiting import until

MOST = 6
"""How many homes a service is scattered over at most: from there on sagas share them."""
PATIENCE = 30.0
"""Seconds within which homes know each other, also on a machine that is busy."""

_ROOTS = "select id from scoop_outbox.run where message_id = %s"
_BRANCHES = """
select distinct r.message_id from scoop_outbox.run r
where r.lineage[1] = any(%s) and not exists (
    select from scoop_outbox.run p where p.id = r.lineage[cardinality(r.lineage) - 1]
)
"""
"""What a hierarchy has launched elsewhere and is handled here."""
_LAUNCHES = "select child_run, seq from scoop_outbox.child where child_run = any(%s) and home is not null"
_RUN = "select from scoop_outbox.run where id = %s"
_HANDLES = "select from scoop_outbox.run where message_id = %s"
_WAITS = "select from scoop_outbox.child where message_id = %s and home is not null"
_REPORTED = "select run_id, generation from scoop_outbox.foreign_child"
_CANCELLING = "select child_run from scoop_outbox.child where state = 'cancelling' and child_run is not null"
_CANCELLED = """
select target from scoop_outbox.request where kind = 'cancel'
union select id from scoop_outbox.run where ended_at is not null
"""
_HEARD = "select child_run, generation from scoop_outbox.child where home is not null and child_run is not null"
_EXPECTED = "select from scoop_outbox.child where message_id = %s and (run_id = message_id or service = %s)"
_KNOWN = """
select h.id, h.revision, array(
    select (p.id, p.revision, p.confirmed)::text from scoop_outbox.peer p where p.revision > 0
) from scoop_outbox.home h
"""


class World:
    """The homes of a test.

    Args:
        database: of the first home; what a test does to it by SQL is done there.
        make_database: makes those of the others.
        carrier: what carries messages between them.

    Attributes:
        apps: the services, as tests see them.
        running: those that run, each with its own home.
    """

    def __init__(self, database: str, make_database: Callable[[], str], carrier: Carrier) -> None:
        self.carrier = carrier
        self.apps: list[Scattered] = []
        self.running: list[Scoop] = []
        self._databases = itertools.chain([database], iter(make_database, None))
        self._made: dict[str, str] = {}
        self._places: dict[tuple[str, str], str] = {}

    def place(self, service: str, saga: str) -> str:
        """The service in which a saga lives: the first one of a service in that itself."""
        own = [name for (whose, _), name in self._places.items() if whose == service]
        places = list(dict.fromkeys(own))
        new = f"{service}-{saga}" if places else service
        place = new if len(places) < MOST else places[len(own) % MOST]
        return self._places.setdefault((service, saga), place)

    def database(self, service: str) -> str:
        """The database of a service, the same for all its processes."""
        if service not in self._made:
            self._made[service] = next(self._databases)
        return self._made[service]

    def home(self, service: str) -> str:
        """What the home of a service is called."""
        return re.sub(r"[^A-Za-z0-9._-]", "-", service)[:100]


class Scattered(Scoop):
    """A service that keeps the first of its sagas, and gives each of the others a service and a home of its own.

    What is launched is launched in the home of the first one that handles it.

    Args:
        world: where the homes are.
        service: the service's name; the others' names begin with it.
    """

    def __init__(self, world: World, service: str) -> None:
        super().__init__(service, database=world.database(service), home=world.home(service))
        self._world = world
        self._others: dict[str, Scoop] = {}
        world.apps.append(self)
        world.carrier.carry(self)

    @property
    def homes(self) -> Sequence[Scoop]:
        """The services, this one first."""
        return [self, *self._others.values()]

    @property
    def sagas(self) -> Mapping[str, Saga]:
        return {name: saga for home in self.homes for name, saga in service_of(home).sagas.items()}

    def _at(self, saga: str) -> Scoop:
        """The service in which a saga is to live."""
        place = self._world.place(self.service, saga)
        if place == self.service:
            return self
        if place not in self._others:
            database, home = self._world.database(place), self._world.home(place)
            self._others[place] = self._world.carrier.carry(Scoop(place, database=database, home=home))
        return self._others[place]

    def saga(self, name: str, on: Any, **options: Any) -> Saga[Any]:
        at = self._at(name)
        return super().saga(name, on, **options) if at is self else at.saga(name, on, **options)

    def external(self, name: str, on: Any, **options: Any) -> External[Any]:
        at = self._at(name)
        return super().external(name, on, **options) if at is self else at.external(name, on, **options)

    def _listening(self, topic: Any) -> Scoop:
        """The service that handles a topic."""
        name = topic_name(topic)
        return next(
            (home for home in self.homes if any(saga.topic == name for saga in service_of(home).sagas.values())), self
        )

    async def launch(self, topic: Any, payload: Any, **options: Any) -> Handle:
        return await Scoop.launch(self._listening(topic), topic, payload, **options)

    def launch_sync(self, topic: Any, payload: Any, **options: Any) -> Handle:
        return Scoop.launch_sync(self._listening(topic), topic, payload, **options)

    @asynccontextmanager
    async def running(self, **options: Any) -> AsyncIterator[Running]:
        """Run all homes, and begin when they know each other."""
        stop, ready = asyncio.Event(), [asyncio.get_running_loop().create_future() for _ in self.homes]
        tasks = [
            asyncio.create_task(_run(home, stop, begun, options)) for home, begun in zip(self.homes, ready, strict=True)
        ]
        speaks = options.get("relay", True) and options.get("worker", True)
        try:
            first: Running
            first, *_ = await asyncio.gather(*ready)
            if speaks:
                self._world.running += self.homes
                await until(lambda: know_each_other(self._world.running), PATIENCE)
            yield first
        finally:
            if speaks:
                self._world.running = [home for home in self._world.running if home not in self.homes]
            stop.set()
            await asyncio.gather(*tasks)

    async def announce(self) -> None:
        """Announce all services, and let the homes that there are learn of it: who has never met others waits for none.

        They run for as long as that takes.
        """
        async with AsyncExitStack() as stack:
            for app in self._world.apps:
                if app not in self._world.running:
                    await stack.enter_async_context(app.running())

    async def close(self) -> None:
        for home in self._others.values():
            await home.close()
        await super().close()

    async def status(self, message_id: uuid.UUID) -> Status:
        """Gather from all homes."""
        return await asyncio.to_thread(self.status_sync, message_id)

    def status_sync(self, message_id: uuid.UUID) -> Status:
        """Gather from all homes."""
        found: list[Status] = []
        roots = [run for home in self.homes for (run,) in _ask(home, _ROOTS, message_id)]
        for home in self.homes:
            below = {message for (message,) in _ask(home, _BRANCHES, roots)}
            for one in (message_id, *(below - {message_id})):
                try:
                    found.append(Scoop.status_sync(home, one))
                except UnknownMessage:
                    continue
        if not any(one.message_id == message_id for one in found):
            raise UnknownMessage(f"message {message_id} has not been taken in anywhere")
        return Status(message_id, self._joined(found))

    def _joined(self, found: Iterable[Status]) -> tuple[RunStatus, ...]:
        """Each run once, parents first, with the execution elsewhere that launched its message."""
        runs = {run.id: run for one in found for run in one.runs}
        by = dict(pair for home in self.homes for pair in _ask(home, _LAUNCHES, list(runs)))
        joined = [dataclasses.replace(run, launched_by=by.get(run.id, run.launched_by)) for run in runs.values()]
        return tuple(sorted(joined, key=lambda run: (run.created_at, len(run.lineage), run.id)))

    async def message(self, message_id: uuid.UUID) -> Message:
        for home in self._others.values():
            try:
                return await home.message(message_id)
            except UnknownMessage:
                continue
        return await super().message(message_id)

    def handle(self, message_id: uuid.UUID) -> Handle:
        """Return the handle of a message at the home that waits for it."""
        waits = [home for home in self._others.values() if _ask(home, _EXPECTED, message_id, home.service)]
        return Scoop.handle((*waits, self)[0], message_id)

    def _where(self, participant: Any) -> Scoop:
        """The service of somebody outside."""
        name = participant if isinstance(participant, str) else participant.name
        return next((home for home in self._others.values() if name in home.sagas), self)

    def _of(self, run_id: uuid.UUID) -> Scoop:
        """The service in whose home a run is, or that has launched a message; else one that handles it."""
        asked = ((home, question) for question in (_RUN, _WAITS, _HANDLES) for home in self.homes)
        return next((home for home, question in asked if _ask(home, question, run_id)), self)

    # Somebody who does something about a run does it at the home where it is.

    async def cancel(self, id: uuid.UUID, **said: Any) -> Answer:  # noqa: A002
        return await Scoop.cancel(self._of(id), id, **said)

    async def rollback(self, id: uuid.UUID, **said: Any) -> RollbackAnswer:  # noqa: A002
        """Ask when homes know what has happened, and let children hear that they are to give up.

        What becomes of it otherwise is for tests of homes.
        """
        runs = self in self._world.running
        if runs:
            await until(lambda: have_heard_all(self._world.running), PATIENCE)
        answered = await Scoop.rollback(self._of(id), id, **said)
        if runs and said.get("if_active") == "cancel":
            await until(lambda: have_been_told(self._world.running), PATIENCE)
        return answered

    async def complete(self, id: uuid.UUID, name: Any, **said: Any) -> Answer:  # noqa: A002
        return await Scoop.complete(self._where(name), id, name, **said)

    async def fail(self, id: uuid.UUID, name: Any, **said: Any) -> Answer:  # noqa: A002
        return await Scoop.fail(self._where(name), id, name, **said)

    def complete_sync(self, id: uuid.UUID, name: Any, **said: Any) -> Answer:  # noqa: A002
        return Scoop.complete_sync(self._where(name), id, name, **said)

    def fail_sync(self, id: uuid.UUID, name: Any, **said: Any) -> Answer:  # noqa: A002
        return Scoop.fail_sync(self._where(name), id, name, **said)

    async def retry(self, run_id: uuid.UUID, **said: Any) -> Answer:
        return await Scoop.retry(self._of(run_id), run_id, **said)

    async def skip(self, run_id: uuid.UUID, **said: Any) -> Answer:
        return await Scoop.skip(self._of(run_id), run_id, **said)

    async def abandon(self, run_id: uuid.UUID, **said: Any) -> Answer:
        return await Scoop.abandon(self._of(run_id), run_id, **said)


async def _run(home: Scoop, stop: asyncio.Event, begun: "asyncio.Future[Running]", options: Mapping[str, Any]) -> None:
    """Run a service until all shall stop; it is entered and left in one task."""
    try:
        async with Scoop.running(home, **options) as running:
            begun.set_result(running)
            await stop.wait()
    except BaseException as error:
        if begun.done():
            raise
        begun.set_exception(error)


def _ask(home: Scoop, statement: str, *params: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(service_of(home).home.url) as connection:
        return connection.execute(statement.encode(), params).fetchall()


async def know_each_other(homes: Sequence[Scoop]) -> bool:
    """Tell whether each home knows who listens in all others now, and has been told that they know."""
    return await asyncio.to_thread(_know_each_other, homes)


async def have_heard_all(homes: Sequence[Scoop]) -> bool:
    """Tell whether each home has been told the last that others have to say of the children that it waits for."""
    return await asyncio.to_thread(_have_heard_all, homes)


def _have_heard_all(homes: Sequence[Scoop]) -> bool:
    reported, heard = (
        {run: number for home in homes for run, number in _ask(home, one)} for one in (_REPORTED, _HEARD)
    )
    return reported == heard


async def have_been_told(homes: Sequence[Scoop]) -> bool:
    """Tell whether children that are to give up have been asked to, or have ended."""
    return await asyncio.to_thread(_have_been_told, homes)


def _have_been_told(homes: Sequence[Scoop]) -> bool:
    asked, told = ({run for home in homes for (run,) in _ask(home, one)} for one in (_CANCELLING, _CANCELLED))
    return asked <= told


def _know_each_other(homes: Sequence[Scoop]) -> bool:
    said: dict[str, tuple[int, dict[str, tuple[int, int]]]] = {}
    for home in homes:
        ((name, revision, known),) = _ask(home, _KNOWN)
        peers = (one.strip("()").split(",") for one in known)
        said[str(name)] = revision, {peer: (int(heard), int(confirmed)) for peer, heard, confirmed in peers}
    return all(
        said[one][1].get(other) == (said[other][0], said[one][0]) for one, other in itertools.permutations(said, 2)
    )
