"""A service whose process kills itself at a commit by which a run goes on: the variable BOUNDARY, `number:when`."""

from __future__ import annotations

import itertools
import os
import signal
from typing import Any

from scoop_outbox import AsyncScope, BlockingScope, Message, Retry, Scoop
from scoop_outbox.core.statement import COMMIT, COMMIT_AND_BEGIN, Batch
from scoop_outbox.store.pipeline import Pipeline
from tests.crash.flow import Refusal, note, note_blocking

VARIABLE = "BOUNDARY"
_COMMITS = {COMMIT.name, COMMIT_AND_BEGIN.name}
_GOES_ON = {"advance_run", "update_run"}

boundaries = Scoop("boundaries")
root = boundaries.saga("root", on="root")
inner = boundaries.saga("inner", on="inner")


@root.step(retry=Retry(attempts=2, backoff=0.01))
async def one(scope: AsyncScope, message: Message) -> None:
    if scope.attempt == 0:
        raise Refusal("the first attempt")
    await note(scope, "step")


@one.finally_
async def leave(scope: AsyncScope, message: Message) -> None:
    await note(scope, "finaliser")


async def nap(scope: AsyncScope, message: Message) -> float:
    await note(scope, "step")
    return 0.05


_nap = root.sleep("nap", nap)


@root.step
def two(scope: BlockingScope, message: Message) -> None:
    note_blocking(scope, "step")
    scope.launch("inner", message.payload)


@two.finally_
def leave_two(scope: BlockingScope, message: Message) -> None:
    note_blocking(scope, "finaliser")


@root.step
async def three(scope: AsyncScope, message: Message) -> None:
    if message.payload["fails"]:
        raise Refusal("the last step refuses")
    await note(scope, "step")


@inner.step
def four(scope: BlockingScope, message: Message) -> None:
    note_blocking(scope, "step")


def doze(scope: BlockingScope, message: Message) -> float:
    note_blocking(scope, "step")
    if message.payload["late"]:
        scope.set_deadline(timeout=0.3)
    return float(message.payload["doze"])


_doze = inner.sleep("doze", doze)


@inner.step
async def five(scope: AsyncScope, message: Message) -> None:
    await note(scope, "step")


async def _undo(scope: AsyncScope, message: Message, error: Exception) -> None:
    await note(scope, "compensation")


def _undo_blocking(scope: BlockingScope, message: Message, error: Exception) -> None:
    if scope.step == "four" and message.payload["sticks"]:
        asked = scope.connection.execute("select from mended")
        if asked.fetchone() is None:
            raise Refusal("it is not mended yet")
    note_blocking(scope, "compensation")


for _step in (one, _nap, three, five):
    _step.compensate(_undo)
for _blocking in (two, _doze):
    _blocking.compensate(_undo_blocking)
inner.get("four").compensate(_undo_blocking)  # type: ignore[union-attr]


def _kill_at(number: int, when: str) -> None:
    """Have this process die at the commit of this number by which a run goes on, `before` or `after` it."""
    passed, run = itertools.count(1), Pipeline.run

    def run_until(pipeline: Pipeline, batch: Batch) -> Any:
        names = {statement.name for statement in batch}
        last = bool(names & _COMMITS and names & _GOES_ON) and next(passed) == number
        if last and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        rows = yield from run(pipeline, batch)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return rows

    Pipeline.run = run_until  # type: ignore[assignment,method-assign]


if VARIABLE in os.environ:
    _number, _, _when = os.environ[VARIABLE].partition(":")
    _kill_at(int(_number), _when)
