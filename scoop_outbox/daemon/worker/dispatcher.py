"""The dispatcher: which run starts next, and which may not start now. Feeder and slots of a worker meet here.

A run is *ready* when it has mail and waits for a slot, and *in hand* while a slot executes it. When it is done, what
the feeder is just reading of it is old. When the slot could do nothing with it, it is left alone for a while.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Container, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from scoop_outbox.core.plans.execute import Execution
from scoop_outbox.core.statement import Call
from scoop_outbox.daemon.counters import WorkerCounters
from scoop_outbox.daemon.worker.mail import Due
from scoop_outbox.daemon.worker.run_backoff import RunBackoff
from scoop_outbox.daemon.worker.run_queue import RunQueue


class Calling(Protocol):
    """What executes a run.

    Attributes:
        called: the callback that was called last, until the plan ends that has called it.
    """

    called: Call | None


@dataclass(slots=True, eq=False)
class Slot:
    """A slot at work, and the run that it has in hand.

    Attributes:
        driver: executes the run, or has done so.
    """

    run_id: uuid.UUID
    saga: str
    driver: Calling | None = None


class Offer(Enum):
    """What becomes of a run whose mail was posted in this process."""

    STARTS = auto()  # it is in hand now, and its caller starts it
    NOTED = auto()  # the slot that has it in hand looks again, or the feeder does when the run may start
    BEHIND = auto()  # others of its saga have been waiting for longer: the feeder reads in order of time
    QUEUED = auto()  # no slot is free


class Dispatcher:
    """Decides which runs of one worker start, in which order.

    It owns what is known of each run: the ready queue, what is in hand, what got mail meanwhile, what is done, and what
    is left alone. Threads move on to the next run by themselves, so all of it is behind one lock, which is held for a
    few operations on sets and dicts. It starts nothing itself, asks no database, and needs no event loop.

    Args:
        slots: how many runs are executed at the same time.
        sagas: the names of the worker's sagas.
        interrupted: runs whose interruption is still to be written down. They may not start; it changes on the loop.

    Attributes:
        slots: see above.
        stopping: whether nothing starts any more.
        counters: what was taken in hand.
    """

    def __init__(self, slots: int, sagas: Iterable[str], interrupted: Container[uuid.UUID]) -> None:
        """Know no run yet."""
        self.slots = slots
        self.stopping = False
        self.counters = WorkerCounters()
        self._interrupted = interrupted
        self._lock = threading.RLock()  # who collects the garbage within it may launch something that gets mail
        self._ready = RunQueue()
        self._behind = set(sagas)  # of which mail may lie waiting that has not been read
        self._in_hand: set[uuid.UUID] = set()
        self._again: set[uuid.UUID] = set()  # in hand, and there was more mail meanwhile
        self._done: set[uuid.UUID] = set()  # since the feeder last began to read: what it reads of them is old
        self._backoff = RunBackoff()

    @property
    def busy(self) -> int:
        """How many runs are in hand."""
        return len(self._in_hand)

    @property
    def in_hand(self) -> Container[uuid.UUID]:
        """Which runs are."""
        return self._in_hand

    @property
    def free(self) -> int:
        """How many slots have nothing to do."""
        return self.slots - len(self._in_hand)

    @property
    def left_alone(self) -> int:
        """How many runs are left alone for a while."""
        with self._lock:
            return len(self._backoff)

    @property
    def empty(self) -> bool:
        """Whether no run is ready."""
        return not self._ready

    @property
    def behind(self) -> bool:
        """Whether mail may lie waiting that has not been read."""
        return bool(self._behind)

    @property
    def low(self) -> bool:
        """Whether the slots may soon have nothing to do although mail lies waiting."""
        return len(self._ready) <= (self.slots // 2 if self._behind else 0)

    def stop(self) -> None:
        """Start nothing any more."""
        with self._lock:
            self.stopping = True

    def begin_reading(self) -> int:
        """Note that the feeder begins to read; return how many runs have mail and may not start all the same."""
        with self._lock:
            self._done.clear()
            return len(self._in_hand) + len(self._backoff)

    def replace(self, due: Iterable[Due], behind: set[str]) -> float | None:
        """Replace the ready runs by what has been read.

        Args:
            due: the runs, in the order in which they are to start.
            behind: the sagas of which there may be more.

        Returns:
            In how many seconds the first of those that are left alone may be tried; None when none is left alone.
        """
        with self._lock:
            self._ready.clear()
            self._behind = behind
            left = [self._put(one) for one in due]
        return min((seconds for seconds in left if seconds > 0), default=None)

    def add(self, due: Iterable[Due]) -> None:
        """Add runs behind those that are ready."""
        with self._lock:
            for one in due:
                self._put(one)

    def _put(self, due: Due) -> float:
        """Put a run into the queue if it may start; return for how many seconds it is left alone."""
        run_id = due.run_id
        if (left := self._backoff.left(run_id)) > 0:
            return left
        if run_id not in self._done and run_id not in self._in_hand and run_id not in self._interrupted:
            self._ready.put(run_id, due.saga)
        return 0.0

    def offer(self, run_id: uuid.UUID, saga: str) -> Offer:
        """Say what becomes of a run that has just got mail; if it is to start, it is in hand."""
        with self._lock:
            if run_id in self._in_hand:
                self._again.add(run_id)
            elif saga in self._behind or self._ready.has(saga):
                return Offer.BEHIND
            elif len(self._in_hand) >= self.slots:
                # Its saga's turn comes next. Another worker that has a slot may be faster.
                self._ready.put(run_id, saga)
                return Offer.QUEUED
            elif not self.stopping and run_id not in self._interrupted:
                self._backoff.forget(run_id)
                self._take(run_id)
                return Offer.STARTS
            return Offer.NOTED

    def take_ready(self) -> list[tuple[uuid.UUID, str]]:
        """Take runs that are ready in hand, sagas in turn, as far as slots are free; the caller starts them."""
        with self._lock:
            return self._take_ready()

    def _take_ready(self) -> list[tuple[uuid.UUID, str]]:
        taken: list[tuple[uuid.UUID, str]] = []
        while self._ready and len(self._in_hand) < self.slots:
            run = self._ready.take()
            # A finaliser may have offered it in between, and started it.
            if not self.stopping and run[0] not in self._in_hand:
                self._take(run[0])
                taken.append(run)
        return taken

    def _take(self, run_id: uuid.UUID) -> None:
        self._in_hand.add(run_id)
        self.counters.claims += 1

    def move_on(self, slot: Slot, sagas: Container[str]) -> bool:
        """Give a slot that is done with its run the next one, if that is of one of these sagas. In any thread."""
        with self._lock:
            saga = self._ready.next_saga()
            if self.stopping or slot.run_id in self._again or saga is None or saga not in sagas:
                return False
            self._done.add(slot.run_id)
            self._backoff.forget(slot.run_id)
            self._in_hand.discard(slot.run_id)
            slot.run_id, slot.saga = self._ready.take()
            self._take(slot.run_id)
            return True

    def finish(self, slot: Slot, done: Execution | None) -> list[tuple[uuid.UUID, str]]:
        """Note how far a slot got with its run.

        Args:
            slot: the slot; it is free from now on.
            done: None when the run could not be executed.

        Returns:
            Runs that are in hand now, and that the caller starts: the same one, if there was more mail, and ready ones.
        """
        with self._lock:
            run_id = slot.run_id
            self._in_hand.discard(run_id)
            self._done.add(run_id)
            interrupted = run_id in self._interrupted
            if (done is None or done is Execution.NOTHING) and not interrupted:
                self._backoff.note(run_id)
            else:
                self._backoff.forget(run_id)
            if done is Execution.NOTHING:
                self.counters.empty_claims += 1
            taken: list[tuple[uuid.UUID, str]] = []
            if run_id in self._again:
                self._again.discard(run_id)
                if not interrupted and not self.stopping:
                    self._backoff.forget(run_id)
                    self._take(run_id)
                    taken.append((run_id, slot.saga))
            return taken + self._take_ready()
