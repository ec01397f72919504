"""The floor of what a user does: a program without an engine that writes the same rows, in as many transactions.

It knows beforehand what follows what, and locks and reads nothing. Each transaction is one psycopg pipeline of prepared
statements. A tree is ten transactions: launch, intake, the parent's first step, intake of both children, two steps of
each child, two more of the parent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import psycopg

from benchmarks.control import SEARCH_PATH, Control
from benchmarks.users import INSERT, SERVICE, THREE

_LAUNCH = (
    "insert into outbox (shard, message_id, topic, body, content_type, headers) "
    "values (0, %s, 'bare', '{\"number\":1}', 'application/json', '{}')"
)
_EXPECT = "insert into child (message_id, service, saga, run_id, seq, ordinal) values (%s, %s, 'child', %s, 1, %s)"
_PUBLISHED = "delete from outbox where message_id = %s and shard = 0 and seq >= 0"
_TAKE_IN = (
    "insert into message (id, topic, body, content_type, headers) "
    "values (%s, 'bare', '{\"number\":1}', 'application/json', '{}')"
)
_BEGIN_RUN = (
    "insert into run (id, message_id, service, saga, lineage, parent_run, next_step) "
    "values (%s, %s, %s, 'bare', %s, %s, 'step 0')"
)
_POST = "insert into mailbox (service, saga, run_id, due) values (%s, 'bare', %s, now())"
_STEP = (
    "insert into step (run_id, seq, step, kind, iteration, attempt, state, started_at, ended_at, worker) "
    "values (%s, %s, %s, 'step', 0, 0, 'committed', clock_timestamp(), statement_timestamp(), %s)"
)
_ADVANCE = (
    "update run set seq = %s, instance = %s, step = %s, next_step = %s, state = %s, "
    "ended_at = case when %s then statement_timestamp() end where id = %s"
)
_DROP_MAIL = "delete from mailbox where run_id = %s"
_TELL = "update child set open = false, state = 'committed', child_run = %s where message_id = %s"

Transaction = list[tuple[str, Sequence[Any]]]


def transactions(kind: str, worker: str) -> Iterator[Transaction]:
    """Return what a message has written, with all below it."""
    message, run = uuid4(), uuid4()
    yield [(_LAUNCH, [message])]
    yield _taken_in(message, run, [run], None)
    if kind == THREE:
        for seq in range(1, 4):
            yield _step(run, seq, worker, last=seq == 3)
        return
    children = [(uuid4(), uuid4()) for _ in range(2)]
    launched: Transaction = [(_LAUNCH, [child]) for child, _ in children]
    launched += [(_EXPECT, [child, SERVICE, run, number]) for number, (child, _) in enumerate(children)]
    yield [*_step(run, 1, worker), *launched, (_DROP_MAIL, [run])]
    yield [one for child, below in children for one in _taken_in(child, below, [run, below], run)]
    for child, below in children:
        yield _step(below, 1, worker)
        yield [*_step(below, 2, worker, last=True), (_TELL, [below, child]), (_POST, [SERVICE, run])]
    yield _step(run, 2, worker)
    yield _step(run, 3, worker, last=True)


def _taken_in(message: UUID, run: UUID, lineage: list[UUID], parent: UUID | None) -> Transaction:
    begun = (_BEGIN_RUN, [run, message, SERVICE, lineage, parent])
    return [(_PUBLISHED, [message]), (_TAKE_IN, [message]), begun, (_POST, [SERVICE, run])]


def _step(run: UUID, seq: int, worker: str, *, last: bool = False) -> Transaction:
    name = f"step {seq - 1}"
    state, following = ("committed", None) if last else ("running", f"step {seq}")
    written: Transaction = [
        (INSERT, [run, name]),
        (_STEP, [run, seq, name, worker]),
        (_ADVANCE, [seq, seq, name, following, state, last, run]),
    ]
    return [*written, (_DROP_MAIL, [run])] if last else written


Write = Callable[[str, int], Awaitable[None]]
"""Writes what so many messages of a kind have written."""


@asynccontextmanager
async def writing(control: Control, connections: int, colour: str) -> AsyncIterator[Write]:
    """Open connections of this process, and yield what writes on all of them at once."""
    if colour == "async":
        async with AsyncExitStack() as stack:
            opened = [
                await stack.enter_async_context(
                    await psycopg.AsyncConnection.connect(control.url, autocommit=True, options=SEARCH_PATH)
                )
                for _ in range(connections)
            ]

            async def write(kind: str, count: int) -> None:
                numbers = iter(range(count))
                await asyncio.gather(*(_write(connection, kind, numbers) for connection in opened))

            yield write
        return
    with ExitStack() as blocking:
        threads = blocking.enter_context(ThreadPoolExecutor(connections))
        lent = [
            blocking.enter_context(psycopg.connect(control.url, autocommit=True, options=SEARCH_PATH))
            for _ in range(connections)
        ]
        loop = asyncio.get_running_loop()

        async def write_blocking(kind: str, count: int) -> None:
            numbers = iter(range(count))
            await asyncio.gather(*(loop.run_in_executor(threads, _write_blocking, one, kind, numbers) for one in lent))

        yield write_blocking


async def _write(connection: psycopg.AsyncConnection[Any], kind: str, numbers: Iterator[int]) -> None:
    worker = str(uuid4())
    for _ in numbers:
        for transaction in transactions(kind, worker):
            async with connection.pipeline():
                await connection.execute(b"begin", prepare=True)
                for statement, values in transaction:
                    await connection.execute(statement.encode(), values, prepare=True)
                await connection.execute(b"commit", prepare=True)


def _write_blocking(connection: psycopg.Connection[Any], kind: str, numbers: Iterator[int]) -> None:
    worker = str(uuid4())
    for _ in numbers:  # an iterator over a range may be shared by threads
        for transaction in transactions(kind, worker):
            with connection.pipeline():
                connection.execute(b"begin", prepare=True)
                for statement, values in transaction:
                    connection.execute(statement.encode(), values, prepare=True)
                connection.execute(b"commit", prepare=True)
