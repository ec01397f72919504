"""What somebody outside has done is done once, and undone once, whoever is killed."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg
import pytest

from scoop_outbox import Answer, Runs
from tests.crash.human import human
from tests.crash.killing import kill_one
from tests.crash.ledger import UNENDED, count
from tests.crash.processes import Fleet
from tests.waiting import until_blocking

WORK = 30
KILLS = 5
STATES = "select saga, state, count(*) from scoop_outbox.run group by 1, 2 order by 1, 2"
WAITING = "select message_id from scoop_outbox.run where saga = 'approval' and state = 'running' and seq = 0"


@pytest.mark.timeout(240)
def test_q64_work_is_done_and_undone_once_whoever_is_killed(
    database_url: str, effects: psycopg.Connection[Any], fleet: Fleet
) -> None:
    running = [fleet.worker("human:human", "--relay") for _ in range(2)]
    for process in running:
        process.wait_until_ready()
    human.configure(database=database_url)
    for number in range(1, WORK + 1):
        human.launch_sync("expense", {"n": number})
    human.close_sync()

    accepted: set[uuid.UUID] = set()
    with Runs(database_url) as runs:
        while len(accepted) < WORK:
            until_blocking(lambda: outstanding(effects, accepted), 60)
            for work in outstanding(effects, accepted):
                answers = [runs.complete(work, "approval", result="yes", source="me") for _ in range(2)]
                assert answers == [Answer.ACCEPTED, Answer.ALREADY_REQUESTED]
                accepted.add(work)
                if len(accepted) % (WORK // KILLS) == 0:
                    kill_one(running, fleet)
    until_blocking(lambda: count(effects, UNENDED) == 0 and count(effects, "select count(*) from effect") >= WORK, 150)

    refused = WORK // 3
    assert effects.execute(STATES).fetchall() == [
        ("approval", "committed", WORK - refused),
        ("approval", "rolled_back", refused),
        ("expense", "committed", WORK - refused),
        ("expense", "rolled_back", refused),
        ("withdrawal", "committed", refused),
    ]
    happened = effects.execute(
        "select step, kind, count(*), count(distinct run_id) from effect group by 1, 2"
    ).fetchall()
    assert sorted(happened) == [
        ("asks", "compensation", refused, refused),
        ("asks", "step", WORK, WORK),
        ("pays", "step", WORK - refused, WORK - refused),
        ("withdraws", "step", refused, refused),
    ]


def outstanding(connection: psycopg.Connection[Any], done: set[uuid.UUID]) -> list[uuid.UUID]:
    """The work that waits for somebody."""
    return [row[0] for row in connection.execute(WAITING).fetchall() if row[0] not in done]
