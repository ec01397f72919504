"""Connections that are lent to a callback: each callback gets wrappers of its own, which end with it.

Beneath them is the driver's one connection to the server. Its wrapper outlives runs, so it must not be in a user's
hands: a task that a failed step had left behind wrote through it into the transaction of the next run, and was
committed there. A wrapper that has ended reaches the server no more, and what was set on it (row factory, adapters)
is gone with it. It remembers what went wrong on it, which tells our connection's errors from those of any other.
"""

from __future__ import annotations

from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import pq
from psycopg._connection_base import BaseConnection
from psycopg.abc import PQGen
from psycopg.adapt import AdaptersMap
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from scoop_outbox.scope import Scope
from scoop_outbox.store.gate import Gate
from scoop_outbox.store.leftovers import Watching
from scoop_outbox.store.lent_engine import LentEngine, driver_connection
from scoop_outbox.store.session_events import hold_back


def _nowhere() -> pq.abc.PGconn:
    """Return what a wrapper has in place of a connection when it has none any more."""
    pgconn = pq.PGconn.connect_start(b"no connection")
    pgconn.finish()
    return pgconn


NOWHERE = _nowhere()


class Lent(BaseConnection[Any]):
    """What wrappers of both colours share.

    Attributes:
        as_lent: what `asked` was when it was last as it had been lent, behind the step's savepoint.
        adopted: the savepoint of a session that the step's stands for, empty while it stands for none.
        closed_by_user: whether the callback has closed it. What is beneath stays open: that is the driver's to end.
    """

    as_lent: int
    adopted: str
    closed_by_user: bool

    def _begin(self, scope: Scope, raw: BaseConnection[Any]) -> None:
        """Become a wrapper that is as new, for the callback whose scope this is."""
        self._scope = scope
        self._autocommit = True
        self._adapters = AdaptersMap(raw.adapters)  # what SQLAlchemy has set; a copy is made when it is changed
        self._notice_handlers = list(raw._notice_handlers)  # noqa: SLF001 - SQLAlchemy's, which logs notices
        self._prepared = self._watching = Watching()
        self._gate = Gate(scope, raw.pgconn, self._watching)
        self.as_lent = 0
        self.adopted = ""
        self.closed_by_user = False

    def __del__(self, *_: Any) -> None:
        """Say nothing: what is beneath is the driver's to close."""

    @property
    def prepare_threshold(self) -> int | None:
        """None, whatever it is set to: psycopg prepares nothing here.

        It forgets what it has prepared after a rollback to a savepoint, with DEALLOCATE ALL: the statements of the
        engine would be gone too. And names would clash with those that the wrapper before this one had given.
        """
        return None

    @prepare_threshold.setter
    def prepare_threshold(self, value: int | None) -> None:
        pass

    @property
    def asked(self) -> int:
        """How often something has been asked of it."""
        return self._gate.asked

    @property
    def aborted_by(self) -> psycopg.Error | None:
        """The error that the transaction was aborted by, if it is aborted."""
        return self._gate.aborted_by

    @property
    def is_as_lent(self) -> bool:
        """Whether nobody is at work on it, nor in the midst of something."""
        return self._gate.is_at_rest

    def has_seen(self, error: BaseException) -> bool:
        """Tell whether an error happened on this connection: this very error, not one like it."""
        return self._gate.has_seen(error)

    def keep_for_oneself(self) -> None:
        """Refuse everybody but the caller: the callback has returned, and its work is about to be written."""
        self._gate.keep_for_oneself()

    def end(self) -> None:
        """Reach the server no more, whoever still has this wrapper, or a cursor of it."""
        self._gate.shut()
        self.pgconn = NOWHERE

    def _part(self) -> None:
        """Be closed, as far as the callback can tell."""
        if not self.closed:
            self.closed_by_user = self._closed = True
            self.pgconn = NOWHERE

    def _check_connection_ok(self) -> None:
        if self._gate.is_shut:
            raise self._scope.too_late()
        super()._check_connection_ok()

    @property
    def suspects(self) -> bool:
        """Whether the callback may have left something that is rare."""
        return self._watching.suspects


class AsyncLentConnection(Lent, psycopg.AsyncConnection[Any]):
    """What an `async def` finds as `scope.connection`."""

    def __init__(self, scope: Scope, raw: psycopg.AsyncConnection[Any]) -> None:
        """Wrap the connection anew."""
        super().__init__(raw.pgconn)
        self._begin(scope, raw)

    async def wait(self, gen: PQGen[Any], *args: Any, **options: Any) -> Any:
        """Do as psycopg, as long as the callback lasts."""
        self._gate.enter(gen)
        error: psycopg.Error | None = None
        try:
            return await super().wait(gen, *args, **options)
        except psycopg.Error as raised:
            error = raised
            raise
        finally:
            self._gate.leave(error)

    async def close(self) -> None:
        """Be closed; the step will fail for it."""
        self._part()


class LentConnection(Lent, psycopg.Connection[Any]):
    """What a `def` finds as `scope.connection`."""

    def __init__(self, scope: Scope, raw: psycopg.Connection[Any]) -> None:
        """Wrap the connection anew."""
        super().__init__(raw.pgconn)
        self._begin(scope, raw)

    def wait(self, gen: PQGen[Any], *args: Any, **options: Any) -> Any:
        """Do as psycopg, as long as the callback lasts."""
        self._gate.enter(gen)
        error: psycopg.Error | None = None
        try:
            return super().wait(gen, *args, **options)
        except psycopg.Error as raised:
            error = raised
            raise
        finally:
            self._gate.leave(error)

    def close(self) -> None:
        """Be closed; the step will fail for it."""
        self._part()


class _LentSession(Session):
    """A session that ends with its scope, and whose listeners hear of the commit of the step's transaction."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        hold_back(self)

    def get_bind(self, *args: Any, **options: Any) -> Any:
        scope: Scope = self.info["scope"]
        scope.check()
        return super().get_bind(*args, **options)


def is_invalidated(session: AsyncSession | Session | None) -> bool:
    """Tell whether SQLAlchemy has given up the connection of a session, as it does when a query is cancelled."""
    if session is None:
        return False
    bind = session.bind
    return isinstance(bind, (AsyncConnection, sa.Connection)) and bind.invalidated


def works_on(joined: object, lent: Lent) -> bool:
    """Tell whether what a message is to be launched in, a session or connection of any kind, works on `lent`."""
    if isinstance(joined, AsyncSession):
        joined = joined.sync_session
    if isinstance(joined, Session):
        joined = joined.bind
    if isinstance(joined, AsyncConnection):
        joined = joined.sync_connection
    if isinstance(joined, sa.Connection) and not (joined.closed or joined.invalidated):
        joined = driver_connection(joined)
    return joined is lent


_OPTIONS: dict[str, Any] = {"join_transaction_mode": "create_savepoint", "expire_on_commit": False}


def _adapted(pattern: Any, lent: AsyncLentConnection) -> Any:
    """Return what SQLAlchemy has around an async connection, around `lent`: there is no other way to have a second one.

    Slot by slot. It hands everything that it lacks on to its connection, so that `copy.copy`, which looks at one that
    has none yet, never ends with SQLAlchemy 2.0.
    """
    adapted = object.__new__(type(pattern))
    for kind in type(pattern).__mro__:
        for name in getattr(kind, "__slots__", ()):
            setattr(adapted, name, lent if name == "_connection" else getattr(pattern, name))
    return adapted


def async_session(scope: Scope, lent: AsyncLentConnection, outer: AsyncConnection) -> AsyncSession:
    """Return a session that works on `lent`; `outer` is SQLAlchemy's connection to the server beneath it."""
    assert outer.sync_connection is not None  # noqa: S101 - the driver has opened it
    lent_engine = LentEngine.of(outer.sync_connection.engine)
    assert lent_engine.async_engine is not None  # noqa: S101 - the engine is of this colour
    beneath = outer.sync_connection.connection
    adapted = _adapted(beneath.dbapi_connection, lent)
    bind = AsyncConnection(lent_engine.async_engine, lent_engine.wrapped(adapted, beneath.info))
    return AsyncSession(bind, sync_session_class=_LentSession, info={"scope": scope}, **_OPTIONS)


def session(scope: Scope, lent: LentConnection, outer: sa.Connection) -> Session:
    """Do as `async_session`, in the other colour."""
    return _LentSession(
        LentEngine.of(outer.engine).wrapped(lent, outer.connection.info), info={"scope": scope}, **_OPTIONS
    )
