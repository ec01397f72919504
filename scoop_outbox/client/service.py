"""What a service declares: its name, its sagas, and the servers that it works with."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from scoop_outbox._forks import begins_anew
from scoop_outbox._generics import R, T
from scoop_outbox.broker.protocol import Broker, Resource, Subscription
from scoop_outbox.client.servers import Servers, checked_home_name
from scoop_outbox.core.plans.homes import Identity
from scoop_outbox.daemon.announcer import Announcer, control_subscription
from scoop_outbox.daemon.hints import ProcessHints
from scoop_outbox.daemon.maintenance import Archive
from scoop_outbox.daemon.worker.alerts import Alert
from scoop_outbox.errors import DefinitionError
from scoop_outbox.external import External, ExternalOptions
from scoop_outbox.message import Topic, checked_name, topic_name
from scoop_outbox.saga import Saga, SagaOptions
from scoop_outbox.store.home import Home
from scoop_outbox.wire.control import PREFIX


class Service:
    """A service as it is declared. `Scoop` is made of one: the commands, the demonstration and tests look into it.

    Args:
        name: the service's name.
        servers: its database and its broker.
        group: the consumer group or queue; called as the service unless given.
        start: where a group begins that has never been at the broker.

    Attributes:
        name: the service's name.
        servers: its database and its broker.
        group: the consumer group or queue.
        start: where a new group begins.
        sagas: the declared sagas by name.
        alerts: callbacks that are told of runs that get stuck.
        archives: callbacks that are handed hierarchies that are about to be pruned.
        running: whether this process runs the service, and takes no more declarations.
    """

    def __init__(self, name: str, servers: Servers, *, group: str | None, start: str | None) -> None:
        """Declare a service without sagas; nothing is opened."""
        self.name = checked_name("service", name)
        self.group = checked_name("group", name if group is None else group)
        self.start = start
        self.servers = servers
        self.sagas: dict[str, Saga] = {}
        self.alerts: list[Alert] = []
        self.archives: list[Archive] = []
        self.running = False
        self._announcer: Announcer | None = None
        begins_anew(self)

    def begin_anew(self) -> None:
        """Note that nothing runs in a forked child, whatever its parent runs."""
        self.seal(running=False)

    def seal(self, *, running: bool) -> None:
        """Take no more declarations while this process runs what was declared, and take them again afterwards."""
        self.running = running
        for saga in self.sagas.values():
            saga.sealed = running

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
        """See `Scoop.configure`."""
        if home is not None:
            self.servers.home_name = checked_home_name(home)
            self._announcer = None
        if group is not None:
            self.group = checked_name("group", group)
        self.start = self.start if start is None else start
        if broker is not None or broker_settings:
            self.servers.use_broker(broker, broker_settings or {})
            self._announcer = None
        if database is not None:
            self.servers.use_database(database)
            self._announcer = None

    def saga(self, name: str, on: str | Topic[T], options: SagaOptions) -> Saga[T]:
        """See `Scoop.saga`."""
        self._check_declaration(name)
        saga = Saga(name, on, **options)
        self.sagas[name] = saga
        return saga

    def external(self, name: str, on: str | Topic[T], options: ExternalOptions) -> External[T]:
        """See `Scoop.external`."""
        self._check_declaration(name)
        external = External(name, on, **options)
        self.sagas[name] = external
        return external

    def _check_declaration(self, name: str) -> None:
        if self.running:
            raise DefinitionError(
                f"saga {name!r} is declared too late: service {self.name!r} is running in this process, and would "
                "neither receive the saga's messages nor execute it. Declare all sagas before app.running() begins, "
                "where the module is imported"
            )
        if name in self.sagas:
            raise DefinitionError(
                f"service {self.name!r} has a saga {name!r} already (on {self.sagas[name].topic!r}): "
                "give each saga a name of its own"
            )

    async def topology(self, topics: Iterable[str | Topic[Any]], *, create: bool) -> list[Resource]:
        """Tell what has to exist at the broker, or create it; see `Scoop.topology`."""
        published = list(dict.fromkeys(map(topic_name, topics)))
        if self.broker is None:
            return []
        found: list[Resource] = []
        if published or self.sagas:
            found += await self.broker.topology(published, self.subscription if self.sagas else None, create=create)
        if (name := self.servers.home_name) is not None:
            control = control_subscription(Identity(uuid.UUID(int=0), name, PREFIX))
            found += await self.broker.topology(control.topics, control, create=create)
        return found

    def check(self) -> None:
        """Refuse what cannot run, before anything is started.

        Raises:
            DefinitionError: a saga has no steps, or a former name is another saga's.
        """
        had: dict[str, str] = {}
        for saga in self.sagas.values():
            saga.check()
            for former in saga.formerly:
                other = former if former in self.sagas else had.setdefault(former, saga.name)
                if other != saga.name:
                    raise DefinitionError(
                        f"saga {saga.name!r} was formerly {former!r}, and so is, or was, saga {other!r} of service "
                        f"{self.name!r}: only one of them can take it over"
                    )

    @property
    def home(self) -> Home:
        """The service's database.

        Raises:
            DatabaseError: none was given.
        """
        return self.servers.home

    @property
    def hints(self) -> ProcessHints:
        """The hints between the daemons of this process and its launches.

        Raises:
            DatabaseError: no database was given.
        """
        return self.servers.hints

    @property
    def broker(self) -> Broker | None:
        """The broker; None is the built-in one."""
        return self.servers.broker

    @property
    def subscription(self) -> Subscription:
        """What this service receives."""
        topics = tuple(dict.fromkeys(saga.topic for saga in self.sagas.values()))
        return Subscription(self.name, self.group, topics, self.start)

    @property
    def announcer(self) -> Announcer:
        """What makes this service known, with the sagas that it has now."""
        if self._announcer is None or self._announcer.names != frozenset(self.sagas):
            self._announcer = Announcer(self.broker, self.subscription, self.sagas, self.servers.home_name)
        return self._announcer


def checked_callback(name: str, callback: Callable[[T], R]) -> Callable[[T], R]:
    """Return a callback that is registered by a method of this name.

    Raises:
        DefinitionError: it cannot be called.
    """
    if not callable(callback):
        raise DefinitionError(f"{name} takes a function of one argument; {callback!r} cannot be called")
    return callback
