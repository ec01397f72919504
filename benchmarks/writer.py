"""A process that writes as an application does: transactions with a row of its own and messages, at a steady pace.

`python -m benchmarks.writer DATABASE BROKER TOPIC ROWS PER_SECOND` writes until its standard input ends; then it prints
when each message was committed, by `time.monotonic`, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import uuid
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg

from benchmarks.brokers import KEYS, build, payload

_TABLE = b"create table if not exists written (id bigint generated always as identity primary key, number integer)"


class Writer:
    """A writer in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def stop(self) -> dict[str, float]:
        """Stop it, and return when each message was committed."""
        output, _ = await self._process.communicate(b"")
        lines = (line.split() for line in output.decode().splitlines()[1:])
        return {message: float(moment) for message, moment in lines}


@asynccontextmanager
async def writing(database: str, broker: str, topic: str, *, rows: int, per_second: int) -> AsyncIterator[Writer]:
    """Run a writer: so many rows in a transaction, so many transactions per second."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.writer", database, broker, topic, str(rows), str(per_second)),
        stdin=PIPE,
        stdout=PIPE,
    )
    assert process.stdout is not None
    try:
        await process.stdout.readline()  # it has begun
        yield Writer(process)
    finally:
        if process.returncode is None:
            await process.communicate(b"")


def _write(database: str, broker: str, topic: str, rows: int, per_second: int) -> None:
    stop = threading.Event()
    threading.Thread(target=_until_told, args=(stop,), daemon=True).start()
    app = build(database, broker)
    committed: list[tuple[uuid.UUID, float]] = []
    number = 0
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(_TABLE)
        print("writing", flush=True)
        due = time.monotonic()
        while not stop.is_set():
            with connection.transaction():
                connection.execute("insert into written (number) values (%s)", [number])
                handles = [
                    app.launch_sync(topic, payload(n), key=f"key-{n % KEYS}", session=connection)
                    for n in range(number, number + rows)
                ]
            now = time.monotonic()
            committed += [(handle.id, now) for handle in handles]
            number += rows
            due += 1 / per_second
            time.sleep(max(due - time.monotonic(), 0))
    for message, moment in committed:
        print(message, moment)


def _until_told(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


if __name__ == "__main__":
    _write(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
