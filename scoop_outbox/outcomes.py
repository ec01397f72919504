"""Outcomes: how launched messages ended, for all who wait for them in a process."""

from __future__ import annotations

import asyncio
import uuid
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from scoop_outbox.core.failures import Known, recall
from scoop_outbox.core.run import RunState
from scoop_outbox.core.statement import Plan, ask, statement
from scoop_outbox.daemon.pace import Pace
from scoop_outbox.daemon.signals import Signals
from scoop_outbox.failure import DistributedError, Failure
from scoop_outbox.store.home import Home


@dataclass(frozen=True, slots=True)
class Failed:
    """How one saga failed.

    Attributes:
        failure: what it failed with: if it could not be rolled back, why not.
        reason: what it was rolled back for, when that is another failure.
    """

    failure: Failure
    reason: Failure | None = None

    def to_exception(self) -> DistributedError:
        """Return an exception of the failure, which tells of the reason if nothing in it does."""
        error = self.failure.to_exception()
        if self.reason is not None and not self.failure.contains(self.reason):
            error.add_note(f"It could not be rolled back. It was to be, because of: {self.reason}")
            error.__context__ = self.reason.to_exception()
        return error


Outcome = list[Failed]
"""The failures of a message's own sagas; empty when all of them committed, or nobody handles it."""


class Outcomes:
    """Looks for all waiting callers of an event loop at once: a thousand of them cost one query a look.

    Args:
        home: where the messages are.
        signals: tells of hierarchies that end in this process.
    """

    def __init__(self, home: Home, signals: Signals) -> None:
        """Look for nobody yet."""
        self._home = home
        self._signals = signals
        self._lookouts: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Lookout] = weakref.WeakKeyDictionary()

    async def of(self, message_id: uuid.UUID) -> Outcome:
        """Return how a message ended, once it has.

        Raises:
            DatabaseError: the database cannot be reached.
        """
        loop = asyncio.get_running_loop()
        lookout = self._lookouts.get(loop)
        if lookout is None:
            lookout = self._lookouts[loop] = _Lookout(self._home)
            self._signals.on_ended(loop, lookout.wake)
        return await lookout.of(message_id)


class _Lookout:
    """The waiting callers of one event loop."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._waiting: dict[uuid.UUID, list[asyncio.Future[Outcome]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._pace = Pace(0.002, 0.1)

    def wake(self) -> None:
        """Look at once, if anybody waits."""
        if self._waiting:
            self._pace.wake()

    async def of(self, message_id: uuid.UUID) -> Outcome:
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(message_id, []).append(future)
        self._pace.wake()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look(), name="scoop_outbox outcomes")
        try:
            return await future
        finally:
            self._forget(message_id, future)

    def _forget(self, message_id: uuid.UUID, future: asyncio.Future[Outcome]) -> None:
        futures = self._waiting.get(message_id, [])
        if future in futures:
            futures.remove(future)
        if not futures:
            self._waiting.pop(message_id, None)

    async def _look(self) -> None:
        while self._waiting:
            try:
                async with self._home.driver() as driver:
                    ended = await driver.run(read_outcomes(list(self._waiting), self._home.failures))
            except Exception as error:  # noqa: BLE001 - it belongs to those who wait
                for futures in self._waiting.values():
                    for future in futures:
                        if not future.done():
                            future.set_exception(error)
                return
            for message_id, outcome in ended.items():
                for future in self._waiting.get(message_id, ()):
                    if not future.done():
                        future.set_result(outcome)
            if ended:
                await asyncio.sleep(0)  # those who were answered go away before the next look
            else:
                await self._pace.sleep()


def read_outcomes(messages: Sequence[uuid.UUID], known: Known) -> Plan[dict[uuid.UUID, Outcome]]:
    """Ask which messages have ended, all their own runs with them, and how."""
    (rows,) = yield from ask(statement("read_roots", messages=list(messages)))
    failures = yield from recall([one for *_, failure, obstacle in rows for one in (failure, obstacle)], known)
    outcomes: dict[uuid.UUID, Outcome] = {}
    unfinished: set[uuid.UUID] = set()
    for message_id, taken_in, state, failure, obstacle in rows:
        outcome = outcomes.setdefault(message_id, [])
        if not taken_in or (state is not None and not _final(RunState(state))):
            unfinished.add(message_id)
        elif obstacle is not None and obstacle != failure:
            outcome.append(Failed(failures[obstacle], failures.get(failure)))
        elif failure is not None:
            outcome.append(Failed(failures[failure]))
    return {message_id: outcome for message_id, outcome in outcomes.items() if message_id not in unfinished}


def _final(state: RunState) -> bool:
    return state.ended and state is not RunState.PARKED
