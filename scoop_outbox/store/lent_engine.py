"""The engine of lent connections: puts those of SQLAlchemy around the driver's, for one callback each.

A session that joins a transaction sets a savepoint of its own. Two round trips of a step were for that, and the step's
own savepoint, behind which nothing has happened yet, serves as well: the session adopts it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, cast

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

STEP_SAVEPOINT = "scoop_step"
"""What a step's savepoint is called in sql/transaction.sql."""


class Adopting(Protocol):
    """A connection that is lent behind the savepoint of a step.

    Attributes:
        asked: how often something has been asked of it.
        as_lent: how often that was when it was as it had been lent, behind nothing but the savepoint.
        adopted: the name of the savepoint that the step's stands for, empty while it stands for none.
    """

    asked: int
    as_lent: int
    adopted: str


class _AdoptedSavepoints:
    """Has SQLAlchemy take a step's own savepoint for the first one that a session needs.

    Only as long as nothing has been asked of the connection: what the callback did before the session began is not the
    session's to roll back. Nor is it released: the driver does so when the callback has returned.
    """

    def do_savepoint(self, connection: sa.Connection, name: str) -> None:
        lent = _adopting(connection)
        if lent.asked == lent.as_lent and not lent.adopted:
            lent.adopted = name
        else:
            super().do_savepoint(connection, name)  # type: ignore[misc]

    def do_rollback_to_savepoint(self, connection: sa.Connection, name: str) -> None:
        lent = _adopting(connection)
        if lent.adopted == name:
            before = lent.asked
            super().do_rollback_to_savepoint(connection, STEP_SAVEPOINT)  # type: ignore[misc]
            lent.adopted = ""
            if lent.asked == before + 1:  # nobody else has asked something meanwhile
                lent.as_lent = lent.asked
        else:
            super().do_rollback_to_savepoint(connection, name)  # type: ignore[misc]

    def do_release_savepoint(self, connection: sa.Connection, name: str) -> None:
        lent = _adopting(connection)
        if lent.adopted == name:
            lent.adopted = ""
        else:
            super().do_release_savepoint(connection, name)  # type: ignore[misc]


def _adopting(connection: sa.Connection) -> Adopting:
    return cast("Adopting", driver_connection(connection))


def _with_adopted_savepoints(dialect: sa.Dialect) -> sa.Dialect:
    """Return a dialect like this one, which has talked to the server already."""
    kind = type(dialect)
    own = {"supports_statement_cache": True}  # as what it is made of: SQLAlchemy asks each class anew
    adopting: sa.Dialect = object.__new__(type(f"Lent{kind.__name__}", (_AdoptedSavepoints, kind), own))
    adopting.__dict__.update(dialect.__dict__)
    return adopting


class _LentProxy(sa.PoolProxiedConnection):
    """What SQLAlchemy's pool would put around a connection: here it comes from no pool, and goes back to none.

    To have it made by a pool, and detached, took a tenth of the Python of a step through `scope.session`. So listeners
    to the events of pools hear nothing of it; what they have noted of the connection beneath is in `info`.
    """

    _connection_record = None

    def __init__(self, dbapi_connection: Any, dialect: sa.Dialect, info: dict[Any, Any]) -> None:
        self.dbapi_connection = dbapi_connection
        self._dialect = dialect
        self._info = info

    @property
    def info(self) -> dict[Any, Any]:
        return self._info

    @property
    def driver_connection(self) -> Any:  # type: ignore[override]
        beneath = self.dbapi_connection
        return None if beneath is None else self._dialect.get_driver_connection(beneath)

    @property
    def is_valid(self) -> bool:
        return self.dbapi_connection is not None

    @property
    def is_detached(self) -> bool:
        return True

    @property
    def record_info(self) -> None:
        return None

    @property
    def connection(self) -> Any:
        return self.dbapi_connection

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        if not soft:  # that is for the pool, when the connection is back
            self.dbapi_connection = None

    def detach(self) -> None:
        pass

    def close(self) -> None:
        closing, self.dbapi_connection = self.dbapi_connection, None
        if closing is not None:
            self._dialect.do_close(closing)

    def _close_special(self, **_: Any) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dbapi_connection, name)


class LentEngine:
    """SQLAlchemy's connections around connections that are open already; they are its caller's to close.

    An engine of its own with the dialect of the one that has opened them, so nothing is asked of the server again.
    """

    _known: ClassVar[weakref.WeakKeyDictionary[sa.Engine, LentEngine]] = weakref.WeakKeyDictionary()
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, engine: sa.Engine) -> None:
        """Made by `of`."""
        self._dialect = _with_adopted_savepoints(engine.dialect)
        self._engine = sa.Engine(sa.NullPool(_refuse, dialect=self._dialect), self._dialect, engine.url)
        self.async_engine = AsyncEngine(self._engine) if self._dialect.is_async else None

    @classmethod
    def of(cls, engine: sa.Engine) -> LentEngine:
        """Return the one beside an engine."""
        with cls._lock:
            if engine not in cls._known:
                cls._known[engine] = cls(engine)
            return cls._known[engine]

    def wrapped(self, dbapi_connection: Any, info: Mapping[Any, Any]) -> sa.Connection:
        """Return a connection that believes to be inside a transaction, so that sessions only make savepoints.

        Args:
            dbapi_connection: what it works on.
            info: what the program's listeners have noted of the connection beneath.
        """
        connection = sa.Connection(self._engine, _LentProxy(dbapi_connection, self._dialect, dict(info)))
        connection.begin()
        return connection


def _refuse() -> Any:
    raise RuntimeError("scope.session is lent with its one connection: to open others, use an engine of your own")


def driver_connection(connection: sa.Connection) -> Any:
    """Return psycopg's connection beneath one of SQLAlchemy, also when it is detached from its pool.

    SQLAlchemy's own `driver_connection` is None then.
    """
    beneath: Any = connection.connection.dbapi_connection
    return connection.dialect.get_driver_connection(beneath)
