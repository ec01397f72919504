"""A run belongs to no process: each step may be executed by another one."""

from __future__ import annotations

import signal
from typing import Any

import psycopg

from tests.crash import gated
from tests.crash.ledger import assert_exactly_once, count, is_quiet
from tests.crash.processes import Fleet
from tests.waiting import until_blocking


def test_consecutive_steps_of_one_run_are_executed_by_two_processes_in_turn(
    database_url: str, effects: psycopg.Connection[Any], fleet: Fleet
) -> None:
    for app in (gated.gated, gated.hall):
        app.configure(database=database_url)
        app.announce_sync()
    runners = [fleet.worker("gated:gated"), fleet.worker("gated:gated")]
    hall = fleet.worker("gated:hall", "--relay")
    for process in (*runners, hall):
        process.wait_until_ready()
    gates = [gated.Gate(effects, 100 + lap) for lap in range(gated.LAPS)]
    runners[1].send(signal.SIGSTOP)
    gated.gated.launch_sync("gated.race", {"gates": [gate.number for gate in gates]})
    for lap, gate in enumerate(gates):
        until_blocking(lambda gate=gate: gate.waiting == 1)  # type: ignore[misc]
        # The run waits for its child, and no process has it in hand.
        until_blocking(
            lambda: count(effects, "select count(*) from scoop_outbox.mailbox where saga = 'relay race'") == 0
        )
        runners[lap % 2].send(signal.SIGSTOP)
        runners[1 - lap % 2].send(signal.SIGCONT)
        gate.open()
    for runner in runners:
        runner.send(signal.SIGCONT)
    until_blocking(lambda: is_quiet(effects, 1, "gated.race"))

    laps = effects.execute("select pid from effect where saga = 'relay race' order by id").fetchall()
    assert [pid for (pid,) in laps] == [runners[lap % 2].pid for lap in range(gated.LAPS)]
    workers = effects.execute(
        "select s.worker from scoop_outbox.step s join scoop_outbox.run r on r.id = s.run_id"
        " where r.saga = 'relay race' order by s.seq"
    ).fetchall()
    assert workers[0] == workers[2] != workers[1] == workers[3]
    assert_exactly_once(effects)
    gated.gated.close_sync()
    gated.hall.close_sync()
