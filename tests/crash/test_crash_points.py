"""A process dies at each point of a run in turn, and another one takes the run to the end it should have."""

from __future__ import annotations

import signal
from typing import Any

import psycopg
import pytest

from scoop_outbox import Scoop
from tests.crash.ledger import assert_exactly_once, count, is_quiet
from tests.crash.points import ends, points
from tests.crash.processes import START, Fleet
from tests.waiting import until

POINTS = [
    ("nothing", "one:step:before"),
    ("nothing", "one:step:after"),
    ("nothing", "one:step:committed"),
    ("nothing", "two:step:after"),
    ("nothing", "two:step:committed"),
    ("nothing", "four:step:after"),
    ("nothing", "five:step:before"),
    ("nothing", "five:step:committed"),
    ("nothing", "three:step:before"),
    ("nothing", "three:step:after"),
    ("nothing", "three:step:committed"),
    ("inner", "four:compensation:before"),
    ("inner", "four:compensation:after"),
    ("inner", "four:compensation:committed"),
    ("inner", "two:child_failure_handler:after"),
    ("inner, handled", "two:child_failure_handler:after"),
    ("inner, handled", "two:child_failure_handler:committed"),
    ("outer", "five:compensation:after"),
    ("outer", "four:compensation:committed"),
    ("outer", "two:compensation:before"),
    ("outer", "two:compensation:after"),
    ("outer", "two:compensation:committed"),
    ("outer", "one:compensation:after"),
    ("outer", "one:compensation:committed"),
]


@pytest.mark.parametrize("fails,point", POINTS, ids=[f"{fails} fails, {point}" for fails, point in POINTS])
async def test_another_process_finishes_what_one_left_at(
    fails: str, point: str, database_url: str, effects: psycopg.Connection[Any], fleet: Fleet
) -> None:
    points.configure(database=database_url)
    async with Scoop("relay", database=database_url).running(worker=False):
        victim = fleet.worker("points:points", CRASH_AT=point)
        await points.launch("outer", {"fails": fails})
        await until(lambda: victim.ended, START)
        assert victim.wait(0) == -signal.SIGKILL, victim.log
        step, kind, when = point.split(":")
        await until(lambda: count(effects, "select count(*) from pg_locks where mode = 'RowExclusiveLock'") == 0)
        seen = count(effects, "select count(*) from effect where step = %s and kind = %s", step, kind)
        assert seen == (1 if when == "committed" else 0)

        async with points.running(relay=False):
            await until(lambda: is_quiet(effects, 1, "outer"))
    assert_exactly_once(effects)
    assert dict(effects.execute("select saga, state from scoop_outbox.run").fetchall()) == ends(fails)
