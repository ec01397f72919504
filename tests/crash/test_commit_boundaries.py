"""A process dies at each commit in turn by which a run goes on, and another one takes its hierarchy to its end."""

from __future__ import annotations

import random
import signal
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest

from scoop_outbox import Answer, Handle, Scoop
from tests.crash.boundaries import VARIABLE, boundaries
from tests.crash.ledger import assert_exactly_once, count, is_quiet
from tests.crash.processes import START, Fleet
from tests.scenarios.conftest import MATRIX
from tests.waiting import until

HOUR = 3600.0
SOME = 3
"""How many commits of a hierarchy are tried outside the matrix."""
Prepare = Callable[[psycopg.Connection[Any]], Awaitable[None]]


async def launch(*, doze: float = 0.05, **wanted: bool) -> Handle:
    return await boundaries.launch("root", {"doze": doze, "late": False, "fails": False, "sticks": False, **wanted})


async def is_launched(_: psycopg.Connection[Any]) -> None:
    await launch()


async def is_cancelled(effects: psycopg.Connection[Any]) -> None:
    async with boundaries.running(relay=False):
        handle = await launch(doze=HOUR)
        await until(lambda: sleeps(effects), START)
    assert await boundaries.cancel(handle.id) is Answer.ACCEPTED


async def will_be_late(_: psycopg.Connection[Any]) -> None:
    await launch(doze=HOUR, late=True)


async def is_to_be_undone(effects: psycopg.Connection[Any]) -> None:
    async with boundaries.running(relay=False):
        handle = await launch()
        await handle.wait(START)
    assert (await boundaries.rollback(handle.id)).answer is Answer.ACCEPTED


async def is_mended(effects: psycopg.Connection[Any]) -> None:
    async with boundaries.running(relay=False):
        await launch(fails=True, sticks=True)
        await until(lambda: stuck(effects, "root"), START)
    effects.execute("create table mended as select 1")
    (child,) = stuck(effects, "inner")
    assert await boundaries.retry(child) is Answer.ACCEPTED


def sleeps(effects: psycopg.Connection[Any]) -> bool:
    return count(effects, "select count(*) from scoop_outbox.run where not_before > now() + interval '1 minute'") == 1


def stuck(effects: psycopg.Connection[Any], saga: str) -> list[uuid.UUID]:
    rows = effects.execute("select id from scoop_outbox.run where saga = %s and state = 'rollback_failed'", [saga])
    return [row[0] for row in rows]


HIERARCHIES: dict[str, tuple[Prepare, int, str]] = {
    "it is executed": (is_launched, 10, "committed"),
    "it is cancelled while it sleeps": (is_cancelled, 10, "rolled_back"),
    "it is late": (will_be_late, 17, "rolled_back"),
    "it is undone on request": (is_to_be_undone, 9, "rolled_back"),
    "it is healed": (is_mended, 5, "rolled_back"),
}
"""How each comes to where the process takes over, at how many commits its runs go on from there, and how it ends."""


@pytest.mark.timeout(400)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("hierarchy", HIERARCHIES)
async def test_another_process_takes_a_hierarchy_to_its_end(
    hierarchy: str, when: str, database_url: str, effects: psycopg.Connection[Any], fleet: Fleet
) -> None:
    prepare, commits, end = HIERARCHIES[hierarchy]
    boundaries.configure(database=database_url)
    numbers = range(1, commits + 1) if MATRIX else random.sample(range(1, commits + 1), SOME)
    launched = 0
    async with Scoop("relay", database=database_url).running(worker=False):
        for number in (*numbers, commits + 1):
            launched += 1
            effects.execute("drop table if exists mended")
            await prepare(effects)
            victim = fleet.worker("boundaries:boundaries", **{VARIABLE: f"{number}:{when}"})
            await until(lambda: victim.ended or is_quiet(effects, launched, "root"), START)  # noqa: B023
            if victim.ended:
                assert victim.wait(0) == -signal.SIGKILL, victim.log
                async with boundaries.running(relay=False):
                    await until(lambda: is_quiet(effects, launched, "root"), START)  # noqa: B023
            else:
                assert number > commits, f"there are {number - 1} commits"
                victim.kill()
            assert_exactly_once(effects)
            states = effects.execute("select distinct state from scoop_outbox.run").fetchall()
            assert states == [(end,)]
    assert number > commits
