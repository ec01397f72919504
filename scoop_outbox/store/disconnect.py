"""Ends a connection under whoever waits on it, or in one process only; tells whether the server has ended one."""

from __future__ import annotations

import asyncio
import os
import selectors
import socket
import time
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import pq
from psycopg.pq import PollingStatus
from psycopg.pq.abc import PGcancel, PGcancelConn, PGconn

_Connection = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]

# Without a descriptor of its own where there is poll(): this is asked each time a connection is lent.
_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)
_EVENTS: dict[int, int] = {PollingStatus.READING: selectors.EVENT_READ, PollingStatus.WRITING: selectors.EVENT_WRITE}

_TIMEOUT = 2.0
"""Seconds that the server gets to take notice: one that is frozen never does."""


def sever(connection: _Connection) -> None:
    """Break a connection under whoever waits on it, without a word to the server: it might be long in answering."""
    with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as ours:
        ours.shutdown(socket.SHUT_RDWR)


def disinherit(connection: _Connection) -> None:
    """Cut a forked child off from a connection of its parent, which goes on with it.

    To close it, or to let libpq do so, would say farewell to the server in the parent's name, and to shut the socket
    down would end it for both. What is sent from here on goes nowhere.
    """
    with suppress(psycopg.Error, OSError):
        nowhere = os.open(os.devnull, os.O_RDWR)
        try:
            os.dup2(nowhere, connection.fileno(), inheritable=False)
        finally:
            os.close(nowhere)


def abort(connection: _Connection) -> None:
    """Break a connection under the thread that waits on it, and have the server end what it does for it.

    Blocks for two seconds at most, while other threads run on. With a libpq before 17 neither is so.
    """
    cancel: PGcancelConn | PGcancel | None = None
    with suppress(psycopg.Error):
        cancel = _cancellation(connection.pgconn)
    # First the connection: a cancelled statement must not look like a failure of the callback.
    sever(connection)
    with suppress(psycopg.Error, OSError):
        if isinstance(cancel, pq.PGcancelConn):
            _see_through(cancel)
        elif isinstance(cancel, pq.PGcancel):
            cancel.cancel()


async def async_abort(connection: _Connection) -> None:
    """Do as `abort`, under a task: the event loop goes on meanwhile."""
    await asyncio.to_thread(abort, connection)


def _cancellation(pgconn: PGconn) -> PGcancelConn | PGcancel:
    try:
        return pgconn.cancel_conn()
    except psycopg.NotSupportedError:
        return pgconn.get_cancel()


def _see_through(cancel: PGcancelConn) -> None:
    # Not by libpq's own wait: it does not let go of the interpreter, and a frozen server held up the whole process.
    deadline = time.monotonic() + _TIMEOUT
    try:
        cancel.start()
        while (status := cancel.poll()) in _EVENTS and (left := deadline - time.monotonic()) > 0:
            with _Selector() as selector:
                selector.register(cancel.socket, _EVENTS[status])
                selector.select(left)
    finally:
        cancel.finish()


def is_severed(connection: _Connection) -> bool:
    """Tell whether the server has ended a connection while it lay idle; asks the socket, not the server.

    An idle connection has nothing to be read, but for its end or a farewell.
    """
    with _Selector() as selector:
        selector.register(connection.fileno(), selectors.EVENT_READ)
        return bool(selector.select(0))
