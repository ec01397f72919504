"""Outcomes: how launched messages ended, for all who wait for them in a process."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from scoop_outbox._failure.root_cause import Origin, in_a_line, root_cause_text, trail
from scoop_outbox.core.plans.failures import Known, recall
from scoop_outbox.core.plans.inspect import read_origins, read_roots
from scoop_outbox.core.run import RunState
from scoop_outbox.core.statement import Plan
from scoop_outbox.daemon.hints import ProcessHints
from scoop_outbox.daemon.loops import call_on
from scoop_outbox.daemon.polling import AdaptivePolling
from scoop_outbox.errors import UnknownMessage
from scoop_outbox.failure import DistributedError, Failure
from scoop_outbox.scope import Result
from scoop_outbox.store.home import Home

_SHORTEST_LOOK, _LONGEST_LOOK = 0.002, 0.1
"""Seconds from one look to the next while other processes are not heard."""
_LONGEST_IF_TOLD = 1.0
"""Seconds from one look to the next otherwise: a hint may be lost."""
_NAMED = 5
"""Of how many failures of several a line names the root cause."""


@dataclass(frozen=True, slots=True)
class Failed:
    """How one saga failed.

    Attributes:
        failure: what it failed with: if it could not be rolled back, why not.
        reason: what it was rolled back for, when that is another failure.
        origin: where the root cause happened, if that is known.
    """

    failure: Failure
    reason: Failure | None = None
    origin: Origin | None = None

    def to_exception(self) -> DistributedError:
        """Return an exception of the failure, which tells of the reason if nothing in it does."""
        error = self.failure.to_exception()
        error.origin = self.origin
        if self.reason is not None and not self.failure.contains(self.reason):
            error.add_note(f"It could not be rolled back. It was to be, because of: {root_cause_text(self.reason)}")
            error.__context__ = self.reason.to_exception()
        return error


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the sagas that handle a message ended.

    Attributes:
        message_id: the message.
        failed: those that failed, in order.
        committed: the names of the others, each with the result that it left, as JSON text.
        pruned: whether the hierarchy has been pruned, so that nobody knows.
    """

    message_id: uuid.UUID
    failed: list[Failed] = field(default_factory=list)
    committed: list[tuple[str, str | None]] = field(default_factory=list)
    pruned: bool = False

    def answer(self) -> Any:
        """Return the result of the one saga that handles the message, or a list of those of several; decoded anew.

        Raises:
            DistributedError: one saga failed.
            ExceptionGroup: several did.
            UnknownMessage: the hierarchy has been pruned.
        """
        if self.pruned:
            raise UnknownMessage(f"message {self.message_id} was handled, and how is not known: it has been pruned")
        errors: list[DistributedError] = [failed.to_exception() for failed in self.failed]
        if len(errors) == 1:
            raise errors[0]
        if errors:
            causes = "; ".join(in_a_line(error.root_cause, error.origin) for error in errors[:_NAMED])
            more = "" if len(errors) <= _NAMED else "; ..."
            raise ExceptionGroup(f"{len(errors)} sagas that handle the message failed: {causes}{more}", errors)
        results = [Result(saga, self.message_id, json.loads(text)) for saga, text in self.committed if text is not None]
        if len(self.committed) > 1:
            return results
        return results[0].value if results else None


class Outcomes:
    """Looks for all waiting callers of an event loop at once: a thousand of them cost one query a look.

    Args:
        home: where the messages are.
        hints: tells of messages that have been handled, in this process or another.
    """

    def __init__(self, home: Home, hints: ProcessHints) -> None:
        """Look for nobody yet."""
        self._home = home
        self._hints = hints
        self._lookouts: dict[asyncio.AbstractEventLoop, _Lookout] = {}

    async def of(self, message_id: uuid.UUID) -> Outcome:
        """Return how a message ended, once it has.

        Raises:
            DatabaseError: the database cannot be reached.
        """
        loop = asyncio.get_running_loop()
        lookout = self._lookouts.get(loop)
        if lookout is None:
            for other in [other for other in list(self._lookouts) if other.is_closed()]:
                self._lookouts.pop(other, None)  # somebody still waited there
            lookout = self._lookouts[loop] = _Lookout(self._home, self._hints)
        try:
            with self._hints.awaiting(message_id, lookout.wake):
                return await lookout.of(message_id)
        finally:
            if not lookout.waited_for:
                self._lookouts.pop(loop, None)

    def of_blocking(self, message_id: uuid.UUID, deadline: float | None) -> Outcome | None:
        """Do as `of`, for code without an event loop.

        Args:
            message_id: the message.
            deadline: until when it is looked for, by `time.monotonic`; None is for ever.

        Returns:
            How the message ended, None if it has not until then.

        Raises:
            DatabaseError: the database cannot be reached.
        """
        woken = threading.Event()
        pause = _SHORTEST_LOOK
        with self._hints.awaiting(message_id, woken.set):
            while True:
                woken.clear()
                with self._home.blocking_driver() as driver:
                    outcome = driver.run(read_outcomes([message_id], self._home.failures)).get(message_id)
                if outcome is not None:
                    return outcome
                self._hints.say_waiting()
                longest = _LONGEST_IF_TOLD if self._hints.hears_of_ends else _LONGEST_LOOK
                pause = longest if longest is _LONGEST_IF_TOLD else min(pause * 2, longest)
                left = pause * random.uniform(0.8, 1.0)
                if deadline is not None:
                    left = min(left, deadline - time.monotonic())
                    if left <= 0:
                        return None
                woken.wait(left)


class _Lookout:
    """The waiting callers of one event loop."""

    def __init__(self, home: Home, hints: ProcessHints) -> None:
        self._home = home
        self._hints = hints
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[uuid.UUID, list[asyncio.Future[Outcome]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._polling = AdaptivePolling(_SHORTEST_LOOK, _LONGEST_LOOK)
        self._polling_if_told = AdaptivePolling(_LONGEST_IF_TOLD, _LONGEST_IF_TOLD)

    @property
    def waited_for(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    def wake(self) -> None:
        """Look at once. Safe to be called from any thread."""
        call_on(self._loop, self._wake)

    def _wake(self) -> None:
        self._polling.wake()
        self._polling_if_told.wake()

    async def of(self, message_id: uuid.UUID) -> Outcome:
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self._waiting.setdefault(message_id, []).append(future)
        self._wake()
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
        if not self._waiting:
            self._wake()  # the task ends

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
                self._hints.say_waiting()
                await (self._polling_if_told if self._hints.hears_of_ends else self._polling).sleep()


def read_outcomes(messages: Sequence[uuid.UUID], known: Known) -> Plan[dict[uuid.UUID, Outcome]]:
    """Ask which messages have ended, all their own runs with them, and how."""
    rows = yield from read_roots(messages)
    failures = yield from recall([one for row in rows for one in row[4:6]], known)
    outcomes: dict[uuid.UUID, Outcome] = {}
    unfinished: set[uuid.UUID] = set()
    for message_id, taken_in, saga, state, failure, obstacle, result, pruned in rows:
        outcome = outcomes.setdefault(message_id, Outcome(message_id, pruned=bool(pruned)))
        if not taken_in or (state is not None and not _final(RunState(state))):
            unfinished.add(message_id)
        elif obstacle is not None and obstacle != failure:
            outcome.failed.append(Failed(failures[obstacle], failures.get(failure)))
        elif failure is not None:
            outcome.failed.append(Failed(failures[failure]))
        elif state is not None:
            outcome.committed.append((saga, result))
    ended = {message_id: outcome for message_id, outcome in outcomes.items() if message_id not in unfinished}
    if any(outcome.failed for outcome in ended.values()):
        yield from _locate([outcome for outcome in ended.values() if outcome.failed])
    return ended


def _locate(outcomes: Sequence[Outcome]) -> Plan[None]:
    """Look up where the root causes of failures happened."""
    trails: set[uuid.UUID] = set()
    ends: dict[uuid.UUID, list[tuple[Outcome, int]]] = {}
    for outcome in outcomes:
        for place, failed in enumerate(outcome.failed):
            ids = [one.stored.id for one in trail(failed.failure) if one.stored is not None]
            if ids:
                trails.update(ids)
                ends.setdefault(ids[-1], []).append((outcome, place))
    messages = [outcome.message_id for outcome in outcomes]
    rows = yield from read_origins(messages, list(trails), list(ends))
    for failure_id, service, saga, step in rows:
        for outcome, place in ends[failure_id]:
            outcome.failed[place] = replace(outcome.failed[place], origin=Origin(service, saga, step))


def _final(state: RunState) -> bool:
    return state.ended and state is not RunState.PARKED
