"""Hierarchies that are cancelled, or late, while processes die: what has committed is undone once, or nothing is."""

from __future__ import annotations

import random
from typing import Any

import psycopg
import pytest

from scoop_outbox import Answer, Scoop
from tests.crash.killing import kill_one, two_of_each, until_a_step_is_done
from tests.crash.ledger import UNENDED, assert_exactly_once, count
from tests.crash.processes import Fleet
from tests.waiting import until_blocking

ORDERS = 60
KILLS = 8
ROOTS = "select count(*) from scoop_outbox.run where parent_run is null"


@pytest.mark.timeout(240)
def test_whoever_is_killed_a_hierarchy_that_gives_up_is_undone_once(
    database_url: str, effects: psycopg.Connection[Any], fleet: Fleet
) -> None:
    running = two_of_each(fleet)
    launcher = Scoop("launcher", database=database_url)
    launched = []
    for number in range(1, ORDERS + 1):
        within = random.uniform(0.05, 2.0) if number % 3 == 0 else None
        handle = launcher.launch_sync("order.placed", {"n": number}, key=str(number % 8), timeout=within)
        launched.append(handle.id)
    answers = set()
    for _ in range(KILLS):
        until_a_step_is_done(effects, is_quiet)
        answers |= {launcher.cancel_sync(one, reason="at random") for one in random.sample(launched, 5)}
        kill_one(running, fleet)
    launcher.close_sync()

    until_blocking(lambda: is_quiet(effects), 150)
    assert_exactly_once(effects)
    assert answers <= set(Answer)
    left = effects.execute(
        "select r.lineage[1] from scoop_outbox.run r join scoop_outbox.run root on root.id = r.lineage[1]"
        " where root.state <> r.state and root.state = 'rolled_back'"
    ).fetchall()
    assert left == [], "a hierarchy has been undone in part"


def is_quiet(connection: psycopg.Connection[Any]) -> bool:
    left = "select count(*) from scoop_outbox.mailbox", "select count(*) from scoop_outbox.outbox"
    return count(connection, ROOTS) == ORDERS and not any(count(connection, query) for query in (UNENDED, *left))
