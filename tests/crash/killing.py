"""Killing one of many processes while they work."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import psycopg

from tests.crash import flow
from tests.crash.ledger import count
from tests.crash.processes import Fleet, Process
from tests.waiting import until_blocking

STEPS = "select count(*) from scoop_outbox.step"


def two_of_each(fleet: Fleet) -> list[Process]:
    """Start two workers of each service, each with a relay, and return them when all are ready."""
    running = [fleet.worker(f"flow:{service}", "--relay") for service in flow.SERVICES for _ in range(2)]
    for process in running:
        process.wait_until_ready()
    return running


def until_a_step_is_done(
    connection: psycopg.Connection[Any], is_quiet: Callable[[psycopg.Connection[Any]], bool]
) -> None:
    """Return when one more step has been recorded, or nothing is left to be done."""
    before = count(connection, STEPS)
    until_blocking(lambda: count(connection, STEPS) > before or is_quiet(connection), 60)


def kill_one(running: list[Process], fleet: Fleet) -> None:
    """Kill one of the processes at random, and start another like it in its place."""
    victim = random.choice(running)
    victim.kill()
    running[running.index(victim)] = fleet.start(*victim.arguments)
