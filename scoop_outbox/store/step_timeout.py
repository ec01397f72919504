"""How a step is ended that takes too long (behaviour Q63)."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Protocol

import psycopg

from scoop_outbox.core.statement import Call
from scoop_outbox.errors import StepTimeout
from scoop_outbox.store.disconnect import abort

Ended = tuple[object, BaseException | None]
"""What a callback has returned or raised."""


class Scoped(Protocol):
    """What is ended of a `def`: nobody can end its thread, but its connection.

    Attributes:
        cut: the server process that its connection led to, once that has been taken from it.
    """

    cut: int | None

    @property
    def raw(self) -> psycopg.Connection[Any]:
        """The driver's connection."""


async def within(task: asyncio.Task[Ended], call: Call) -> Ended:
    """Return what a callback has come to; when its time is over it is cancelled, and has failed in any case."""
    limit = asyncio.timeout(call.timeout)
    async with limit:
        # Cancelled with whoever waits for it. It ends with a value all the same: what it has raised.
        value, error = await task
    if not limit.expired():
        return value, error
    late = _late(call)
    late.__cause__ = error
    return None, late


class Limit:
    """Takes the connection from a `def` whose time is over, on a thread of its own, until it is stopped.

    Args:
        scope: that of the callback.
        call: says how long it may take.
    """

    def __init__(self, scope: Scoped, call: Call) -> None:
        """Begin."""
        assert call.timeout is not None  # noqa: S101 - a call without one has no limit
        self._scope, self._call = scope, call
        self._backend = scope.raw.info.backend_pid
        self._lock, self._stopped = threading.Lock(), False
        self._timer = threading.Timer(call.timeout, self._cut)
        self._timer.daemon = True
        self._timer.start()

    def stop(self, error: BaseException | None = None) -> None:
        """Let the connection be from now on.

        Raises:
            StepTimeout: the time was over before, whatever the callback has returned or raised meanwhile.
        """
        with self._lock:
            self._stopped = True
        self._timer.cancel()
        if self._scope.cut is not None:
            raise _late(self._call) from error

    def _cut(self) -> None:
        with self._lock:
            if not self._stopped:
                self._scope.cut = self._backend
                abort(self._scope.raw)


def _late(call: Call) -> StepTimeout:
    return StepTimeout.of(call.step, call.run.saga, call.timeout or 0.0)
