"""The ceiling: a program without an engine that writes the same rows, in as many transactions.

It knows beforehand which runs there are and what is to be written, and locks and reads nothing. Each step is one
transaction, in one of two ways. *Pipelined*: begin, insert into step, update of run, commit in one psycopg pipeline.
*One statement*: the same as one statement in autocommit, which spares psycopg most of its own work and is the most
that a Python program gets out of this database. The last step of a run deletes its mail too.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import psycopg

from benchmarks.control import SEARCH_PATH, Control
from benchmarks.sagas import SERVICE, STEPS
from benchmarks.work import Done, done_since, prepare, release

INSERT_STEP = b"""
insert into step (run_id, seq, step, kind, iteration, attempt, state, started_at, ended_at, worker)
values (%(run)s, %(seq)s, %(step)s, 'step', 0, 0, 'committed', clock_timestamp(), statement_timestamp(), %(worker)s)
"""
UPDATE_RUN = b"""
update run
set state = %(state)s, step = %(step)s, next_step = %(next_step)s, seq = %(seq)s, instance = %(seq)s, iteration = 0,
    attempt = 0, handled = 0, not_before = null, context = null, result = null,
    ended_at = case when %(ended)s then statement_timestamp() end
where id = %(run)s
"""
DELETE_MAIL = b"delete from mailbox where id = %(mail)s"
ALL_IN_ONE = b"with recorded as (" + INSERT_STEP + b"), dropped as (" + DELETE_MAIL + b" and %(ended)s)" + UPDATE_RUN


@dataclass(frozen=True, slots=True)
class Work:
    """A run, and the mail that tells of it."""

    run: UUID
    mail: int

    def steps(self, worker: str) -> list[dict[str, Any]]:
        return [
            {
                "run": self.run,
                "mail": self.mail,
                "seq": seq,
                "step": f"step {seq - 1}",
                "next_step": f"step {seq}" if seq < STEPS else None,
                "state": "running" if seq < STEPS else "committed",
                "ended": seq == STEPS,
                "worker": worker,
            }
            for seq in range(1, STEPS + 1)
        ]


async def bare(control: Control, topic: str, count: int, slots: int, *, coroutines: bool, pipelined: bool) -> Done:
    """Measure as many connections as the engine would use, in this process."""
    await prepare(control, topic, count)
    first = await _mail(control)
    await release(control)
    ahead = {work.run for work in first}
    rest = [work for work in await _mail(control) if work.run not in ahead]
    if coroutines:
        return await _in_loop(control, first, rest, slots, pipelined=pipelined)
    return await _in_threads(control, first, rest, slots, pipelined=pipelined)


async def _mail(control: Control) -> list[Work]:
    rows = await control.all(
        "select run_id, id from mailbox where service = %(service)s order by id", {"service": SERVICE}
    )
    return [Work(run, mail) for run, mail in rows]


async def _in_loop(control: Control, first: list[Work], rest: list[Work], slots: int, *, pipelined: bool) -> Done:
    async with AsyncExitStack() as stack:
        connections = []
        for _ in range(slots):
            connection = await psycopg.AsyncConnection.connect(control.url, autocommit=True, options=SEARCH_PATH)
            connections.append(await stack.enter_async_context(connection))
        await asyncio.gather(*map(_slot, connections, _dealt(first, slots), [pipelined] * slots))
        started = await control.one("select clock_timestamp()")
        await asyncio.gather(*map(_slot, connections, [rest] * slots, [pipelined] * slots))
        return await done_since(control, started)


async def _slot(connection: psycopg.AsyncConnection[Any], waiting: list[Work], pipelined: bool) -> None:
    worker = str(uuid4())
    while waiting:
        for step in waiting.pop().steps(worker):
            if not pipelined:
                await connection.execute(ALL_IN_ONE, step, prepare=True)
                continue
            async with connection.pipeline():
                await connection.execute(b"begin", prepare=True)
                await connection.execute(INSERT_STEP, step, prepare=True)
                await connection.execute(UPDATE_RUN, step, prepare=True)
                if step["ended"]:
                    await connection.execute(DELETE_MAIL, step, prepare=True)
                await connection.execute(b"commit", prepare=True)


async def _in_threads(control: Control, first: list[Work], rest: list[Work], slots: int, *, pipelined: bool) -> Done:
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(slots))
        connections = [
            stack.enter_context(psycopg.connect(control.url, autocommit=True, options=SEARCH_PATH))
            for _ in range(slots)
        ]
        await _threads(threads, connections, _dealt(first, slots), pipelined=pipelined)
        started = await control.one("select clock_timestamp()")
        await _threads(threads, connections, [rest] * slots, pipelined=pipelined)
        return await done_since(control, started)


async def _threads(
    threads: ThreadPoolExecutor,
    connections: list[psycopg.Connection[Any]],
    work: list[list[Work]],
    *,
    pipelined: bool,
) -> None:
    loop = asyncio.get_running_loop()
    each = zip(connections, work, strict=True)
    await asyncio.gather(*(loop.run_in_executor(threads, _thread, *one, pipelined) for one in each))


def _thread(connection: psycopg.Connection[Any], waiting: list[Work], pipelined: bool) -> None:
    worker = str(uuid4())
    while True:
        try:
            work = waiting.pop()
        except IndexError:  # asking first would not do: other threads take work too
            return
        for step in work.steps(worker):
            if not pipelined:
                connection.execute(ALL_IN_ONE, step, prepare=True)
                continue
            with connection.pipeline():
                connection.execute(b"begin", prepare=True)
                connection.execute(INSERT_STEP, step, prepare=True)
                connection.execute(UPDATE_RUN, step, prepare=True)
                if step["ended"]:
                    connection.execute(DELETE_MAIL, step, prepare=True)
                connection.execute(b"commit", prepare=True)


def _dealt(works: list[Work], slots: int) -> list[list[Work]]:
    """Deal the warm-up, so that every connection gets its share."""
    return [works[slot::slots] for slot in range(slots)]
