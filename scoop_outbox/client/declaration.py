"""What a service declares: its name, its sagas, its database and its broker."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from scoop_outbox._forks import begins_anew
from scoop_outbox.broker import plugins
from scoop_outbox.broker.protocol import Broker, Subscription
from scoop_outbox.client.waiters import Outcomes
from scoop_outbox.core.plans.claim import Unhandled
from scoop_outbox.core.plans.launch import Here
from scoop_outbox.core.plans.subscriptions import TakenOver, check_unbrokered, read_brokered
from scoop_outbox.core.statement import Plan
from scoop_outbox.daemon.announcer import Announcer, note
from scoop_outbox.daemon.signals import Signals
from scoop_outbox.errors import DatabaseError, DefinitionError
from scoop_outbox.message import Topic, checked_name
from scoop_outbox.saga import Saga
from scoop_outbox.scope import Emission
from scoop_outbox.store.home import Home
from scoop_outbox.store.schema import DEFAULT_SCHEMA, checked_schema
from scoop_outbox.wire.limits import MAX_BODY, Limits

DATABASE_VARIABLE = "SCOOP_OUTBOX_DATABASE"
BROKER_VARIABLE = "SCOOP_OUTBOX_BROKER"
BROKER_SETTINGS_VARIABLE = "SCOOP_OUTBOX_BROKER_SETTINGS"
"""Names a file of settings for the broker's client: the commands read it, a program passes settings itself."""


class Declaration:
    """A service as it is declared; `Scoop` says what the arguments are, and adds what is done with it."""

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
    ) -> None:
        """Declare a service; nothing is opened."""
        self.service = checked_name("service", service)
        self.group = checked_name("group", service if group is None else group)
        self.start = start
        self._broker_settings = dict(broker_settings or {})
        self._broker_url = broker or os.environ.get(BROKER_VARIABLE)
        self._broker = self._connect_to(self._broker_url)
        self._database = database or os.environ.get(DATABASE_VARIABLE)
        self._schema = checked_schema(schema)
        self._max_body = max_body
        self._limits  # noqa: B018 - refuses what cannot be
        self._sagas: dict[str, Saga] = {}
        self._home: Home | None = None
        self._signals: Signals | None = None
        self._outcomes: Outcomes | None = None
        self._announcer: Announcer | None = None
        self._carried = False
        self._running = False
        if self._database is not None:
            self._home = self._open()
        begins_anew(self)

    def begin_anew(self) -> None:
        """Note that nothing runs in a forked child, whatever its parent runs."""
        self._seal(running=False)

    def _seal(self, *, running: bool) -> None:
        """Take no more declarations while this process runs what was declared, and take them again afterwards."""
        self._running = running
        for saga in self._sagas.values():
            saga.sealed = running

    def __repr__(self) -> str:
        """Show the service and its sagas."""
        return f"<Scoop {self.service!r}: {', '.join(map(repr, self._sagas)) or 'no sagas'}>"

    def _open(self) -> Home:
        if self._database is None:
            raise DatabaseError(
                f"service {self.service!r} has no database: pass database='postgresql://...' to Scoop(), "
                f"or set {DATABASE_VARIABLE}"
            )
        return Home(self._database, self._schema, f"scoop_outbox {self.service}"[:63], self._limits)

    @property
    def _limits(self) -> Limits:
        return Limits(self._max_body, None if self._broker is None else self._broker.most_bytes)

    def _connect_to(self, url: str | None) -> Broker | None:
        return None if url is None or plugins.is_builtin(url) else plugins.load(url, self._broker_settings)

    def configure(
        self,
        *,
        database: str | None = None,
        broker: str | None = None,
        broker_settings: Mapping[str, object] | None = None,
        group: str | None = None,
        start: str | None = None,
    ) -> None:
        """Use another database or broker than was declared, before anything is opened.

        Args:
            database: instead of the one declared.
            broker: instead of the one declared.
            broker_settings: on top of those declared.
            group: the consumer group or queue, instead of the one declared.
            start: where a new group begins, instead of what was declared.

        Raises:
            DefinitionError: the group's name cannot be used.
            DatabaseError: the database's URL is wrong.
            BrokerError: no installed adapter serves the broker's URL, or the adapter refuses URL or settings.
        """
        if group is not None:
            self.group = checked_name("group", group)
        self.start = self.start if start is None else start
        self._broker_settings.update(broker_settings or {})
        if broker is not None or broker_settings:
            self._broker_url = broker or self._broker_url
            self._broker = self._connect_to(self._broker_url)
            self._announcer = None
            if self._home is not None:
                self._home.limits = self._limits
        if database is not None:
            self._database = database
            self._home = self._open()
            self._signals = None
            self._outcomes = None
            self._announcer = None

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

    @property
    def unhandled(self) -> Mapping[str, int]:
        """How many messages this process has launched on topics that no saga is subscribed to, by topic."""
        return self.signals.unhandled.counts

    def _note_unhandled(self, topics: Unhandled) -> None:
        if topics:
            self.signals.unhandled.note(topics, self.service, brokered=self._brokered)

    def _outcomes_of_home(self) -> Outcomes:
        if self._outcomes is None:
            self._outcomes = Outcomes(self.home, self.signals)
        return self._outcomes

    def saga(
        self,
        name: str,
        on: str | Topic[Any],
        *,
        ordered: Literal["key"] | None = None,
        version: str | None = None,
        formerly: Iterable[str] = (),
    ) -> Saga:
        """Declare a saga: a handler of the messages on a topic.

        Args:
            name: unique within the service. It is stored with its runs.
            on: the topic; several sagas may share one, each gets every message.
            ordered: `"key"` begins with a message when the one of the same key before it has ended: see the guide.
            version: tells this version of the saga from others that are deployed at the same time; unless given, its
                steps in order do. A run goes on in the version in which it began, while a worker has that.
            formerly: names that the saga had before. What is subscribed, waited for and under way under them is taken
                over when the service starts; leave them there as long as something of the old name may be undone.

        Raises:
            DefinitionError: the name is taken or cannot be used, or the topic, `ordered` or `formerly` cannot; or this
                process runs the service already, and would not execute the saga.
        """
        if self._running:
            raise DefinitionError(
                f"saga {name!r} is declared too late: service {self.service!r} is running in this process, and would "
                "neither receive the saga's messages nor execute it. Declare all sagas before app.running() begins, "
                "where the module is imported"
            )
        if name in self._sagas:
            raise DefinitionError(
                f"service {self.service!r} has a saga {name!r} already (on {self._sagas[name].topic!r}): "
                "give each saga a name of its own"
            )
        saga = self._sagas[name] = Saga(name, on, ordered=ordered, version=version, formerly=formerly)
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

    @property
    def announcer(self) -> Announcer:
        """What makes this service known, with the sagas that it has now."""
        if self._announcer is None or self._announcer.names != frozenset(self._sagas):
            self._announcer = Announcer(self._broker, self.subscription, self._sagas)
        return self._announcer

    @property
    def _unasked(self) -> str:
        return (
            f"service {self.service!r} is not announced, for its broker cannot be asked whether it can receive "
            f"({self.announcer.problem}): try again when it can be reached"
        )

    def _guard(self, *, relay: bool) -> Plan[None]:
        """Return the plan that refuses to do without a broker that somebody has, unless that was said on purpose."""
        if self._broker_url is None and self._broker is None:
            check_unbrokered((yield from read_brokered()), self.service, relay=relay)

    async def _introduce(self) -> None:
        """Before the first launch: make this service known, unless it is for a broker to say whether it can receive."""
        if not self.announcer.done:
            self.check()
            async with self.home.driver() as driver:
                note(self.service, await driver.run(self._introducing()))

    def _introduce_sync(self) -> None:
        if not self.announcer.done:
            self.check()
            with self.home.blocking_driver() as driver:
                note(self.service, driver.run(self._introducing()))

    def _introducing(self) -> Plan[Sequence[TakenOver]]:
        announcer = self.announcer
        if self._broker_url is None and self._broker is None:
            self._carried = self.service in (yield from read_brokered())
        if self._carried_by_broker:
            announcer.done = (yield from announcer.look()) >= announcer.names
            return ()
        taken_over = yield from announcer.plan()
        announcer.done = True
        return taken_over

    @property
    def _carried_by_broker(self) -> bool:
        """Whether a broker carries what this service launches, though this process may not have been told of it."""
        return self._brokered or self._carried

    def _here(self, launched: Sequence[Emission]) -> Here | None:
        """Return which sagas of this service will handle messages, if nobody else knows them yet."""
        announcer = self.announcer
        if announcer.done:
            return None
        return Here(self.service, {topic: announcer.listening(topic) for topic in {one.topic for one in launched}})

    def check(self) -> None:
        """Refuse what cannot run, before anything is started.

        Raises:
            DefinitionError: a saga has no steps, or a former name is another saga's.
        """
        had: dict[str, str] = {}
        for saga in self._sagas.values():
            saga.check()
            for former in saga.formerly:
                other = former if former in self._sagas else had.setdefault(former, saga.name)
                if other != saga.name:
                    raise DefinitionError(
                        f"saga {saga.name!r} was formerly {former!r}, and so is, or was, saga {other!r} of service "
                        f"{self.service!r}: only one of them can take it over"
                    )
