"""Whose a caller's connection is: a launch in another home than the service's would never be published."""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Awaitable, Callable

from scoop_outbox.core.plans.home import find_home, read_home
from scoop_outbox.core.statement import Plan
from scoop_outbox.errors import DatabaseError
from scoop_outbox.store.url import redact_url


class Whose:
    """Compares the home that a connection leads to with the service's own, once for each connection.

    Args:
        mine: reads the id of the service's home. It is not kept: tables may be made anew under a program that runs.
        mine_blocking: does so for code without an event loop.
        url: the service's database, for messages.
        schema: the schema of the tables.
    """

    def __init__(
        self,
        mine: Callable[[], Awaitable[uuid.UUID]],
        mine_blocking: Callable[[], uuid.UUID],
        url: str,
        schema: str,
    ) -> None:
        """Know no connection yet."""
        self.mine = mine
        self.mine_blocking = mine_blocking
        self._url = url
        self._schema = schema
        self._known: weakref.WeakSet[object] = weakref.WeakSet()

    def knows(self, connection: object) -> bool:
        """Tell whether a connection has been found to lead to the home."""
        return connection in self._known

    def check(self, connection: object, mine: uuid.UUID) -> Plan[None]:
        """Look where a connection leads to.

        Args:
            connection: the driver's, by which it is known again.
            mine: the id of the service's home.

        Raises:
            DatabaseError: not to the service's home. Nothing has been written.
        """
        database, is_there = yield from find_home(self._schema)
        found = (yield from read_home()) if is_there else None
        if found != mine:
            raise DatabaseError(
                f"the session is connected to the database {database!r}, which "
                + (f"has no tables of scoop_outbox in schema {self._schema!r}" if found is None else "is another home")
                + f": nobody would see what is written there. This service's database is {redact_url(self._url)}; pass "
                "a session on it"
            )
        self._known.add(connection)
