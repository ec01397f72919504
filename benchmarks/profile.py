"""Where the processor time of a step goes, in the process that executes it."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from benchmarks.control import Control
from benchmarks.sagas import SERVICE, STEPS, build
from benchmarks.server import Bench
from benchmarks.table import Table
from benchmarks.work import prepare, release, until_ended, warm
from scoop_outbox.core.plans.claim import Executor
from scoop_outbox.core.plans.execute import execute
from scoop_outbox.core.rows import CLOCK
from scoop_outbox.core.statement import (
    BEGIN,
    COMMIT_AND_BEGIN,
    RELEASE_SAVEPOINT,
    ROLLBACK,
    SAVEPOINT,
    Batch,
    Call,
    Plan,
    Statement,
    ask,
    statement,
)
from scoop_outbox.scope import Scope
from scoop_outbox.store.callbacks import returned, scope_arguments
from scoop_outbox.store.failure_cache import KnownFailures
from scoop_outbox.store.home import Home
from scoop_outbox.store.schema import DEFAULT_SCHEMA

_NOW = datetime.now(UTC)
_RUN = uuid4()
_NO_CHILDREN = (False, *[None] * 10)
_BEGINS: tuple[Any, ...] = (_RUN, uuid4(), SERVICE, "steps-async", [_RUN], None, "running", None, None, *[0] * 5)
_VERSION: tuple[Any, ...] = ("", False)
_TIMES: tuple[Any, ...] = (None, None, None, None, None, None, None, None, _NOW, None)
_MESSAGE: tuple[Any, ...] = (uuid4(), "steps.async", None, b"{}", "application/json", {}, _NOW)
_BETWEEN = [None] * (CLOCK - len(_BEGINS) - len(_VERSION) - len(_TIMES))
_CLAIMED = (*_BEGINS, *_BETWEEN, *_VERSION, *_TIMES, _NOW, [1], None, *_MESSAGE)
_ANSWERS = {"claim_run": [_CLAIMED], "claim_again": [(_NOW, False)], "read_children": [_NO_CHILDREN]}


async def measure(bench: Bench) -> list[Table]:
    """Take a step apart: the rules alone, a batch alone, and everything together."""
    count, alone = bench.size(1500, 300), bench.size(2000, 2000)
    spent: dict[tuple[str, str], list[float]] = defaultdict(list)
    async with bench.database() as control:
        for _ in range(bench.runs):
            for colour in ("async", "def"):
                for slots in (1, 16):
                    whole = await _whole(control, f"steps.{colour}", count if slots > 1 else count // 5, slots)
                    spent[colour, f"everything, {slots} slots"].append(whole)
            spent["async", "rules and plans"].append(_rules(bench.size(3000, 3000)))
            spent["def", "rules and plans"] = spent["async", "rules and plans"]
            for name, make in (("an empty batch", _empty), ("a step's batch", _step)):
                spent["async", name].append(await _batch(control.url, make, alone))
                spent["def", name].append(await asyncio.to_thread(_batch_blocking, control.url, make, alone))
    names = ("rules and plans", "an empty batch", "a step's batch", "everything, 1 slots", "everything, 16 slots")
    table = Table("(a) processor time of the worker's process, in microseconds a step", ("", *names))
    for colour in ("async", "def"):
        table.add(colour, *(spent[colour, name] for name in names))
    table.notes.append("A run of three steps sends four batches: a claim, and one a step. A batch costs what it sends,")
    table.notes.append("and waiting for its answer once. In `everything` are the tasks, the feeder and the slots, too.")
    return [table]


def _empty(_: int, __: UUID) -> Batch:
    return (SAVEPOINT,)


def _step(seq: int, run: UUID) -> Batch:
    """Send what a step that goes straight on sends, and the savepoint that the claim before it has made."""
    advance = statement(
        "advance_run", run=run, seq=seq, step="first", next_step="second", iteration=0, attempt=0, state="running",
        context=None, result=None, ended=False, started_at=_NOW, worker="benchmark", version="", body_seq=None,
        yields=True, deadline=None, own_deadline=None,
    )  # fmt: skip
    again = statement("claim_again", run=_RUN, seq=1, state="running", saga="steps-async")
    return (SAVEPOINT, RELEASE_SAVEPOINT, advance, COMMIT_AND_BEGIN, again, SAVEPOINT)


async def _whole(control: Control, topic: str, count: int, slots: int) -> float:
    await prepare(control, topic, count)
    async with warm(control, slots):
        started = time.process_time()
        await release(control)
        await until_ended(control)
        return _micro(time.process_time() - started, count * STEPS)


def _rules(count: int) -> float:
    """Drive the plan of a run with rows that are made up, and call nobody."""
    app = build(None)
    known = KnownFailures()
    executor = Executor(SERVICE, app.sagas, "benchmark", _Nobody(), coroutines=True, chance=lambda: 0.5, failures=known)
    started = time.process_time()
    for _ in range(count):
        _drive(execute(_RUN, executor))
    return _micro(time.process_time() - started, count * STEPS)


def _drive(plan: Plan[Any]) -> None:
    answer: Any = None
    try:
        while True:
            asked = plan.send(answer)
            if isinstance(asked, Call):
                answer = returned(asked, Scope(**scope_arguments(asked)), None)
            else:
                answer = [_ANSWERS.get(one.name, []) for one in asked]
    except StopIteration:
        return


async def _batch(url: str, make: Callable[[int, UUID], Batch], count: int) -> float:
    driver = await Home(url, DEFAULT_SCHEMA, "benchmark").connect_for_steps()
    run = uuid4()
    await driver.run(_asking(BEGIN))
    started = time.process_time()
    for seq in range(count):
        await driver.run(_asking(*make(seq, run)))
    spent = time.process_time() - started
    await driver.run(_asking(ROLLBACK))
    await driver.close()
    return _micro(spent, count)


def _batch_blocking(url: str, make: Callable[[int, UUID], Batch], count: int) -> float:
    driver = Home(url, DEFAULT_SCHEMA, "benchmark").connect_for_steps_blocking()
    run = uuid4()
    driver.run(_asking(BEGIN))
    started = time.thread_time()
    for seq in range(count):
        driver.run(_asking(*make(seq, run)))
    spent = time.thread_time() - started
    driver.run(_asking(ROLLBACK))
    driver.close()
    return _micro(spent, count)


def _asking(*statements: Statement) -> Plan[Any]:
    return (yield from ask(*statements))


def _micro(seconds: float, count: int) -> float:
    return seconds / count * 1e6


class _Nobody:
    """Hints that nobody takes."""

    outbox: Callable[[], None] = staticmethod(lambda: None)

    def ended(self, message_id: Any) -> None:
        """Tell nobody."""

    def mail(self, service: str, saga: str, version: str, run_id: Any, delay: float) -> None:
        """Tell nobody."""
