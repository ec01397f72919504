"""The worker: follows the mail of one service, and executes its runs.

A *feeder* reads which runs have mail that is due, a *dispatcher* says which of them start, and *slots* execute these.
A run that waits for children, a retry or the time of day holds no slot, no connection and no thread. Any number of
workers of a service run side by side: the row lock decides who executes a run, and they divide the mail among
themselves so that they seldom try the same one.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Mapping, Sequence

from scoop_outbox._log import get_logger
from scoop_outbox.core.plans.claim import Executor
from scoop_outbox.daemon.counters import WorkerCounters
from scoop_outbox.daemon.hints import ProcessHints
from scoop_outbox.daemon.worker.alerts import Alert, Alerts
from scoop_outbox.daemon.worker.cancellations import Cancellations
from scoop_outbox.daemon.worker.dispatcher import Dispatcher
from scoop_outbox.daemon.worker.executors import Executors
from scoop_outbox.daemon.worker.feeder import Feeder
from scoop_outbox.daemon.worker.interruptions import MOST, Interruptions
from scoop_outbox.daemon.worker.reports import Reports
from scoop_outbox.daemon.worker.roster import Roster
from scoop_outbox.daemon.worker.slots import Slots
from scoop_outbox.daemon.worker.slow_steps import SLOW_AFTER, SlowSteps
from scoop_outbox.daemon.worker.surroundings import Surroundings
from scoop_outbox.saga import Saga
from scoop_outbox.store.faults import DATABASE_ERRORS, words
from scoop_outbox.store.home import Home
from scoop_outbox.store.reconnecting import ReconnectingDriver

log = get_logger(__name__)

SLOTS = 16
_NEAR = 60.0
"""Seconds up to which the feeder is woken for mail that is due later: it looks more often than that."""


class Worker:
    """Executes the runs of one service: makes the parts that do, and keeps them going.

    It owns the feeder's connection. It is on the event loop alone, and needs no lock.

    Args:
        home: where the runs are.
        service: whose.
        sagas: its sagas by name.
        hints: tells of mail.
        slots: how many runs are executed at the same time.
        via_broker: whether a broker carries the messages that are launched.
        max_interruptions: a run that is interrupted so often in a row is parked.
        slow_step_after: seconds after which it is said that a step is slow.
        alerts: called for each run that gets stuck.

    Attributes:
        alerts: who is told of runs that get stuck.
        reports: what has become of runs, counted and told.
        interruptions: runs that could not be executed.
        slow_steps: those that are executed for long.
    """

    def __init__(
        self,
        home: Home,
        service: str,
        sagas: Mapping[str, Saga],
        hints: ProcessHints,
        slots: int = SLOTS,
        *,
        via_broker: bool = False,
        max_interruptions: int = MOST,
        slow_step_after: float = SLOW_AFTER,
        alerts: Sequence[Alert] = (),
    ) -> None:
        """Execute nothing yet."""
        sagas = dict(sagas)
        self._roster = Roster(home.process_id, service, sagas)
        self.alerts = Alerts(alerts)
        self.reports = Reports(service, sagas, hints, self._roster.seconds_since, self.alerts, via_broker=via_broker)
        self.interruptions = Interruptions(service, sagas, self.reports, max_interruptions)
        self._dispatcher = dispatcher = Dispatcher(slots, sagas, self.interruptions)
        # Slots are made later: they tell the feeder that one is free, and it asks for what they call.
        cancellations = Cancellations(lambda: self._slots.calling())  # noqa: PLW0108 - there are none yet
        surroundings = Surroundings(service, sagas, self._roster, home, hints)
        self._feeder = Feeder(service, sagas, self._roster, surroundings, self.interruptions, dispatcher, cancellations)
        executor = Executor(
            service,
            sagas,
            home.worker_id,
            hints,
            coroutines=True,
            chance=random.random,
            failures=home.failures,
            draining=lambda: dispatcher.stopping,
            via_broker=via_broker,
            across=lambda: home.cooperation.active,
            reports=self.reports,
        )
        executors = Executors(executor, self._roster)
        self._slots = Slots(home, service, sagas, dispatcher, self._feeder, self.interruptions, executors)
        self.slow_steps = SlowSteps(self.reports, self._slots.calling, slow_step_after)
        self._database = ReconnectingDriver(
            home.url, home.connect_to_queues, f"worker of {service}", log, self._feeder.introduce, service=service
        )
        self._loop = asyncio.get_running_loop()
        hints.on_mail(service, self._offer, self._feeder.wake)

    @property
    def busy(self) -> int:
        """How many runs are being executed."""
        return self._dispatcher.busy

    @property
    def counters(self) -> WorkerCounters:
        """What this worker has done since it started."""
        return self._dispatcher.counters

    @property
    def problem(self) -> str | None:
        """What keeps runs from being found just now; None when all is well."""
        return self._database.problem

    async def run(self) -> None:
        """Execute runs until stopped, whatever happens to the database meanwhile."""
        self.slow_steps.start()
        while not self._dispatcher.stopping:
            try:
                await self._feeder.feed(await self._database.connect())
                self._database.answered()
            except DATABASE_ERRORS as error:
                await self._feeder.hold_out(await self._database.failed(error))
            else:
                await self._feeder.rest(after_work=self._slots.fill())
        await self._leave()

    async def stop(self, grace: float) -> None:
        """Claim nothing more, and give running steps `grace` seconds to finish.

        A step that takes longer is cancelled (an `async def`) or loses its connection (a `def`): its transaction is
        undone, and any other worker executes it again.
        """
        self._dispatcher.stop()
        self._feeder.stop()
        await self._slots.stop(grace)

    async def _leave(self) -> None:
        """Let others take over at once what this process would have executed."""
        self.slow_steps.stop()
        if (driver := self._database.driver) is not None:
            try:
                await self._feeder.leave(driver)
            except DATABASE_ERRORS as error:
                log.info("worker: departure not announced, counts as alive for a moment (%s)", words(error))
        await self._database.close()
        await self.alerts.close()

    def _offer(self, run_id: uuid.UUID, saga: str, version: str, delay: float) -> bool:
        """Take mail that was posted in this process; answer whether this worker sees to it."""
        if not self._roster.is_ours(saga, version, run_id):
            return False
        if delay > _NEAR:
            return True  # the feeder's looks find it: many runs may sleep for days
        if delay > 0:
            self._loop.call_later(delay, self._feeder.wake)
            return True
        return self._slots.offer(run_id, saga)
