"""Ends a connection under whoever waits on it, and tells whether the server has ended one."""

from __future__ import annotations

import os
import selectors
import socket
import time
from contextlib import suppress
from typing import Any

import psycopg
from psycopg.pq import PollingStatus
from psycopg.pq.abc import PGcancelConn

_Connection = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]

# Without a descriptor of its own where there is poll(): this is asked each time a connection is lent.
_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)
_EVENTS: dict[int, int] = {PollingStatus.READING: selectors.EVENT_READ, PollingStatus.WRITING: selectors.EVENT_WRITE}

_PATIENCE = 2.0
"""Seconds that the server gets to take notice: one that is frozen never does."""


def sever(connection: _Connection) -> None:
    """Break a connection under whoever waits on it, without a word to the server: it might be long in answering."""
    with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as ours:
        ours.shutdown(socket.SHUT_RDWR)


def abort(connection: _Connection) -> None:
    """Break a connection under the thread that waits on it, and have the server end what it does for it.

    Blocks for two seconds at most; other threads run on meanwhile.
    """
    cancel = None
    with suppress(psycopg.Error):
        cancel = connection.pgconn.cancel_conn()
    # First the connection: a cancelled statement must not look like a failure of the callback.
    sever(connection)
    if cancel is not None:
        with suppress(psycopg.Error, OSError):
            cancel.start()
            _see_through(cancel, time.monotonic() + _PATIENCE)
        cancel.finish()


def _see_through(cancel: PGcancelConn, deadline: float) -> None:
    # Not by libpq's own wait: it does not let go of the interpreter, and a frozen server held up the whole process.
    while (status := cancel.poll()) in _EVENTS and (left := deadline - time.monotonic()) > 0:
        with _Selector() as selector:
            selector.register(cancel.socket, _EVENTS[status])
            selector.select(left)


def is_severed(connection: _Connection) -> bool:
    """Tell whether the server has ended a connection while it lay idle; asks the socket, not the server.

    An idle connection has nothing to be read, but for its end or a farewell.
    """
    with _Selector() as selector:
        selector.register(connection.fileno(), selectors.EVENT_READ)
        return bool(selector.select(0))
