"""What becomes of a driver's connection while it is lent to callbacks."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import psycopg

from scoop_outbox.core.statement import Batch, Statement
from scoop_outbox.store.lent import AsyncLentConnection, LentConnection
from scoop_outbox.store.mode import Mode
from scoop_outbox.store.session_reset import after_rollback, cleaned

L = TypeVar("L", AsyncLentConnection, LentConnection)

_USER = b"session_authorization"
"""What the server calls the user as whom a session works, and tells of by itself."""


class Lending(Generic[L]):
    """To whom one connection is lent, and what that may leave there.

    Args:
        raw: the connection.
        mode: how it talks to the server.

    Attributes:
        touched: whether it was lent since it was cleaned.
    """

    def __init__(self, raw: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], mode: Mode) -> None:
        """Lend it to nobody yet."""
        self._raw = raw
        self._mode = mode
        self._user = raw.pgconn.parameter_status(_USER)
        self._lent: L | None = None
        self.touched = False

    def lend(self, lent: L) -> L:
        """Lend it by a wrapper for one callback, and return that."""
        self.touched = True
        self._lent = lent
        return lent

    @property
    def is_free(self) -> bool:
        """Whether nobody whom the connection was lent to is still at work on it."""
        return self._lent is None or self._lent.is_as_lent

    def cleaned(self, batch: Batch) -> tuple[list[Statement], list[int]]:
        """Return a batch that settles what a callback did and cleans the connection, and where its own answers are."""
        return cleaned(batch, asks=self._asks, another=self._is_another)

    def after_rollback(self) -> list[Statement]:
        """Return what removes what even a rollback leaves."""
        return after_rollback(pooled=self._mode.pooled)

    @property
    def _asks(self) -> bool:
        """Whether to ask the server what has been left for good: a pooler keeps that, and it is rare."""
        return not self._mode.pooled and (self._lent is None or self._lent.suspects)

    @property
    def _is_another(self) -> bool:
        """Whether the session may be that of another user: the server tells of it, which a pooler may keep back."""
        return self._mode.pooled or self._user is None or self._raw.pgconn.parameter_status(_USER) != self._user
