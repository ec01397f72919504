"""Who keeps a connection waiting for a lock, in words for whoever has to do something about it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from scoop_outbox.store import queries

_DELAY = 0.1
"""Seconds until it is asked for the first time, and again: most locks are had before that."""

_CLIENT = "client backend"


@dataclass(frozen=True, slots=True)
class Blocker:
    """A server process that holds what another one waits for, or has waited for it before.

    What it executes is left out on purpose: statements may have values in them.

    Attributes:
        pid: its process; 0 is a prepared transaction, which has none.
        application: what it calls itself.
        user: whom it works for.
        kind: a client backend, or a part of the server.
        state: idle in transaction, active, and so on; None if our user may not see that.
        since: when its transaction began; None as with `state`.
        seconds: how long ago that was.
    """

    pid: int
    application: str | None = None
    user: str | None = None
    kind: str | None = None
    state: str | None = None
    since: datetime | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        """Say it in a line."""
        if self.pid == 0:
            return "a prepared transaction (see pg_prepared_xacts)"
        known = [f"application {self.application!r}" if self.application else "no application name"]
        if self.user:
            known.append(f"user {self.user!r}")
        if self.kind and self.kind != _CLIENT:
            known = [self.kind]
        if self.state:
            known.append(self.state)
        if self.since is not None and self.seconds is not None:
            known.append(f"in a transaction since {self.since:%Y-%m-%d %H:%M:%S%z}, {self.seconds:.0f} s")
        elif not self.state and self.kind in (None, _CLIENT):
            known.append("our user may not see more: grant it pg_read_all_stats")
        return f"pid {self.pid} ({', '.join(known)})"


def told(blockers: Sequence[Blocker]) -> str:
    """Return who they are in a sentence's end."""
    return "; ".join(map(str, blockers)) if blockers else "somebody who was gone when it was asked"


class Onlooker:
    """Looks from a connection of its own at who keeps another one waiting; it opens that when it is needed.

    Args:
        engine: what opens it.
        schema: the schema of the tables.

    Attributes:
        seen: whom it saw last, during the last `watching`.
    """

    def __init__(self, engine: sa.Engine, schema: str) -> None:
        """Look at nobody yet."""
        self._engine = engine
        self._question = queries.load(schema)["read_blockers"].decode()
        self._connection: sa.Connection | None = None
        self.seen: Sequence[Blocker] = ()

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()

    @contextmanager
    def watching(self, pid: int) -> Iterator[None]:
        """Look again and again while the block lasts.

        Args:
            pid: the server process that may have to wait.
        """
        self.seen, done = (), threading.Event()
        thread = threading.Thread(target=self._watch, args=(pid, done), name="scoop_outbox migrate", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _watch(self, pid: int, done: threading.Event) -> None:
        while not done.wait(_DELAY):
            try:
                if found := self._ask(pid):
                    self.seen = found
            except sa.exc.DBAPIError:  # no connection is left for us, say: then it is not known who
                return

    def _ask(self, pid: int) -> list[Blocker]:
        if self._connection is None:
            self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        rows = self._connection.exec_driver_sql(self._question, {"pid": pid})
        return [Blocker(*row) for row in rows]
