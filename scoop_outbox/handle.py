"""The handle of a launched message: what its launcher may ask for."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from datetime import timedelta

from scoop_outbox.failure import DistributedError
from scoop_outbox.inside import refuse_wait
from scoop_outbox.outcomes import Outcome, Outcomes, read_outcomes
from scoop_outbox.policy import seconds
from scoop_outbox.store.home import Home

_SHORTEST_LOOK = 0.002
_LONGEST_LOOK = 0.1


class Handle:
    """A launched message.

    Attributes:
        id: the message's id, the same in every service.
    """

    def __init__(self, message_id: uuid.UUID, home: Home, outcomes: Outcomes) -> None:
        """Made by `Scoop.launch`, or by `Scoop.handle` for an id that was kept."""
        self.id = message_id
        self._home = home
        self._outcomes = outcomes

    def __repr__(self) -> str:
        """Show the id."""
        return f"<handle of message {self.id}>"

    async def wait(self, timeout: float | timedelta | None = None) -> None:  # noqa: ASYNC109 - it is ours to raise
        """Return when every saga that handles the message, and everything below, has finished.

        Returns at once when nobody handles it. Waiting holds no connection between looks.

        Args:
            timeout: seconds or a `timedelta`; None waits for ever.

        Raises:
            TimeoutError: it has not ended in time; it goes on all the same.
            DistributedError: its saga failed; the whole chain of causes, across services, is attached.
            ExceptionGroup: several sagas failed; one `DistributedError` for each.
            DatabaseError: the database cannot be reached; the message goes on when it can.
            StepError: this is called inside a step; what a step launches is waited for by itself.
        """
        refuse_wait()
        try:
            async with asyncio.timeout(None if timeout is None else seconds(timeout)):
                outcome = await self._outcomes.of(self.id)
        except TimeoutError:
            # A last look, and the only one for who gives no time at all.
            async with self._home.driver() as driver:
                last = (await driver.run(read_outcomes([self.id], self._home.failures))).get(self.id)
            if last is None:
                raise TimeoutError(self._late) from None
            outcome = last
        _raise(outcome)

    def wait_sync(self, timeout: float | timedelta | None = None) -> None:
        """Do as `wait`, for code without an event loop.

        Raises:
            TimeoutError: it has not ended in time; it goes on all the same.
            DistributedError: its saga failed.
            ExceptionGroup: several sagas failed.
            DatabaseError: the database cannot be reached; the message goes on when it can.
            StepError: this is called inside a step; what a step launches is waited for by itself.
        """
        refuse_wait()
        deadline = None if timeout is None else time.monotonic() + seconds(timeout)
        interval = _SHORTEST_LOOK
        while True:
            with self._home.blocking_driver() as driver:
                outcome = driver.run(read_outcomes([self.id], self._home.failures)).get(self.id)
            if outcome is not None:
                return _raise(outcome)
            pause = interval * random.uniform(0.8, 1.0)
            if deadline is not None:
                pause = min(pause, deadline - time.monotonic())
                if pause <= 0:
                    raise TimeoutError(self._late)
            time.sleep(pause)
            interval = min(interval * 2, _LONGEST_LOOK)

    @property
    def _late(self) -> str:
        return f"message {self.id} has not been handled in time; it goes on all the same"


def _raise(outcome: Outcome) -> None:
    errors: list[DistributedError] = [failed.to_exception() for failed in outcome]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup(f"{len(errors)} sagas that handle the message failed", errors)
