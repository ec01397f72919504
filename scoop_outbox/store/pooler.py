"""A pooler between this process and the server, such as PgBouncer: said in the URL, or found out when connecting.

In transaction mode it lends a connection of the server's for one transaction only. What is prepared, set or listened to
stays behind, and comes to others. So behind one the engine prepares nothing, sets what it needs for each transaction,
does not listen, and notices by time alone that a worker has died.
"""

from __future__ import annotations

from typing import Any

import psycopg

from scoop_outbox._log import get_logger
from scoop_outbox.errors import DatabaseError
from scoop_outbox.store.engine_connection import AsyncConnection, Connection
from scoop_outbox.store.url import POOLER, arguments, pooler_of, redact_url

log = get_logger(__name__)

_KINDS = {"transaction": True, "session": False}
_OPTIONS = "options"
_REFUSES_OPTIONS = "unsupported startup parameter"
_ASK = "select pg_backend_pid()"


class Pooler:
    """What is known of a pooler, and how to connect through it.

    Args:
        url: the database, which may say `?pooler=transaction` or `?pooler=session`.

    Attributes:
        present: whether there is one that lends connections for a transaction; None while that is not known.

    Raises:
        DatabaseError: the URL says something else of a pooler.
    """

    def __init__(self, url: str) -> None:
        """Connect nowhere yet."""
        said = pooler_of(url)
        if said is not None and said not in _KINDS:
            raise DatabaseError(f"the database URL says {POOLER}={said}: use {' or '.join(_KINDS)}")
        self._url = url
        self.present: bool | None = None if said is None else _KINDS[said]
        # Poolers do not know most settings, and refuse a connection that asks for them.
        self._takes_options = said is None

    def connect(self, **named: Any) -> Connection:
        """Open a connection, and find out at the first one whether a pooler answers.

        Raises:
            psycopg.OperationalError: it cannot be opened.
        """
        try:
            connection = Connection.connect(**self._suited(named))
        except psycopg.OperationalError as error:
            if not self._refused(error):
                raise
            connection = Connection.connect(**self._suited(named))
        if self.present is None:
            found = connection.execute(_ASK).fetchone()
            connection.rollback()
            self._note(connection, found)
        return connection

    async def connect_async(self, **named: Any) -> AsyncConnection:
        """Do as `connect`, in the other colour.

        Raises:
            psycopg.OperationalError: it cannot be opened.
        """
        try:
            connection = await AsyncConnection.connect(**self._suited(named))
        except psycopg.OperationalError as error:
            if not self._refused(error):
                raise
            connection = await AsyncConnection.connect(**self._suited(named))
        if self.present is None:
            found = await (await connection.execute(_ASK)).fetchone()
            await connection.rollback()
            self._note(connection, found)
        return connection

    def _suited(self, named: dict[str, Any]) -> dict[str, Any]:
        if self._takes_options:
            return named
        return {name: value for name, value in named.items() if name != _OPTIONS}

    def _refused(self, error: psycopg.OperationalError) -> bool:
        """Take note that a pooler wants no settings at the start; answer whether that was it."""
        if not self._takes_options or _REFUSES_OPTIONS not in str(error):
            return False
        self._takes_options = False
        if arguments(self._url).get(_OPTIONS):
            log.warning(
                "database: behind a pooler that takes no options, those in the URL are left out (%s)",
                redact_url(self._url),
            )
        return True

    def _note(self, connection: Connection | AsyncConnection, found: Any) -> None:
        # The pooler gives each of its clients a number of its own.
        self.present = found[0] != connection.info.backend_pid
        if self.present:
            log.info(
                "database: behind a pooler, taken to be in transaction mode (%s: no prepared statements, no LISTEN; "
                "work of other processes is found by polling. If it is in session mode, add ?%s=session to the URL)",
                redact_url(self._url),
                POOLER,
            )
