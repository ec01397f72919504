"""The worker: follows the mail of one service, and executes its runs.

A *feeder* reads which runs have mail that is due (an index read: no lock, no write) and hands them to free *slots*;
a slot claims the run by its id. A run that waits for children, a retry or the time of day holds no slot, no
connection and no thread. Any number of workers of a service run side by side: the row lock decides who executes a
run, and they divide the mail among themselves so that they seldom try the same one.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psycopg
import sqlalchemy as sa

from scoop_outbox.cancellation import StrayCancellationError, own_cancellation_only
from scoop_outbox.core import claim, plans
from scoop_outbox.core.plans import Execution
from scoop_outbox.core.statement import ask, statement
from scoop_outbox.daemon.backoff import Backoff
from scoop_outbox.daemon.horizon import Horizon
from scoop_outbox.daemon.pace import Pace
from scoop_outbox.daemon.peers import Peers
from scoop_outbox.daemon.signals import Signals
from scoop_outbox.daemon.slot import Counters, Slot, mostly_async
from scoop_outbox.saga import Saga
from scoop_outbox.store.aio import AsyncDriver
from scoop_outbox.store.blocking import Driver
from scoop_outbox.store.calls import Interrupted
from scoop_outbox.store.connect import in_words
from scoop_outbox.store.home import Home
from scoop_outbox.store.patient import PatientDriver

log = logging.getLogger(__name__)

SLOTS = 16
_AHEAD = 2
_STEAL = timedelta(milliseconds=50)
_SPARED = 500
_STUCK = 2.0
_LONG = 10.0


class Worker:
    """Executes the runs of one service.

    Args:
        home: where they are.
        service: whose.
        sagas: its sagas by name.
        signals: tells of mail.
        slots: how many runs are executed at the same time.
        brokered: whether a broker carries the messages that are launched.
    """

    def __init__(
        self,
        home: Home,
        service: str,
        sagas: Mapping[str, Saga],
        signals: Signals,
        slots: int = SLOTS,
        *,
        brokered: bool = False,
    ) -> None:
        """Execute nothing yet."""
        self._brokered = brokered
        self._home = home
        self._service = service
        self._sagas = dict(sagas)
        self._slots = slots
        self._signals = signals
        self._pace = Pace()
        self._peers = Peers(home, service)
        self._feeder: PatientDriver | None = None
        # Threads move on from one run to the next by themselves; what they and the loop share is behind this lock.
        self._lock = threading.RLock()
        self._tasks: dict[uuid.UUID, asyncio.Task[None]] = {}
        self._again: set[uuid.UUID] = set()
        self._backoff = Backoff()
        self._horizon = Horizon()
        self._back = self._horizon.look()
        self._done: set[uuid.UUID] = set()  # since the feeder last began to read: what it reads of them is old
        self._freed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._ready: dict[uuid.UUID, str] = {}  # runs that have mail, oldest first, and their sagas
        self._behind = True  # mail may lie waiting that has not been read
        self._stopping = False
        self._drivers: list[AsyncDriver] = []
        self._blocking: list[Driver] = []
        self._at_work: dict[uuid.UUID, Driver] = {}
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix=f"scoop_outbox {service}")
        self._coroutines = {name: mostly_async(saga) for name, saga in self._sagas.items()}
        self.counters = Counters()
        signals.on_mail(service, self._offer, self._pace.wake)

    @property
    def busy(self) -> int:
        """How many runs are being executed."""
        return len(self._tasks)

    def _worker(self, *, coroutines: bool) -> claim.Worker:
        return claim.Worker(
            self._service,
            self._sagas,
            self._home.worker_id,
            self._signals,
            coroutines,
            random.random,
            lambda: self._stopping,
            self._brokered,
        )

    async def run(self) -> None:
        """Execute runs until stopped, whatever happens to the database meanwhile."""
        failures = 0
        problem = ""
        while not self._stopping:
            try:
                driver = self._feeder
                if driver is None or not driver.usable:
                    self._feeder = driver = await self._home.connect_to_queues()
                    await self._peers.introduce(driver)
                    self._horizon.forget()  # what was asked last may not have been answered
                await self._feed(driver)
                failures, problem = 0, ""
            except (Interrupted, psycopg.Error, sa.exc.SQLAlchemyError, OSError) as error:
                failures += 1
                if (reason := in_words(self._home.url, error)) != problem:
                    log.warning("the worker cannot use the database: %s; trying again", reason)
                    problem = reason
                await self._drop_feeder()
                await self._pace.sleep(min(0.1 * 2.0 ** min(failures, 60), 5.0))
        await self._drop_feeder()

    async def _drop_feeder(self) -> None:
        driver, self._feeder = self._feeder, None
        if driver is not None:
            await driver.close()

    @property
    def trouble(self) -> str | None:
        """What keeps runs from being found just now; None when all is well."""
        return None if self._feeder is None else self._feeder.trouble

    async def stop(self, grace: float) -> None:
        """Claim nothing more, and give running steps `grace` seconds to finish.

        A step that takes longer is cancelled (an `async def`) or loses its connection (a `def`): its transaction is
        undone, and any other worker executes it again.
        """
        self._stopping = True
        self._pace.wake()
        self._freed.set()
        with self._lock:
            tasks = dict(self._tasks)
        if tasks:
            await asyncio.wait(tasks.values(), timeout=grace)
        late = {run_id: task for run_id, task in tasks.items() if not task.done()}
        aborted = []
        for run_id, task in late.items():
            log.warning("a step of run %s did not finish within %.0f s; it will be executed again", run_id, grace)
            blocking = self._at_work.get(run_id)
            if blocking is None:
                task.cancel()
            else:
                aborted.append(asyncio.to_thread(blocking.abort))
        await asyncio.gather(*aborted)
        if late:
            _, stuck = await asyncio.wait(late.values(), timeout=1.0)
            for task in stuck:
                task.cancel()  # a thread cannot be ended, but with its connection gone it can do no harm
        self._threads.shutdown(wait=False, cancel_futures=True)
        for driver in self._drivers:
            await driver.close()
        for idle in self._blocking:
            idle.close()
        self._drivers.clear()
        self._blocking.clear()

    async def _feed(self, driver: AsyncDriver) -> None:
        """Read which runs have mail, and hand them to free slots."""
        if await self._peers.count(driver):
            self._horizon.forget()  # what was another's may lie further back
        wait = await self._read(driver)
        if not self._ready and self._peers.part[1] > 1 and self.busy < self._slots:
            await self._read_left_lying(driver)
        if self._fill():
            self._pace.busy()
        if self._low:
            await self._pace.sleep(wait)
        else:
            self._freed.clear()
            await self._freed.wait()

    @property
    def _low(self) -> bool:
        """Whether the slots may soon have nothing to do although mail lies waiting."""
        return len(self._ready) <= (self._slots // 2 if self._behind else 0)

    async def _read(self, driver: AsyncDriver) -> float | None:
        """Read the oldest mail anew; return in how many seconds more is due."""
        part, parts = self._peers.part
        # Runs in hand or backing off keep their mail, and would hide what lies behind them.
        most = len(self._tasks) + len(self._backoff) + _AHEAD * self._slots
        self._done.clear()
        back = self._back = self._horizon.look()
        sagas = list(self._sagas)
        due = statement("read_due", service=self._service, sagas=sagas, part=part, parts=parts, most=most, back=back)
        (rows,) = await driver.run(ask(due))
        wait = None
        with self._lock:
            self._ready.clear()
            self._behind = len(rows) >= most
            # What has been in hand for long has mail that is as old.
            lies = (-due for run_id, _, due in rows if -due < _LONG or run_id not in self._tasks)
            self._horizon.looked(next(lies, None))
            for run_id, saga, due_in in rows:
                delay = max(due_in, self._backoff.left(run_id))
                if delay > 0:
                    wait = delay if wait is None else min(wait, delay)
                elif run_id not in self._done and run_id not in self._tasks:
                    self._ready[run_id] = saga
        return wait

    async def _read_left_lying(self, driver: AsyncDriver) -> None:
        """Help others when there is nothing of our own: a little at a time, for they may be quicker.

        As much of their oldest mail as their slots can soon deal with is left alone: it would be claimed in vain, and
        so would what they find gone. Unless it has been lying for so long that they seem to be stuck.
        """
        theirs = min((self._peers.part[1] - 1) * (1 + _AHEAD) * self._slots, _SPARED)
        wanted = max(1, (self._slots - self.busy) // 4) + len(self._backoff)
        most, sagas = theirs + wanted, list(self._sagas)
        lying = statement(
            "read_left_lying", service=self._service, sagas=sagas, steal=_STEAL, back=self._back, most=most
        )
        (rows,) = await driver.run(ask(lying))
        spare = len(rows) - theirs
        with self._lock:
            for index, (run_id, saga, age) in enumerate(rows):
                lies = index < spare or age > _STUCK
                if lies and run_id not in self._tasks and self._backoff.left(run_id) <= 0:
                    self._ready[run_id] = saga

    def _fill(self) -> int:
        """Execute runs that are ready, oldest first, as far as there are slots; return how many."""
        started = 0
        with self._lock:
            while self._ready and self.busy < self._slots:
                run_id = next(iter(self._ready))
                started += self._start(run_id, self._ready.pop(run_id))
        return started

    def _move_on(self, slot: Slot) -> bool:
        """Give a thread that is done with its run the next one, without the detour through the event loop."""
        with self._lock:
            following = next(iter(self._ready.items()), None)
            if self._stopping or slot.run_id in self._again or following is None or self._coroutines[following[1]]:
                return False
            self._done.add(slot.run_id)
            self._backoff.forget(slot.run_id)
            task = self._tasks.pop(slot.run_id)
            slot.run_id, slot.saga = following
            del self._ready[slot.run_id]
            self._tasks[slot.run_id] = task
            self.counters.claims += 1
            if self._low:
                self._loop.call_soon_threadsafe(self._freed.set)
            return True

    def _offer(self, run_id: uuid.UUID, saga: str, delay: float) -> bool:
        """Take mail that was posted in this process; answer whether this worker sees to it."""
        part, parts = self._peers.part
        if int.from_bytes(run_id.bytes[-2:]) % parts != part:
            return False
        with self._lock:
            return self._take(run_id, saga, delay)

    def _take(self, run_id: uuid.UUID, saga: str, delay: float) -> bool:
        if delay > 0:
            self._loop.call_later(delay, self._pace.wake)
        elif run_id in self._tasks:
            self._again.add(run_id)
        elif self.busy >= self._slots:
            self._behind = True
            return False  # a worker that has a slot may be faster
        elif self._ready or self._behind:
            self._pace.wake()  # behind what has been waiting for longer: the feeder reads in order of time
        elif not self._stopping:
            self._backoff.forget(run_id)
            self._start(run_id, saga)
        return True

    def _start(self, run_id: uuid.UUID, saga: str) -> bool:
        if self._stopping or run_id in self._tasks or saga not in self._sagas:
            return False
        self._tasks[run_id] = asyncio.create_task(self._execute(run_id, saga))
        return True

    async def _execute(self, run_id: uuid.UUID, saga: str) -> None:
        """Execute a run in a slot, and see to it that the slot is free again whatever happens."""
        slot = Slot(run_id, saga)
        done: Execution | None = None
        try:
            self.counters.claims += 1
            coroutines = self._coroutines[saga]
            with own_cancellation_only():
                done = await self._drive(slot, coroutines=coroutines)
                while done is Execution.OTHER_COLOUR and not self._stopping:
                    coroutines = not coroutines
                    done = await self._drive(slot, coroutines=coroutines)
            if done is Execution.NOTHING:
                self.counters.empty_claims += 1
        except (Interrupted, psycopg.OperationalError, sa.exc.OperationalError, OSError) as error:
            self.counters.interruptions += 1
            log.warning("run %s was interrupted (%s); it is executed again", slot.run_id, error)
        except StrayCancellationError:
            log.warning("run %s: a callback raised CancelledError; it is executed again", slot.run_id)
        except Exception:
            log.exception("run %s cannot be executed; it is tried again, others go on", slot.run_id)
        finally:
            if done is None or done is Execution.OTHER_COLOUR:
                self._horizon.forget()  # its mail lies where it did
            self._finished(slot, done or Execution.NOTHING)

    def _finished(self, slot: Slot, done: Execution) -> None:
        with self._lock:
            run_id = slot.run_id
            del self._tasks[run_id]
            self._done.add(run_id)
            if done is Execution.NOTHING:
                self._backoff.note(run_id)
            else:
                self._backoff.forget(run_id)
            if run_id in self._again:
                self._again.discard(run_id)
                self._backoff.forget(run_id)
                self._start(run_id, slot.saga)
            self._fill()
            if self._low:
                self._freed.set()
                if self._behind:
                    self._pace.wake()

    async def _drive(self, slot: Slot, *, coroutines: bool) -> Execution:
        if not coroutines:
            return await self._loop.run_in_executor(self._threads, self._drive_blocking, slot)
        driver = self._drivers.pop() if self._drivers else await self._home.connect_for_steps()
        try:
            return await driver.run(plans.execute(slot.run_id, self._worker(coroutines=True)))
        finally:
            if driver.usable and not self._stopping:
                self._drivers.append(driver)
            else:
                await driver.close()

    def _drive_blocking(self, slot: Slot) -> Execution:
        try:
            driver = self._blocking.pop()
        except IndexError:  # asking first would not do: other threads take drivers too
            driver = self._home.connect_for_steps_blocking()
        worker = self._worker(coroutines=False)
        try:
            while True:
                self._at_work[slot.run_id] = driver
                try:
                    done = driver.run(plans.execute(slot.run_id, worker))
                finally:
                    del self._at_work[slot.run_id]
                if done is not Execution.DONE or not driver.usable or not self._move_on(slot):
                    return done
        finally:
            if driver.usable and not self._stopping:
                self._blocking.append(driver)
            else:
                driver.close()
