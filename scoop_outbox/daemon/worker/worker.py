"""The worker: follows the mail of one service, and executes its runs.

A *feeder* reads which runs have mail that is due (an index read: no lock, no write) and hands them to free *slots*;
a slot claims the run by its id. A run that waits for children, a retry or the time of day holds no slot, no
connection and no thread. Any number of workers of a service run side by side: the row lock decides who executes a
run, and they divide the mail among themselves so that they seldom try the same one.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import random
import threading
import uuid
from collections.abc import Mapping

import psycopg
import sqlalchemy as sa

from scoop_outbox._cancellation import StrayCancellationError, own_cancellation_only
from scoop_outbox.core.plans import claim, execute
from scoop_outbox.core.plans.execute import Execution
from scoop_outbox.daemon.polling import AdaptivePolling
from scoop_outbox.daemon.signals import Signals
from scoop_outbox.daemon.worker.connections import StepConnections
from scoop_outbox.daemon.worker.exits import contain_exits, let_exits_through
from scoop_outbox.daemon.worker.interruptions import MACHINERY, MOST, Interruption, Interruptions, refusals_interrupt
from scoop_outbox.daemon.worker.mail import MailReader
from scoop_outbox.daemon.worker.reports import Reports
from scoop_outbox.daemon.worker.roster import Roster
from scoop_outbox.daemon.worker.run_backoff import RunBackoff
from scoop_outbox.daemon.worker.run_queue import RunQueue
from scoop_outbox.daemon.worker.slot import Slot, WorkerCounters, mostly_async
from scoop_outbox.daemon.worker.surroundings import Surroundings
from scoop_outbox.policy import exponential
from scoop_outbox.saga import Saga
from scoop_outbox.store.async_driver import AsyncDriver
from scoop_outbox.store.callbacks import Interrupted
from scoop_outbox.store.connect import in_words
from scoop_outbox.store.faults import words
from scoop_outbox.store.home import Home
from scoop_outbox.store.time_limit import TimeLimitedDriver

log = logging.getLogger(__name__)

SLOTS = 16
_AHEAD = 2
_SPARED = 500
_LONG = 10.0


class Worker:
    """Executes the runs of one service.

    Args:
        home: where they are.
        service: whose.
        sagas: its sagas by name.
        signals: tells of mail.
        slots: how many runs are executed at the same time.
        via_broker: whether a broker carries the messages that are launched.
        max_interruptions: a run that is interrupted so often in a row is parked.
    """

    def __init__(
        self,
        home: Home,
        service: str,
        sagas: Mapping[str, Saga],
        signals: Signals,
        slots: int = SLOTS,
        *,
        via_broker: bool = False,
        max_interruptions: int = MOST,
    ) -> None:
        """Execute nothing yet."""
        self._via_broker = via_broker
        self._home = home
        self._service = service
        self._sagas = dict(sagas)
        self._slots = slots
        self._signals = signals
        self._polling = AdaptivePolling()
        self._roster = Roster(home.process_id, service, self._sagas)
        self._surroundings = Surroundings(service, self._sagas, self._roster, signals)
        self.reports = Reports(service, self._sagas, signals, self._roster.seconds_since, via_broker=via_broker)
        self.interruptions = Interruptions(service, self._sagas, self.reports, max_interruptions)
        self._mail = MailReader(service, list(self._sagas), self._roster, self.interruptions)
        self._feeder: TimeLimitedDriver | None = None
        # Threads move on to the next run by themselves; what they and the loop share is behind this lock.
        self._lock = threading.RLock()
        self._tasks: dict[uuid.UUID, asyncio.Task[None]] = {}
        self._again: set[uuid.UUID] = set()
        self._backoff = RunBackoff()
        self._done: set[uuid.UUID] = set()  # since the feeder last began to read: what it reads of them is old
        self._freed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        # What callbacks find in context variables, whoever posts their mail.
        self._context = contextvars.copy_context()
        contain_exits(self._loop)
        self._ready = RunQueue()  # runs that have mail
        self._behind: set[str] = set(self._sagas)  # sagas of which mail may lie waiting that has not been read
        self._stopping = False
        self._connections = StepConnections(home, service, slots, self._context)
        self._workers: dict[bool, claim.Executor] = {}
        self._coroutines = {name: mostly_async(saga) for name, saga in self._sagas.items()}
        self.counters = WorkerCounters()
        signals.on_mail(service, self._offer, self._polling.wake)

    @property
    def busy(self) -> int:
        """How many runs are being executed."""
        return len(self._tasks)

    def _worker(self, *, coroutines: bool) -> claim.Executor:
        worker = self._workers.get(coroutines)
        if worker is not None and worker.deployment is self._roster.deployment:
            return worker
        self._workers[coroutines] = worker = claim.Executor(
            self._service,
            self._sagas,
            self._home.worker_id,
            self._signals,
            coroutines,
            random.random,
            self._home.failures,
            lambda: self._stopping,
            self._via_broker,
            self._roster.deployment,
            self.reports,
        )
        return worker

    async def run(self) -> None:
        """Execute runs until stopped, whatever happens to the database meanwhile."""
        failures, problem = 0, ""
        while not self._stopping:
            try:
                driver = self._feeder
                if driver is None or not driver.usable:
                    self._feeder = driver = await self._home.connect_to_queues()
                    await self._roster.introduce(driver)
                    self._mail.lookback.forget()  # what was asked last may not have been answered
                await self._feed(driver)
                failures, problem = 0, ""
            except (Interrupted, psycopg.Error, sa.exc.SQLAlchemyError, OSError) as error:
                failures += 1
                if (reason := in_words(self._home.url, error)) != problem:
                    log.warning("the worker cannot use the database: %s; trying again", reason)
                    problem = reason
                await self._drop_feeder()
                await self._polling.sleep(exponential(0.2, failures, 5.0))
        await self._leave()

    async def _leave(self) -> None:
        """Let others take over at once what this process would have executed."""
        if self._feeder is not None:
            try:
                await self.interruptions.write_down(self._feeder)
                await self._roster.leave(self._feeder)
            except (Interrupted, psycopg.Error, sa.exc.SQLAlchemyError, OSError) as error:
                log.info("the worker could not say that it leaves, and counts as alive for a moment: %s", words(error))
        await self._drop_feeder()

    async def _drop_feeder(self) -> None:
        driver, self._feeder = self._feeder, None
        if driver is not None:
            await driver.close()

    @property
    def problem(self) -> str | None:
        """What keeps runs from being found just now; None when all is well."""
        return None if self._feeder is None else self._feeder.problem

    async def stop(self, grace: float) -> None:
        """Claim nothing more, and give running steps `grace` seconds to finish.

        A step that takes longer is cancelled (an `async def`) or loses its connection (a `def`): its transaction is
        undone, and any other worker executes it again.
        """
        self._stopping = True
        self._polling.wake()
        self._freed.set()
        with self._lock:
            tasks = dict(self._tasks)
        if tasks:
            await asyncio.wait(tasks.values(), timeout=grace)
        late = {run_id: task for run_id, task in tasks.items() if not task.done()}
        aborted = []
        for run_id, task in late.items():
            log.warning("a step of run %s did not finish within %.0f s; it will be executed again", run_id, grace)
            blocking = self._connections.of_thread(run_id)
            if blocking is None:
                task.cancel()
            else:
                aborted.append(asyncio.to_thread(blocking.abort))
        await asyncio.gather(*aborted)
        if late:
            _, stuck = await asyncio.wait(late.values(), timeout=1.0)
            for task in stuck:
                task.cancel()  # a thread cannot be ended, but with its connection gone it can do no harm
        await self._connections.close()
        let_exits_through(self._loop)

    async def _feed(self, driver: AsyncDriver) -> None:
        """Read which runs have mail, and hand them to free slots."""
        await self.interruptions.write_down(driver)
        if self._roster.left <= 0:
            await self._look_around(driver)
        wait = await self._read(driver)
        if not self._ready and self._roster.others and self.busy < self._slots:
            await self._help_others(driver)
        if self._fill():
            self._polling.busy()
        if self.interruptions:
            return
        if self._low:
            await self._polling.sleep(self._roster.left if wait is None else min(wait, self._roster.left))
            return
        self._freed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._roster.left):
                await self._freed.wait()

    async def _look_around(self, driver: AsyncDriver) -> None:
        if await self._surroundings.look(driver):
            self._mail.lookback.forget()  # what was another's may lie further back

    @property
    def _low(self) -> bool:
        """Whether the slots may soon have nothing to do although mail lies waiting."""
        return len(self._ready) <= (self._slots // 2 if self._behind else 0)

    async def _read(self, driver: AsyncDriver) -> float | None:
        """Read the oldest mail of each saga anew; return in how many seconds more is due."""
        # Runs in hand or backing off keep their mail, and would hide what lies behind them.
        most = len(self._tasks) + len(self._backoff) + len(self.interruptions) + _AHEAD * self._slots
        self._done.clear()
        look = await self._mail.read(driver, most)
        allowed = await self._mail.mark(driver, look.due, self._tasks)
        wait = look.next_due
        with self._lock:
            self._ready.clear()
            self._behind = {due.saga for due in look.due} if len(look.due) >= most else set()
            # What has been in hand for long has mail that is as old.
            lies = [due.age for due in look.due if due.age < _LONG or due.run_id not in self._tasks]
            self._mail.lookback.looked(max(lies, default=None))
            for due in allowed:
                if (delay := self._backoff.left(due.run_id)) > 0:
                    wait = delay if wait is None else min(wait, delay)
                elif self._may_start(due.run_id):
                    self._ready.put(due.run_id, due.saga)
        return wait

    async def _help_others(self, driver: AsyncDriver) -> None:
        """Help others when there is nothing of our own: a little at a time, for they may be quicker.

        What their slots can soon deal with would be claimed in vain, and so would what they find gone.
        """
        theirs = min(self._roster.others * (1 + _AHEAD) * self._slots, _SPARED)
        wanted = max(1, (self._slots - self.busy) // 4) + len(self._backoff)
        lying = await self._mail.read_left_lying(driver, theirs, wanted)
        allowed = await self._mail.mark(driver, lying, self._tasks)
        with self._lock:
            for due in allowed:
                if self._may_start(due.run_id) and self._backoff.left(due.run_id) <= 0:
                    self._ready.put(due.run_id, due.saga)

    def _may_start(self, run_id: uuid.UUID) -> bool:
        return run_id not in self._done and run_id not in self._tasks and run_id not in self.interruptions

    def _fill(self) -> int:
        """Execute runs that are ready, sagas in turn, as far as there are slots; return how many."""
        started = 0
        with self._lock:
            while self._ready and self.busy < self._slots:
                started += self._start(*self._ready.take())
        return started

    def _move_on(self, slot: Slot) -> bool:
        """Give a thread that is done with its run the next one, without the detour through the event loop."""
        with self._lock:
            saga = self._ready.next_saga()
            if self._stopping or slot.run_id in self._again or saga is None or self._coroutines[saga]:
                return False
            self._done.add(slot.run_id)
            self._backoff.forget(slot.run_id)
            task = self._tasks.pop(slot.run_id)
            slot.run_id, slot.saga = self._ready.take()
            self._tasks[slot.run_id] = task
            self.counters.claims += 1
            if self._low:
                self._loop.call_soon_threadsafe(self._freed.set)
            return True

    def _offer(self, run_id: uuid.UUID, saga: str, version: str, delay: float) -> bool:
        """Take mail that was posted in this process; answer whether this worker sees to it."""
        if not self._roster.is_ours(saga, version, run_id):
            return False
        with self._lock:
            return self._take(run_id, saga, delay)

    def _take(self, run_id: uuid.UUID, saga: str, delay: float) -> bool:
        if delay > 0:
            self._loop.call_later(delay, self._polling.wake)
        elif run_id in self._tasks:
            self._again.add(run_id)
        elif saga in self._behind or self._ready.has(saga):
            self._polling.wake()  # behind what has been waiting for longer: the feeder reads in order of time
            return self.busy < self._slots
        elif self.busy >= self._slots:
            # Its saga's turn comes next. Another worker that has a slot may be faster.
            self._ready.put(run_id, saga)
            return False
        elif not self._stopping and run_id not in self.interruptions:
            self._backoff.forget(run_id)
            self._start(run_id, saga)
        return True

    def _start(self, run_id: uuid.UUID, saga: str) -> bool:
        if self._stopping or run_id in self._tasks or saga not in self._sagas:
            return False
        self._tasks[run_id] = asyncio.create_task(self._execute(run_id, saga), context=self._context.copy())
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
        except Interrupted as error:
            self._interrupted(slot, Interruption.of(slot.saga, error))
        except (psycopg.Error, sa.exc.SQLAlchemyError, OSError) as error:
            # Nothing was begun: that there is no connection says nothing of the run.
            log.warning("run %s of saga %s waits for a connection: %s", slot.run_id, slot.saga, words(error))
        except StrayCancellationError:
            self._interrupted(slot, Interruption(slot.saga, "something that it waited for was cancelled", MACHINERY))
        except Exception as error:
            log.exception("run %s of saga %s cannot be executed", slot.run_id, slot.saga)
            reason = f"it cannot be executed: {type(error).__name__}, see the log"
            self._interrupted(slot, Interruption(slot.saga, reason, MACHINERY))
        finally:
            if done is None or done is Execution.OTHER_COLOUR:
                self._mail.lookback.forget()  # its mail lies where it did
            self._finished(slot, done or Execution.NOTHING)

    def _interrupted(self, slot: Slot, why: Interruption) -> None:
        """Have the feeder write down that a run could not be executed."""
        if not self._stopping:
            self.interruptions.note(slot.run_id, why)

    def _finished(self, slot: Slot, done: Execution) -> None:
        with self._lock:
            run_id = slot.run_id
            del self._tasks[run_id]
            self._done.add(run_id)
            if done is Execution.NOTHING and run_id not in self.interruptions:
                self._backoff.note(run_id)
            else:
                self._backoff.forget(run_id)
            if run_id in self._again:
                self._again.discard(run_id)
                if run_id not in self.interruptions:
                    self._backoff.forget(run_id)
                    self._start(run_id, slot.saga)
            self._fill()
            if self.interruptions or self._low:
                self._freed.set()
                if self.interruptions or self._behind:
                    self._polling.wake()

    async def _drive(self, slot: Slot, *, coroutines: bool) -> Execution:
        if not coroutines:
            return await self._loop.run_in_executor(self._connections.threads, self._drive_blocking, slot)
        async with self._connections.lend() as driver:
            with refusals_interrupt():
                return await driver.run(execute.execute(slot.run_id, self._worker(coroutines=True)))

    def _drive_blocking(self, slot: Slot) -> Execution:
        worker = self._worker(coroutines=False)
        with self._connections.lend_blocking() as driver:
            while True:
                with self._connections.at_work(slot.run_id, driver), refusals_interrupt():
                    done = driver.run(execute.execute(slot.run_id, worker))
                if done is not Execution.DONE or not driver.usable or not self._move_on(slot):
                    return done
