"""A message whose step kills each process that executes it: it is found out, it waits, and in the end it is parked."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.crash import poison
from tests.crash.ledger import count
from tests.crash.processes import Fleet
from tests.waiting import until_blocking

MOST = 3


@pytest.mark.parametrize("workers", [1, 2])
def test_q65_a_step_that_kills_its_process_is_parked_and_the_service_lives(
    database_url: str, effects: psycopg.Connection[Any], fleet: Fleet, workers: int
) -> None:
    poison.app.configure(database=database_url)
    poison.app.announce_sync()
    relay = fleet.relay()
    relay.wait_until_ready()

    def start() -> Any:
        return fleet.worker("poison:app", "--max-interruptions", str(MOST))

    running = [start() for _ in range(workers)]
    poison.app.launch_sync("poison", {})
    deaths = 0

    def is_parked() -> bool:
        # As whoever supervises processes does.
        nonlocal deaths
        for index, process in enumerate(running):
            if process.ended:
                deaths += 1
                running[index] = start()
        return count(effects, "select count(*) from scoop_outbox.run where state = 'parked'") == 1

    until_blocking(is_parked, 100, 0.05)
    # The first death of a worker that was there before the message is not seen; nearly each later one is.
    assert MOST <= deaths <= MOST + 2 * workers
    reason = effects.execute("select reason from scoop_outbox.run where state = 'parked'").fetchone()
    assert reason is not None
    assert "the process that executed it died" in reason[0]

    for _ in range(20):
        poison.app.launch_sync("medicine", {})
    until_blocking(
        lambda: (
            count(effects, "select count(*) from scoop_outbox.run where saga = 'medicine' and state = 'committed'")
            == 20
        ),
        30,
    )
    assert not any(process.ended for process in running)
    poison.app.close_sync()
