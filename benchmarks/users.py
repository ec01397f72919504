"""A service as users write it: each step writes a row of its own, and messages are launched one by one.

`python -m benchmarks.users TOPIC COUNT AT_ONCE` launches, and prints as JSON when it began, its processor time and, if
it is one at a time, how long each took: it waits for the end of each hierarchy before the next one.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from scoop_outbox import AsyncScope, BlockingScope, Message, Scoop

SERVICE = "benchmark"
TABLE = (
    "create table if not exists public.entry (id bigint generated always as identity primary key, run uuid, name text)"
)
WAY = "SCOOP_OUTBOX_BENCHMARK_WAY"
"""Tells a process of its own how its steps are built."""
THREE, TREE, TREE_CHILD, HOP, HOP_CHILD = TOPICS = "three", "tree", "tree.child", "hop", "hop.child"
RUNS = {THREE: 1, TREE: 3, HOP: 2}
"""How many runs a message has, with those below it."""
ACCESSES = ("connection", "session")
COLOURS = ("async", "def")

INSERT = "insert into public.entry (run, name) values (%s, %s)"
_INSERT = sa.text("insert into public.entry (run, name) values (:run, :name)")
_PAUSES = (0.02, 0.06)
_PATIENCE = 120.0

Write = Callable[[Any, Message], Any]


async def _by_connection(scope: AsyncScope, message: Message) -> None:
    await scope.connection.execute(INSERT, [scope.run_id, scope.step])


async def _by_session(scope: AsyncScope, message: Message) -> None:
    await scope.session.execute(_INSERT, {"run": scope.run_id, "name": scope.step})


def _by_connection_blocking(scope: BlockingScope, message: Message) -> None:
    scope.connection.execute(INSERT, [scope.run_id, scope.step])


def _by_session_blocking(scope: BlockingScope, message: Message) -> None:
    scope.session.execute(_INSERT, {"run": scope.run_id, "name": scope.step})


_WRITES: dict[tuple[str, str], Write] = {
    ("connection", "async"): _by_connection,
    ("session", "async"): _by_session,
    ("connection", "def"): _by_connection_blocking,
    ("session", "def"): _by_session_blocking,
}


def _launching(write: Write, on: str, count: int, colour: str) -> Write:
    """Return a step that writes its row and launches messages."""

    async def launch(scope: AsyncScope, message: Message) -> None:
        await write(scope, message)
        for number in range(count):
            scope.launch(on, {"number": number})

    def launch_blocking(scope: BlockingScope, message: Message) -> None:
        write(scope, message)
        for number in range(count):
            scope.launch(on, {"number": number})

    return launch if colour == "async" else launch_blocking


def build(url: str | None, broker: str | None, access: str, colour: str) -> Scoop:
    """Declare the service, with steps of one colour that reach their row in one way."""
    app = Scoop(SERVICE, database=url, broker=broker, start="earliest")
    write = _WRITES[access, colour]
    for on, steps in (
        (THREE, (write, write, write)),
        (TREE, (_launching(write, TREE_CHILD, 2, colour), write, write)),
        (TREE_CHILD, (write, write)),
        (HOP, (_launching(write, HOP_CHILD, 1, colour), write)),
        (HOP_CHILD, (write,)),
    ):
        saga = app.saga(on, on=on)
        for number, step in enumerate(steps):
            saga.add_step(f"step {number}", step)
    return app


async def launch(app: Scoop, on: str, count: int, at_once: int) -> None:
    """Launch messages, so many at the same time, each in a transaction of its own."""
    numbers = iter(range(count))

    async def launcher() -> None:
        for number in numbers:
            await app.launch(on, {"number": number})

    await asyncio.gather(*(launcher() for _ in range(at_once)))


async def one_by_one(app: Scoop, on: str, count: int) -> list[float]:
    """Launch messages with pauses; return the milliseconds from before each launch until `wait` has returned."""
    took = []
    for number in range(count):
        await asyncio.sleep(random.uniform(*_PAUSES))
        started = time.perf_counter()
        handle = await app.launch(on, {"number": number})
        await handle.wait(_PATIENCE)
        took.append((time.perf_counter() - started) * 1000)
    return took


app = build(None, None, *os.environ.get(WAY, "connection async").split())
"""For processes of their own: `scoop-outbox worker benchmarks.users:app`; where, the environment says."""


async def _main(on: str, count: int, at_once: int) -> None:
    took: list[float] = []
    began, spent = time.monotonic(), time.process_time()
    if at_once > 1:
        await launch(app, on, count, at_once)
    else:
        took = await one_by_one(app, on, count)
    print(json.dumps({"began": began, "spent": time.process_time() - spent, "took": took}))
    await app.close()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
