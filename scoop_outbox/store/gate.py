"""Who may use a connection that is lent to a callback, and what went wrong while it was used."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg.pq import ConnStatus, PipelineStatus, TransactionStatus
from psycopg.pq.abc import PGconn

from scoop_outbox.scope import Scope
from scoop_outbox.store.leftovers import Watching

_IN_FAILED_TRANSACTION = "25P02"


def _doer() -> object:
    """Return who is at work here: a task, or a thread."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return threading.get_ident() if task is None else task


class Gate:
    """Lets through what is asked of one lent connection, as long as the callback lasts. Safe to be used by threads.

    Args:
        scope: that of the callback, which says that it has ended.
        pgconn: the connection to the server.
        watching: shown what passes.

    Attributes:
        asked: how often something has been asked.
        is_shut: whether nothing passes any more.
        aborted_by: the error that the transaction was aborted by, if it is aborted.
    """

    def __init__(self, scope: Scope, pgconn: PGconn, watching: Watching) -> None:
        """Let everything through."""
        self._scope = scope
        self._pgconn = pgconn
        self._watching = watching
        self._lock = threading.Lock()
        self._using = 0
        self._only: object = None
        self._seen: dict[int, psycopg.Error] = {}
        self.asked = 0
        self.is_shut = False
        self.aborted_by: psycopg.Error | None = None

    @property
    def is_at_rest(self) -> bool:
        """Whether nobody is at work on the connection, nor in the midst of something."""
        resting = self._pgconn.transaction_status != TransactionStatus.ACTIVE
        return self._using == 0 and resting and self._pgconn.pipeline_status == PipelineStatus.OFF

    def has_seen(self, error: BaseException) -> bool:
        """Tell whether an error happened here: this very error, not one like it."""
        return self._seen.get(id(error)) is error

    def keep_for_oneself(self) -> None:
        """Refuse everybody but the caller."""
        with self._lock:
            self._only = _doer()

    def shut(self) -> None:
        """Refuse everybody."""
        with self._lock:
            self.is_shut = True

    def enter(self, sending: Iterator[Any]) -> None:
        """Begin to drive one of psycopg's generators; raise what the scope says of being late if that may not pass."""
        self._watching.begins(sending)
        with self._lock:
            if self.is_shut or (self._only is not None and self._only != _doer()):
                raise self._scope.too_late()
            self._using += 1
            self.asked += 1

    def leave(self, error: psycopg.Error | None) -> None:
        """End what `enter` has begun, with or without an error."""
        self._watching.ends()
        with self._lock:
            self._using -= 1
        pgconn = self._pgconn
        if pgconn.status != ConnStatus.OK or pgconn.transaction_status != TransactionStatus.INERROR:
            self.aborted_by = None
        elif error is not None and error.sqlstate != _IN_FAILED_TRANSACTION:
            self.aborted_by = error
        if error is not None:
            self._seen[id(error)] = error
            if self.is_shut:
                raise self._scope.too_late() from None
