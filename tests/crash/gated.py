"""A service whose steps wait until the test lets them go: behind advisory locks that the test holds."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import psycopg

from scoop_outbox import AsyncScope, BlockingScope, Message, Scoop
from tests.crash.flow import note, note_blocking
from tests.crash.ledger import count

gated = Scoop("crash gated")
hall = Scoop("crash hall")

_WAITING = "select count(*) from pg_locks where locktype = 'advisory' and objid = %s and not granted"


class Gate:
    """A closed gate; callbacks with its number in their payload wait in front of it.

    Args:
        connection: the test's, in autocommit; the gate opens when it is closed, at the latest.
        number: tells gates apart.
    """

    def __init__(self, connection: psycopg.Connection[Any], number: int) -> None:
        self._connection = connection
        self.number = number
        connection.execute("select pg_advisory_lock(%s)", (number,))

    @property
    def waiting(self) -> int:
        """How many callbacks wait."""
        return count(self._connection, _WAITING, self.number)

    def open(self) -> None:
        """Let all of them go on, and those that are still to come."""
        self._connection.execute("select pg_advisory_unlock(%s)", (self.number,))


async def _pass(scope: AsyncScope, message: Message) -> None:
    await scope.connection.execute("select pg_advisory_xact_lock_shared(%s)", (message.payload["gate"],))


def _pass_blocking(scope: BlockingScope, message: Message) -> None:
    scope.connection.execute("select pg_advisory_xact_lock_shared(%s)", (message.payload["gate"],))


coroutine = gated.saga("coroutine", on="gated.coroutine")


@coroutine.step
async def first_coroutine(scope: AsyncScope, message: Message) -> None:
    await note(scope, "step")
    await _pass(scope, message)


@coroutine.step
async def second_coroutine(scope: AsyncScope, message: Message) -> None:
    await note(scope, "step")


blocking = gated.saga("blocking", on="gated.blocking")


@blocking.step
def first_blocking(scope: BlockingScope, message: Message) -> None:
    note_blocking(scope, "step")
    _pass_blocking(scope, message)


@blocking.step
def second_blocking(scope: BlockingScope, message: Message) -> None:
    note_blocking(scope, "step")


# Neither heeds the database: only the process itself can end them.
asleep = gated.saga("asleep", on="gated.asleep")
never = threading.Event()


@asleep.step
async def sleep(scope: AsyncScope, message: Message) -> None:
    await note(scope, "step")
    if message.payload["asleep"]:
        await asyncio.Event().wait()


asleep_blocking = gated.saga("asleep blocking", on="gated.asleep")


@asleep_blocking.step
def sleep_blocking(scope: BlockingScope, message: Message) -> None:
    note_blocking(scope, "step")
    if message.payload["asleep"]:
        never.wait()


relay_race = gated.saga("relay race", on="gated.race")
LAPS = 4


def _run_lap(scope: BlockingScope, message: Message) -> None:
    note_blocking(scope, "step")
    scope.launch("hall.passed", {"gate": message.payload["gates"][int(scope.step.removeprefix("lap "))]})


for lap in range(LAPS):
    relay_race.add_step(f"lap {lap}", _run_lap)


passage = hall.saga("passage", on="hall.passed")


@passage.step
async def go_through(scope: AsyncScope, message: Message) -> None:
    await note(scope, "step")
    await _pass(scope, message)
