"""D1: what is planned while there is little work, or no past, is right when there is much of it."""

import re
from typing import Any

import psycopg
import pytest
from psycopg import sql

from scoop_outbox.store import queries
from scoop_outbox.store.home import Home
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from tests.integration.statement_kinds import BIG, HISTORY, LIVING, QUEUES, UTILITY

LOOK_AT_QUEUES = f"vacuum analyze {', '.join(f'{DEFAULT_SCHEMA}.{name}' for name in QUEUES)}"
A_LITTLE = """
with these as (
    insert into scoop_outbox.outbox (shard, message_id, topic, body, content_type, headers)
    select n %% 8, gen_random_uuid(), 'orders', repeat('1', 1000)::bytea, 'application/json', '{}'
    from generate_series(1, %s) n
    returning message_id
)
insert into scoop_outbox.mailbox (service, saga, run_id, due) select 'shop', 'orders', message_id, now() from these
"""


def planned(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """How every statement is executed if it is planned now."""
    connection.execute("set plan_cache_mode = force_generic_plan")
    plans: dict[str, str] = {}
    for name, query in queries.compiled(DEFAULT_SCHEMA).items():
        if name in UTILITY:
            continue
        connection.execute(sql.SQL("prepare {} as ").format(sql.Identifier(name)).as_bytes(None) + query.text)
        nulls = (
            sql.SQL("({})").format(sql.SQL(", ").join([sql.NULL] * len(query.order))) if query.order else sql.SQL("")
        )
        asked = sql.SQL("explain execute {} {}").format(sql.Identifier(name), nulls)
        plans[name] = "\n".join(line for (line,) in connection.execute(asked))
    return plans


# Queues are empty, or nearly so, whenever vacuum comes. What is planned then is what is executed when a broker was down
# for hours.


def test_d1_nor_if_it_was_planned_while_there_was_no_work(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(LOOK_AT_QUEUES.encode())
        plans = planned(connection)
    scanned = {name for name, plan in plans.items() if any(f"Seq Scan on {queue} " in plan for queue in QUEUES)}
    assert scanned - LIVING == set()


def test_d1_nor_if_it_was_planned_while_there_was_no_history(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("vacuum analyze")
    driver = Home(database_url, DEFAULT_SCHEMA, "test").connect_blocking()
    try:
        plans = planned(driver.raw)
    finally:
        driver.close()
    del plans["read_instance"]  # part of a step, whose connection is as users expect theirs to be
    assert [
        name
        for name, plan in plans.items()
        if name not in HISTORY and any(f"Seq Scan on {table} " in plan for table in BIG - set(QUEUES))
    ] == []


@pytest.mark.parametrize("rows", [0, 1, 60, 1000])
def test_d1_nor_if_it_was_planned_while_there_was_little_work(database_url: str, rows: int) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(A_LITTLE.encode(), [rows])
        connection.execute(LOOK_AT_QUEUES.encode())
    driver = Home(database_url, DEFAULT_SCHEMA, "test").connect_to_queues_blocking()
    try:
        plans = planned(driver.raw)
    finally:
        driver.close()
    for name in ("read_outbox", "look_at_outbox", "read_due", "read_left_lying", "count_due"):
        # In the order of an index, up to the limit: what lies behind it is neither read nor sorted.
        assert re.search(r"(Seq|Heap) Scan on (outbox|mailbox)\b", plans[name]) is None, plans[name]
        assert sorts_without_end(plans[name]) == [], plans[name]


def sorts_without_end(plan: str) -> list[str]:
    """What sorts the rows of a queue before a limit has made them few."""
    above: list[tuple[int, str]] = []
    found = []
    for line in plan.splitlines():
        indent = len(line) - len(line.lstrip())
        above = [entry for entry in above if entry[0] < indent]
        above.append((indent, line))
        if re.search(r"Scan .*on (outbox|mailbox)\b", line):
            for _, node in reversed(above):
                if re.search(r"Limit  \(", node):
                    break
                if re.search(r"Sort  \(", node):
                    found.append(node)
    return found
