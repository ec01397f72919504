"""The slots: execute runs, so many at a time. A slot claims a run by its id, and the row lock decides who has it."""

from __future__ import annotations

import asyncio
import contextvars
import uuid
from collections.abc import Iterator, Mapping, Sequence

from scoop_outbox._cancellation import StrayCancellationError, own_cancellation_only
from scoop_outbox._log import get_logger
from scoop_outbox._sleep import FixedSleep
from scoop_outbox.core.plans.execute import Execution, execute
from scoop_outbox.core.statement import Call
from scoop_outbox.daemon.worker.connections import StepConnections
from scoop_outbox.daemon.worker.dispatcher import Dispatcher, Offer, Slot
from scoop_outbox.daemon.worker.executors import Executors
from scoop_outbox.daemon.worker.exits import contain_exits, let_exits_through
from scoop_outbox.daemon.worker.feeder import Feeder
from scoop_outbox.daemon.worker.interruptions import MACHINERY, Interruption, Interruptions, refusals_interrupt
from scoop_outbox.saga import Saga
from scoop_outbox.step import is_async
from scoop_outbox.store.callbacks import Interrupted
from scoop_outbox.store.faults import CONNECTION_ERRORS, words
from scoop_outbox.store.home import Home

log = get_logger(__name__)


class Slots:
    """Executes the runs that a dispatcher hands out.

    It owns the tasks, the connections and the threads. The tasks are on the event loop. What threads run, which is
    `_drive_blocking` and `_move_on`, touches only the dispatcher, which has a lock, and what is made for threads: the
    connections and the executors.

    Args:
        home: where the runs are.
        service: whose they are, for the names of threads.
        sagas: the worker's sagas by name.
        dispatcher: decides what is executed.
        feeder: is told when a slot is free.
        interruptions: keeps what could not be executed, until the feeder writes it down.
        executors: what executions know of this worker.
    """

    def __init__(
        self,
        home: Home,
        service: str,
        sagas: Mapping[str, Saga],
        dispatcher: Dispatcher,
        feeder: Feeder,
        interruptions: Interruptions,
        executors: Executors,
    ) -> None:
        """Execute nothing yet."""
        self._dispatcher = dispatcher
        self._feeder = feeder
        self._interruptions = interruptions
        self._executors = executors
        self._blocking = frozenset(name for name, saga in sagas.items() if not mostly_async(saga))
        self._loop = asyncio.get_running_loop()
        # What callbacks find in context variables, whoever posts their mail.
        self._context = contextvars.copy_context()
        self._connections = StepConnections(home, service, dispatcher.slots, self._context)
        self._tasks: dict[Slot, asyncio.Task[None]] = {}
        contain_exits(self._loop)

    def fill(self) -> bool:
        """Execute runs that are ready, as far as there are slots; answer whether there were any."""
        taken = self._dispatcher.take_ready()
        self._start(taken)
        return bool(taken)

    def offer(self, run_id: uuid.UUID, saga: str) -> bool:
        """Take a run that has just got mail; answer whether this worker sees to it, or another one may."""
        match self._dispatcher.offer(run_id, saga):
            case Offer.STARTS:
                self._start([(run_id, saga)])
            case Offer.BEHIND:
                self._feeder.wake()
                return self._dispatcher.free > 0
            case Offer.QUEUED:
                return False
            case Offer.NOTED:
                pass
        return True

    def _start(self, runs: Sequence[tuple[uuid.UUID, str]]) -> None:
        for run_id, saga in runs:
            slot = Slot(run_id, saga)
            self._tasks[slot] = asyncio.create_task(self._execute(slot), context=self._context.copy())

    async def _execute(self, slot: Slot) -> None:
        """Execute a run in a slot, and see to it that the slot is free again whatever happens."""
        done: Execution | None = None
        try:
            coroutines = slot.saga not in self._blocking
            with own_cancellation_only():
                done = await self._drive(slot, coroutines=coroutines)
                while done is Execution.OTHER_COLOUR and not self._dispatcher.stopping:
                    coroutines = not coroutines
                    done = await self._drive(slot, coroutines=coroutines)
        except Interrupted as error:
            self._interrupted(slot, Interruption.of(slot.saga, error))
        except CONNECTION_ERRORS as error:
            # Nothing was begun: that there is no connection says nothing of the run.
            log.warning(
                "run: waiting for a connection (saga %s, run %s: %s)",
                *(slot.saga, slot.run_id, words(error)),
                extra={"saga": slot.saga, "run_id": slot.run_id},
            )
        except StrayCancellationError:
            self._interrupted(slot, Interruption(slot.saga, "something that it waited for was cancelled", MACHINERY))
        except Exception as error:
            log.exception(
                "run: execution failed unexpectedly (saga %s, run %s)",
                slot.saga,
                slot.run_id,
                extra={"saga": slot.saga, "run_id": slot.run_id},
            )
            reason = f"it cannot be executed: {type(error).__name__}, see the log"
            self._interrupted(slot, Interruption(slot.saga, reason, MACHINERY))
        finally:
            if done is None or done is Execution.OTHER_COLOUR:
                self._feeder.look_back()  # its mail lies where it did
            self._finish(slot, done)

    def _interrupted(self, slot: Slot, why: Interruption) -> None:
        """Have the feeder write down that a run could not be executed."""
        if not self._dispatcher.stopping:
            self._interruptions.note(slot.run_id, why)

    def _finish(self, slot: Slot, done: Execution | None) -> None:
        """Free a slot, and start what is next."""
        del self._tasks[slot]
        self._start(self._dispatcher.finish(slot, done))
        self._feeder.slot_freed()

    async def _drive(self, slot: Slot, *, coroutines: bool) -> Execution:
        if not coroutines:
            return await self._loop.run_in_executor(self._connections.threads, self._drive_blocking, slot)
        async with self._connections.lend() as driver:
            slot.driver = driver
            with refusals_interrupt():
                return await driver.run(execute(slot.run_id, self._executors.of(coroutines=True)))

    def _drive_blocking(self, slot: Slot) -> Execution:
        executor = self._executors.of(coroutines=False)
        with self._connections.lend_blocking() as driver:
            slot.driver = driver
            while True:
                with self._connections.at_work(slot.run_id, driver), refusals_interrupt():
                    done = driver.run(execute(slot.run_id, executor))
                if done is not Execution.DONE or not driver.usable or not self._move_on(slot):
                    return done

    def _move_on(self, slot: Slot) -> bool:
        """Give a thread that is done with its run the next one, without the detour through the event loop."""
        if not self._dispatcher.move_on(slot, self._blocking):
            return False
        if self._dispatcher.low:
            self._loop.call_soon_threadsafe(self._feeder.queue_low)
        return True

    def calling(self) -> Iterator[Call]:
        """Yield the callbacks that are being executed. One may come twice, by a slot that waits for another driver."""
        for slot in self._tasks:
            driver = slot.driver
            called = None if driver is None else driver.called
            if called is not None:
                yield called

    async def stop(self, grace: float) -> None:
        """Give running steps `grace` seconds to finish, cut off those that do not, and close the connections.

        The dispatcher has been stopped before: no slot moves on to another run.
        """
        tasks = dict(self._tasks)
        if tasks:
            await asyncio.wait(tasks.values(), timeout=grace)
        late = {slot: task for slot, task in tasks.items() if not task.done()}
        aborted = []
        for slot, task in late.items():
            log.warning(
                "run: step not finished in time, will be executed again (run %s, grace %.0f s)",
                slot.run_id,
                grace,
                extra={"run_id": slot.run_id},
            )
            blocking = self._connections.of_thread(slot.run_id)
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


def mostly_async(saga: Saga) -> bool:
    """Tell in which colour of slot a saga is begun: that of most of its callbacks."""
    callbacks = [one for step in saga.steps for one in step.callbacks if not isinstance(one, FixedSleep)]
    colours = [is_async(callback) for callback in callbacks]
    return 2 * sum(colours) >= len(colours)
