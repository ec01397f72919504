"""Alerts: callbacks of the user's, told of runs that need a person. After the commit, and beside the work."""

from __future__ import annotations

import asyncio
import contextvars
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scoop_outbox._log import get_logger
from scoop_outbox.core.run import RunState
from scoop_outbox.failure import Failure
from scoop_outbox.step import is_async

log = get_logger(__name__)

LAST = 2.0
"""Seconds that callbacks get to finish when their worker ends."""
RETURNED, FAILED = "returned", "failed"


@dataclass(frozen=True, slots=True)
class StuckRun:
    """A run that needs a person.

    Attributes:
        key: of its message.
        step: the step at which it is stuck, if it is at one.
        state: `rollback_failed` or `parked`.
        reason: why, in one line, as the log says it.
        failure: why it could not be rolled back; None when it is parked.
    """

    run_id: uuid.UUID
    message_id: uuid.UUID
    service: str
    saga: str
    key: str | bytes | None
    step: str | None
    state: RunState
    reason: str
    failure: Failure | None


Alert = Callable[[StuckRun], Any]
"""An `async def` or a `def` that is told of a run."""


class Alerts:
    """Calls the callbacks of one worker: `async def` ones on the event loop, `def` ones in a thread.

    Nothing waits for them but the end of the worker, and what they raise is logged. `tell` may be called from any
    thread; the rest is on the event loop.

    Args:
        callbacks: whom to tell. Those that are added later are told, too.

    Attributes:
        counts: how many calls have returned, and how many have failed.
    """

    def __init__(self, callbacks: Sequence[Alert]) -> None:
        """Have told nobody."""
        self._callbacks = callbacks
        self._loop = asyncio.get_running_loop()
        # They are not called for a step, whichever one the news comes from.
        self._context = contextvars.copy_context()
        self._tasks: set[asyncio.Task[None]] = set()
        self.counts = Counter({RETURNED: 0, FAILED: 0})

    def tell(self, run: StuckRun) -> None:
        """Have the callbacks called, soon."""
        for callback in list(self._callbacks):
            self._loop.call_soon_threadsafe(self._start, callback, run, context=self._context)

    def _start(self, callback: Alert, run: StuckRun) -> None:
        task = self._loop.create_task(self._call(callback, run), name="scoop_outbox alert")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call(self, callback: Alert, run: StuckRun) -> None:
        try:
            if is_async(callback):
                await callback(run)
            else:
                await asyncio.to_thread(callback, run)
        except Exception:
            self.counts[FAILED] += 1
            log.exception(
                "run: alert failed (service %s, saga %s, run %s: its callback raised)",
                *(run.service, run.saga, run.run_id),
                extra={"service": run.service, "saga": run.saga, "run_id": run.run_id},
            )
        else:
            self.counts[RETURNED] += 1

    async def close(self) -> None:
        """Give callbacks that run a moment to finish."""
        await asyncio.sleep(0)  # those that were told of just now begin
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=LAST)
        for task in late:
            task.cancel()
            log.warning("run: alert not finished in time (%d s after the end of the worker)", LAST)
