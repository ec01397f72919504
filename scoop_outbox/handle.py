"""The handle of a launched message: what its launcher may ask for."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from scoop_outbox.core.run import RunState
from scoop_outbox.core.statement import Plan, ask, statement
from scoop_outbox.daemon.pace import Pace
from scoop_outbox.failure import DistributedError, Failure
from scoop_outbox.policy import seconds

if TYPE_CHECKING:
    from scoop_outbox.store.home import Home


class Handle:
    """A launched message.

    Attributes:
        id: the message's id, the same in every service.
    """

    def __init__(self, message_id: uuid.UUID, home: Home) -> None:
        """Made by `Scoop.launch`, or for an id that was kept."""
        self.id = message_id
        self._home = home

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
        """
        pace = Pace(0.002, 0.1)
        deadline = None if timeout is None else time.monotonic() + seconds(timeout)
        while True:
            async with self._home.driver() as driver:
                ended, failures = await driver.run(_outcome(self.id))
            if ended:
                return _raise(failures)
            left = _left(deadline, self.id)
            await pace.sleep(left)

    def wait_sync(self, timeout: float | timedelta | None = None) -> None:
        """Do as `wait`, for code without an event loop.

        Raises:
            TimeoutError: it has not ended in time; it goes on all the same.
            DistributedError: its saga failed.
            ExceptionGroup: several sagas failed.
        """
        deadline = None if timeout is None else time.monotonic() + seconds(timeout)
        interval = 0.002
        while True:
            with self._home.blocking_driver() as driver:
                ended, failures = driver.run(_outcome(self.id))
            if ended:
                return _raise(failures)
            left = _left(deadline, self.id)
            time.sleep(min(interval * random.uniform(0.8, 1.0), interval if left is None else left))
            interval = min(interval * 2, 0.1)


def _outcome(message_id: uuid.UUID) -> Plan[tuple[bool, list[Failure]]]:
    """Ask whether the message's own runs have all ended, and how the failed ones failed."""
    (rows,) = yield from ask(statement("read_roots", message=message_id))
    states = [RunState(state) for _, _, state, _ in rows if state is not None]
    taken_in = rows[0][0]
    ended = taken_in and all(state.ended and state is not RunState.PARKED for state in states)
    return ended, [Failure.loads(failure) for _, _, state, failure in rows if state is not None and failure is not None]


def _raise(failures: Sequence[Failure]) -> None:
    errors: list[DistributedError] = [failure.to_exception() for failure in failures]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup(f"{len(errors)} sagas that handle the message failed", errors)


def _left(deadline: float | None, message_id: uuid.UUID) -> float | None:
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(f"message {message_id} has not been handled in time; it goes on all the same")
    return left
