"""A request to undo outlives its asker and every process that executes what it is about."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from scoop_outbox import Answer, Scoop
from tests.crash.killing import kill_one, two_of_each, until_a_step_is_done
from tests.crash.ledger import UNENDED, assert_exactly_once, count
from tests.crash.processes import Fleet
from tests.waiting import until_blocking

ORDERS = 40
KILLS = 6
WAITING = "select count(*) from scoop_outbox.request where kind = 'rollback' and outcome is null"


@pytest.mark.timeout(240)
def test_requests_that_wait_are_carried_out_once_whoever_is_killed(
    database_url: str, effects: psycopg.Connection[Any], fleet: Fleet
) -> None:
    running = two_of_each(fleet)
    launcher = Scoop("launcher", database=database_url)
    for number in range(1, ORDERS + 1):
        handle = launcher.launch_sync("order.placed", {"n": number}, key=str(number % 8))
        until_blocking(lambda asked=handle.id: is_known(effects, asked))  # type: ignore[misc]
        answered = launcher.rollback_sync(handle.id, reason="all of it", if_active="wait")
        assert answered.answer in (Answer.ACCEPTED, Answer.ALREADY_ROLLED_BACK)
    launcher.close_sync()
    for _ in range(KILLS):
        until_a_step_is_done(effects, is_quiet)
        kill_one(running, fleet)

    until_blocking(lambda: is_quiet(effects), 150)
    assert_exactly_once(effects)
    states = effects.execute("select saga, state, count(*) from scoop_outbox.run group by 1, 2 order by 1").fetchall()
    assert states == [(saga, "rolled_back", ORDERS) for saga in ("bill", "book", "order", "reserve")]


def is_known(connection: psycopg.Connection[Any], message_id: object) -> bool:
    return count(connection, "select count(*) from scoop_outbox.run where message_id = %s", message_id) == 1


def is_quiet(connection: psycopg.Connection[Any]) -> bool:
    left = "select count(*) from scoop_outbox.mailbox"
    return not any(count(connection, query) for query in (WAITING, UNENDED, left))
