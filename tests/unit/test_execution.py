"""What a slot makes of a run that it could not execute: its mail lies where it did, however old."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from scoop_outbox import Scoop
from scoop_outbox.app import service_of
from scoop_outbox.core.plans.execute import Execution
from scoop_outbox.daemon.hints import ProcessHints
from scoop_outbox.daemon.worker.dispatcher import Slot
from scoop_outbox.daemon.worker.slots import Slots
from scoop_outbox.daemon.worker.worker import Worker
from scoop_outbox.message import uuid7
from scoop_outbox.store.callbacks import Interrupted


def worker_of(outcomes: list[Execution | BaseException], monkeypatch: pytest.MonkeyPatch) -> Worker:
    """A worker of one saga, whose runs get so far, one drive after the other."""
    app = Scoop("shop", database="postgresql://nobody@127.0.0.1:1/none")
    app.saga("a", on="orders").add_step("only", lambda scope, message: None)

    async def drive(_: Slots, __: Slot, *, coroutines: bool) -> Execution:
        outcome = outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(Slots, "_drive", drive)
    worker = Worker(service_of(app).home, "shop", app.sagas, ProcessHints(service_of(app).home), 1)
    worker._dispatcher.replace([], set())
    lookback = worker._feeder._mail.lookback
    lookback.look()
    lookback.looked(None)
    return worker


async def executed(worker: Worker) -> timedelta:
    """Execute a run, and return how far back its worker looks next."""
    assert worker._offer(uuid7(), "a", "", 0.0)
    await asyncio.gather(*worker._slots._tasks.values())
    assert not worker.busy
    assert not worker._slots._tasks
    return worker._feeder._mail.lookback.look()


FAILURES = [Interrupted("the database went away"), OSError("no route"), asyncio.CancelledError(), ValueError("a bug")]


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("before", [[], [Execution.OTHER_COLOUR]])
async def test_a_run_that_could_not_be_executed_is_looked_for_from_the_beginning(
    before: list[Execution | BaseException], failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await executed(worker_of([*before, failure], monkeypatch)) > timedelta(days=365)


@pytest.mark.parametrize("end", [[Execution.DONE], [Execution.NOTHING], [Execution.OTHER_COLOUR, Execution.DONE]])
async def test_a_run_that_was_executed_is_no_reason_to_look_back(
    end: list[Execution | BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await executed(worker_of(end, monkeypatch)) < timedelta(minutes=1)
