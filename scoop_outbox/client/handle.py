"""The handle of a launched message: what its launcher may ask for."""

from __future__ import annotations

import asyncio
import time
import uuid
from datetime import timedelta
from typing import Any

from scoop_outbox._inside import refuse_wait
from scoop_outbox.client.waiters import Outcomes, read_outcomes
from scoop_outbox.policy import seconds
from scoop_outbox.progress import read_standing
from scoop_outbox.store.home import Home


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

    async def wait(self, timeout: float | timedelta | None = None) -> Any:  # noqa: ASYNC109 - it is ours to raise
        """Return when every saga that handles the message, and everything below, has finished.

        Returns None at once when nobody handles it. Waiting holds no connection between looks.

        Args:
            timeout: seconds or a `timedelta`; None waits for ever.

        Returns:
            What the saga left with `scope.set_result`, None if it left nothing. When several sagas handle the message,
            a list of those that left something, as in `scope.results`: a `Result` for each, by service and saga.

        Raises:
            TimeoutError: it has not ended in time; it goes on all the same. The message says what is open.
            DistributedError: its saga failed; the whole chain of causes, across services, is attached, and the message
                names the first of them: type, text, service, saga and step.
            ExceptionGroup: several sagas failed; one `DistributedError` for each.
            UnknownMessage: its hierarchy has been pruned.
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
                    raise TimeoutError(self._late(timeout, await driver.run(read_standing(self.id)))) from None
            outcome = last
        return outcome.answer()

    def wait_sync(self, timeout: float | timedelta | None = None) -> Any:
        """Do as `wait`, for code without an event loop.

        Returns:
            As `wait`.

        Raises:
            TimeoutError: it has not ended in time; it goes on all the same.
            DistributedError: its saga failed.
            ExceptionGroup: several sagas failed.
            UnknownMessage: its hierarchy has been pruned.
            DatabaseError: the database cannot be reached; the message goes on when it can.
            StepError: this is called inside a step; what a step launches is waited for by itself.
        """
        refuse_wait()
        deadline = None if timeout is None else time.monotonic() + seconds(timeout)
        outcome = self._outcomes.of_blocking(self.id, deadline)
        if outcome is None:
            with self._home.blocking_driver() as driver:
                raise TimeoutError(self._late(timeout, driver.run(read_standing(self.id))))
        return outcome.answer()

    def _late(self, timeout: float | timedelta | None, standing: str) -> str:
        limit = "" if timeout is None else f" within {seconds(timeout):g} s"
        late = f"message {self.id} has not been handled{limit}; it goes on all the same"
        return f"{late}. What is open:{standing}" if standing else late
