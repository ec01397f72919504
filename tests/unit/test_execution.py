"""What a worker makes of a run that it could not execute: its mail lies where it did, however old."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from scoop_outbox import Scoop
from scoop_outbox.app import service_of
from scoop_outbox.core.plans.execute import Execution
from scoop_outbox.daemon.signals import Signals
from scoop_outbox.daemon.worker.slot import Slot
from scoop_outbox.daemon.worker.worker import Worker
from scoop_outbox.message import uuid7
from scoop_outbox.store.callbacks import Interrupted


def worker_of(steps: list[Execution | BaseException]) -> Worker:
    """A worker of one saga, whose runs get so far, one drive after the other."""
    app = Scoop("shop", database="postgresql://nobody@127.0.0.1:1/none")
    app.saga("a", on="orders").add_step("only", lambda scope, message: None)

    class Driven(Worker):
        async def _drive(self, slot: Slot, *, coroutines: bool) -> Execution:
            step = steps.pop(0)
            if isinstance(step, BaseException):
                raise step
            return step

    worker = Driven(service_of(app).home, "shop", app.sagas, Signals(service_of(app).home), 1)
    worker._mail.lookback.look()
    worker._mail.lookback.looked(None)
    return worker


async def executed(worker: Worker) -> timedelta:
    """Execute a run, and return how far back its worker looks next."""
    run = uuid7()
    assert worker._start(run, "a")
    await worker._tasks[run]
    assert not worker._tasks
    return worker._mail.lookback.look()


FAILURES = [Interrupted("the database went away"), OSError("no route"), asyncio.CancelledError(), ValueError("a bug")]


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("before", [[], [Execution.OTHER_COLOUR]])
async def test_a_run_that_could_not_be_executed_is_looked_for_from_the_beginning(
    before: list[Execution | BaseException], failure: BaseException
) -> None:
    assert await executed(worker_of([*before, failure])) > timedelta(days=365)


@pytest.mark.parametrize("end", [[Execution.DONE], [Execution.NOTHING], [Execution.OTHER_COLOUR, Execution.DONE]])
async def test_a_run_that_was_executed_is_no_reason_to_look_back(end: list[Execution | BaseException]) -> None:
    assert await executed(worker_of(end)) < timedelta(minutes=1)
