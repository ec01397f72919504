"""Processes die at any moment, and everything is done exactly once all the same."""

from __future__ import annotations

import asyncio
import functools
import random
import secrets
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from scoop_outbox import Scoop
from scoop_outbox.app import service_of
from tests.carriers import BUILTIN, KAFKA, RABBITMQ, REAL
from tests.crash import flow
from tests.crash.ledger import assert_exactly_once, count, is_quiet
from tests.crash.processes import START, Fleet, Process
from tests.waiting import until_blocking

PARENTS = 300
WORKER_KILLS = 28
# Over a broker half as many: with each its group is divided anew, and meanwhile there is nothing to interrupt.
# A relay that is killed leaves a lease that has to run out, and meanwhile there is less to interrupt.
RELAY_KILLS = 2
# A member of a group that was killed keeps its partitions until it has been missed.
SETTINGS = {KAFKA: "?topology.partitions=4&session.timeout.ms=2000&heartbeat.interval.ms=300", RABBITMQ: ""}


@pytest.fixture(params=[BUILTIN, *REAL])
def broker(request: pytest.FixtureRequest) -> dict[str, str]:
    """What the processes read of the broker that carries their messages, with topics of the test's own."""
    if request.param == BUILTIN:
        return {}
    url: str = request.getfixturevalue(f"{request.param}_url") + SETTINGS[request.param]
    return {"SCOOP_OUTBOX_BROKER": url, "SCOOP_TEST_PREFIX": f"t{secrets.token_hex(6)}."}


@pytest.mark.timeout(240)  # half a minute by itself; its many processes feel it when others use the machine
def test_kill_9_of_workers_and_relays_at_random(
    database_url: str, effects: psycopg.Connection[Any], fleet: Fleet, broker: dict[str, str]
) -> None:
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    chance = random.Random(seed)
    prefix = broker.get("SCOOP_TEST_PREFIX", "")
    topic = f"{prefix}order.placed"
    launcher = Scoop("launcher", database=database_url, broker=broker.get("SCOOP_OUTBOX_BROKER"))
    asyncio.run(_create_topics(launcher, prefix))
    running = [fleet.worker(f"flow:{service}", **broker) for service in flow.SERVICES for _ in range(2)]
    running += [fleet.start("relay", **broker) for _ in range(2)]
    for process in running:
        process.wait_until_ready()

    commands = ["worker"] * (WORKER_KILLS // 2 if broker else WORKER_KILLS) + ["relay"] * RELAY_KILLS
    chance.shuffle(commands)
    launched = 0
    for done, command in enumerate(commands, start=1):
        steps = _steps(effects)
        while launched < PARENTS * done // len(commands):
            launched += 1
            launcher.launch_sync(topic, {"n": launched}, key=str(launched % 16))
        not_before = time.monotonic() + chance.uniform(0.1, 0.3)
        # Only in the midst of work, and only a process that takes part in it: otherwise nothing is interrupted.
        until_blocking(functools.partial(_has_done, effects, steps + 10, not_before), 20)
        candidates = [process for process in running if process.arguments[0] == command]
        until_blocking(functools.partial(_any_ready, candidates), START)
        victim = chance.choice([process for process in candidates if process.ready])
        victim.kill()
        running[running.index(victim)] = fleet.start(*victim.arguments, **broker)

    # Ten seconds on a machine of its own; beside the brokers of other tests it was still at work after forty.
    until_blocking(lambda: is_quiet(effects, PARENTS, topic), 150, 0.05)
    assert_exactly_once(effects)
    expected = Counter(end for n in range(1, PARENTS + 1) for end in flow.expected_ends(n).items())
    assert _ends(effects) == expected
    interrupted = _undone_writes(effects) - sum(flow.writes_undone_on_purpose(n) for n in range(1, PARENTS + 1))
    print(f"the kills undid {interrupted} writes")
    assert interrupted > 0, "the kills have hit nothing"
    launcher.close_sync()


async def _create_topics(launcher: Scoop, prefix: str) -> None:
    """Make the broker ready for the services, as `scoop-outbox topology apply` does."""
    broker = service_of(launcher).broker
    if broker is not None:
        for app in flow.SERVICES.values():
            mine = service_of(app).subscription
            topics = tuple(prefix + topic for topic in mine.topics)
            await broker.topology(topics, replace(mine, group=prefix + mine.group, topics=topics), create=True)


def _steps(connection: psycopg.Connection[Any]) -> int:
    return count(connection, "select count(*) from scoop_outbox.step")


def _has_done(connection: psycopg.Connection[Any], steps: int, not_before: float) -> bool:
    return time.monotonic() >= not_before and _steps(connection) >= steps


def _any_ready(processes: list[Process]) -> bool:
    return any(process.ready for process in processes)


def _undone_writes(connection: psycopg.Connection[Any]) -> int:
    """Return how many rows were inserted and undone: a sequence never goes back."""
    return count(connection, "select (select last_value from effect_id_seq) - count(*) from effect")


def _ends(connection: psycopg.Connection[Any]) -> Counter[tuple[str, str]]:
    rows = connection.execute("select saga, state, count(*) from scoop_outbox.run group by 1, 2").fetchall()
    return Counter({(saga, state): runs for saga, state, runs in rows})
