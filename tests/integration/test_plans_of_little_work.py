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


IN_STEPS = {
    *(
        "claim_run",
        "claim_again",
        "read_children",
        "read_children_without_results",
        "read_untold",
        "read_open_children",
    ),
    *("read_instance", "read_body", "advance_run", "update_run", "record_step", "mark_undone", "drop_mail_if_waiting"),
    *(
        "ask_children",
        "cancel_children",
        "tell_parent",
        "consume_failures",
        "deliver_failures",
        "launch",
        "launch_across",
    ),
}
"""What is asked on the connections of steps, in most of their transactions."""
FILLED = ("run", "step", "message", "child")
A_FAN_OUT = """
with root as (
    select gen_random_uuid() as id
), children as (
    select gen_random_uuid() as run, gen_random_uuid() as message, n from generate_series(1, 3000) n
), runs as (
    insert into scoop_outbox.run (id, message_id, service, saga, lineage, step, next_step, seq, instance)
    select run, message, 'shop', 'child', array[root.id, run], 'first', 'second', 1, 1 from children, root
), steps as (
    insert into scoop_outbox.step (run_id, seq, step, kind, iteration, attempt, state, started_at, ended_at, worker)
    select run, 1, 'first', 'step', 0, 0, 'committed', now(), now(), gen_random_uuid() from children
), messages as (
    insert into scoop_outbox.message (id, topic, body, content_type, headers)
    select message, 'children', '1', 'application/json', '{}' from children
)
insert into scoop_outbox.child (message_id, service, saga, run_id, seq, ordinal, open, state, child_run)
select message, 'shop', 'child', root.id, 1, n, true, 'started', run from children, root
"""


def test_d1_nor_if_it_was_planned_while_no_child_had_ended(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(A_FAN_OUT.encode())
        connection.execute("vacuum analyze")
        plans = planned(connection)  # as on the connections of steps, which are as users expect them to be
    scanned = {name for name, plan in plans.items() if any(f"Seq Scan on {table} " in plan for table in FILLED)}
    assert scanned & IN_STEPS == set()


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
