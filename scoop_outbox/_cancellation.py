"""Cancellation: whether somebody has ended what runs here, or only something that it waited for was ended.

A client of a broker cancels what waits for a connection that it gives up, and a callback may await a task that
somebody else has cancelled. Whoever awaits that gets the same `CancelledError` as if he was cancelled himself. asyncio
reports no task that ends so: a relay or an intake was gone, and nothing said why no message moved any more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator


class StrayCancellationError(Exception):
    """Something that was awaited was cancelled, and whoever awaited it was not."""


@contextlib.contextmanager
def own_cancellation_only() -> Iterator[None]:
    """Let a `CancelledError` through when the task that runs here is being cancelled, and no other one.

    Raises:
        StrayCancellationError: in place of another one.
    """
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise StrayCancellationError("what was waited for has been cancelled") from error
