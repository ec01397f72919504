"""The servers that a service works with, its database and its broker: as declared, and opened when first needed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

from scoop_outbox.broker import plugins
from scoop_outbox.broker.protocol import Broker
from scoop_outbox.client.control_keys import control_keys
from scoop_outbox.client.waiters import Outcomes
from scoop_outbox.core.plans.subscriptions import check_without_broker, list_services_via_broker
from scoop_outbox.core.statement import Plan
from scoop_outbox.daemon.hints import ProcessHints
from scoop_outbox.errors import DatabaseError, DefinitionError
from scoop_outbox.store.home import Home
from scoop_outbox.store.schema import checked_schema
from scoop_outbox.wire.limits import Limits

DATABASE_VARIABLE = "SCOOP_OUTBOX_DATABASE"
BROKER_VARIABLE = "SCOOP_OUTBOX_BROKER"
HOME_VARIABLE = "SCOOP_OUTBOX_HOME"
BROKER_SETTINGS_VARIABLE = "SCOOP_OUTBOX_BROKER_SETTINGS"
"""Names a file of settings for the broker's client: the commands read it, a program passes settings itself."""


_HOME_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")


def checked_home_name(name: str | None) -> str | None:
    """Return a name that a home can have: part of the names of topics and queues at every broker.

    Raises:
        DefinitionError: it cannot be one.
    """
    if name is None or _HOME_NAME.fullmatch(name):
        return name
    raise DefinitionError(
        f"the name of a home has 1 to 100 letters or digits of ASCII, or any of - _ . among them, not {name!r:.120}"
    )


class Servers:
    """The database and the broker of one service.

    Args:
        service: the service's name.
        database: a PostgreSQL URL; the environment's unless given.
        broker: the broker's URL; the environment's unless given.
        broker_settings: passed on to the broker's client.
        schema: the Postgres schema of our tables.
        max_body: the most bytes that a body, a context or a result may have.
        home_name: the name under which the database cooperates with others; the environment's unless given.
        keys: the control keys; the environment's unless given.

    Attributes:
        broker: what its adapter makes of the URL; None is the built-in broker.
        schema: the Postgres schema of our tables.
        home_name: the name under which the database cooperates with others, if it was said.
        control_keys: with what is signed and verified that homes are to believe; None does neither.

    Raises:
        DefinitionError: the schema's name, the home's name, the keys or `max_body` cannot be used.
        DatabaseError: the database's URL is wrong.
        BrokerError: no installed adapter serves the broker's URL, or the adapter refuses URL or settings.
    """

    def __init__(
        self,
        service: str,
        *,
        database: str | None,
        broker: str | None,
        broker_settings: Mapping[str, object] | None,
        schema: str,
        max_body: int,
        home_name: str | None = None,
        keys: str | Iterable[str] | None = None,
    ) -> None:
        """Open nothing yet."""
        self._service = service
        self._broker_settings = dict(broker_settings or {})
        self._broker_url = broker or os.environ.get(BROKER_VARIABLE)
        self.broker = self._load_broker()
        self._database = database or os.environ.get(DATABASE_VARIABLE)
        self.schema = checked_schema(schema)
        self._max_body = max_body
        self.home_name = checked_home_name(home_name or os.environ.get(HOME_VARIABLE))
        self.control_keys = control_keys(keys)
        self.limits  # noqa: B018 - refuses what cannot be
        self._home: Home | None = None if self._database is None else self._open()
        self._hints: ProcessHints | None = None
        self._outcomes: Outcomes | None = None

    def use_broker(self, url: str | None, settings: Mapping[str, object]) -> None:
        """Use another broker than was declared, or the same one with more settings."""
        self._broker_settings.update(settings)
        self._broker_url = url or self._broker_url
        self.broker = self._load_broker()
        if self._home is not None:
            self._home.limits = self.limits

    def use_database(self, url: str) -> None:
        """Use another database than was declared."""
        self._database = url
        self._home = self._open()
        self._hints = None
        self._outcomes = None

    def _load_broker(self) -> Broker | None:
        url = self._broker_url
        return None if url is None or plugins.is_builtin(url) else plugins.load(url, self._broker_settings)

    def _open(self) -> Home:
        if self._database is None:
            raise DatabaseError(
                f"service {self._service!r} has no database: pass database='postgresql://...' to Scoop(), "
                f"or set {DATABASE_VARIABLE}"
            )
        return Home(self._database, self.schema, f"scoop_outbox {self._service}"[:63], self.limits)

    @property
    def limits(self) -> Limits:
        """How large a message may be: for this service, and for its broker."""
        return Limits(self._max_body, None if self.broker is None else self.broker.most_bytes)

    @property
    def home(self) -> Home:
        """The database.

        Raises:
            DatabaseError: none was given.
        """
        if self._home is None:
            self._home = self._open()
        return self._home

    @property
    def hints(self) -> ProcessHints:
        """The hints between the daemons of this process and its launches."""
        if self._hints is None:
            self._hints = ProcessHints(self.home)
        return self._hints

    @property
    def outcomes(self) -> Outcomes:
        """How launched messages end, for those who wait."""
        if self._outcomes is None:
            self._outcomes = Outcomes(self.home, self.hints)
        return self._outcomes

    @property
    def names_a_broker(self) -> bool:
        """Whether program or environment say which broker carries the messages; the built-in one can be said, too."""
        return self._broker_url is not None or self.broker is not None

    def guard(self, *, relay: bool) -> Plan[None]:
        """Return the plan that refuses to do without a broker that others have, unless that was said on purpose."""
        if not self.names_a_broker:
            check_without_broker((yield from list_services_via_broker()), self._service, relay=relay)

    async def close(self) -> None:
        """Close the connections of this event loop, and the blocking ones."""
        try:
            if self._hints is not None:
                await self._hints.close()
        finally:
            if self._home is not None:
                await self._home.dispose()

    def close_sync(self) -> None:
        """Close the connections of blocking calls."""
        if self._hints is not None:
            self._hints.close_blocking()
        if self._home is not None:
            self._home.dispose_blocking()
