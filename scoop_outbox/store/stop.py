"""Whether an exception is a stop of the worker."""

from __future__ import annotations

import asyncio


def ends_the_worker(error: BaseException) -> bool:
    """Tell whether an exception is meant for the worker, not a failure of what it executes: somebody stops it."""
    if not isinstance(error, asyncio.CancelledError):
        return isinstance(error, KeyboardInterrupt)
    try:
        task = asyncio.current_task()
    except RuntimeError:  # a thread: nobody cancels one
        return False
    return task is not None and task.cancelling() > 0
