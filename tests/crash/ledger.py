"""What must hold of a database in which everything has ended, whatever was killed on the way."""

from __future__ import annotations

from collections import Counter
from typing import Any

import psycopg

UNENDED = "select count(*) from scoop_outbox.run where state in ('running', 'rolling_back', 'parked')"


def count(connection: psycopg.Connection[Any], query: str, *params: object) -> int:
    """Return the number that a query answers with."""
    row = connection.execute(query, params).fetchone()
    assert row is not None
    return int(row[0])


def is_quiet(connection: psycopg.Connection[Any], message_count: int, topic: str) -> bool:
    """Tell whether the messages of a topic have all been taken in, and nothing is left to be done."""
    taken_in = count(connection, "select count(*) from scoop_outbox.message where topic = %s", topic)
    return (
        taken_in == message_count
        and count(connection, "select count(*) from scoop_outbox.outbox") == 0
        and count(connection, UNENDED) == 0
        and count(connection, "select count(*) from scoop_outbox.mailbox") == 0
    )


def assert_exactly_once(connection: psycopg.Connection[Any]) -> None:
    """Compare what happened in the database with what the engine recorded, and both with the rule."""
    _assert_nothing_left(connection)
    _assert_effects_are_the_records(connection)
    _assert_compensated_once_in_reverse(connection)
    _assert_parents_waited(connection)


def _assert_nothing_left(connection: psycopg.Connection[Any]) -> None:
    for left in ("outbox", "mailbox", "dead_letter", "child where open", "child where state = 'waiting'"):
        assert count(connection, f"select count(*) from scoop_outbox.{left}") == 0, f"there are rows in {left}"  # noqa: S608
    assert count(connection, UNENDED) == 0
    doubled = connection.execute(
        "select message_id, service, saga from scoop_outbox.run group by 1, 2, 3 having count(*) > 1"
    ).fetchall()
    assert doubled == []
    strange = connection.execute(
        "select r.id, r.state, c.state from scoop_outbox.run r join scoop_outbox.child c on c.child_run = r.id"
        " where r.state <> c.state"
    ).fetchall()
    assert strange == [], "a parent was told another end than its child had"


def _assert_effects_are_the_records(connection: psycopg.Connection[Any]) -> None:
    """Each successful execution has exactly one effect, and no other effect exists."""
    recorded = Counter(
        connection.execute(
            "select run_id, step, kind, count(*) from scoop_outbox.step"
            " where state <> 'failed' group by 1, 2, 3, undoes, seq"
        ).fetchall()
    )
    happened = Counter(
        connection.execute("select run_id, step, kind, count(*) from effect group by 1, 2, 3, key").fetchall()
    )
    assert happened == recorded, f"only happened: {happened - recorded}; only recorded: {recorded - happened}"


def _assert_compensated_once_in_reverse(connection: psycopg.Connection[Any]) -> None:
    wrong = connection.execute(
        """
        select s.run_id, s.step, s.state, count(c.seq)
        from scoop_outbox.step s
        join scoop_outbox.run r on r.id = s.run_id
        left join scoop_outbox.step c
          on c.run_id = s.run_id and c.undoes = s.seq and c.state <> 'failed' and c.kind = 'compensation'
        where s.kind = 'step' and s.state <> 'failed'
        group by s.run_id, s.seq, s.step, s.state, r.state
        having (s.state, count(c.seq)) is distinct from
               (case r.state when 'rolled_back' then 'compensated' else 'committed' end,
                case r.state when 'rolled_back' then 1::bigint else 0::bigint end)
        """
    ).fetchall()
    assert wrong == [], "steps of a run that rolled back are compensated once, others never"
    order = connection.execute(
        "select run_id, array_agg(undoes order by seq) from scoop_outbox.step where kind = 'compensation' group by 1"
    ).fetchall()
    assert all(undone == sorted(undone, reverse=True) for _, undone in order), "compensations out of order"


def _assert_parents_waited(connection: psycopg.Connection[Any]) -> None:
    """Numbers of `effect` ascend in the order in which things were done, across all runs of all processes."""
    too_early = connection.execute(
        """
        select c.child_run, done.step, done.kind, parent.step, parent.kind
        from scoop_outbox.child c
        join effect done on done.run_id = c.child_run
        join effect parent on parent.run_id = c.run_id
        join scoop_outbox.step launcher on launcher.run_id = c.run_id and launcher.seq = c.seq
        where (parent.kind = 'compensation' and parent.step = launcher.step and done.id > parent.id)
           or (parent.kind <> 'compensation' and split_part(parent.key, ':', 2)::int > c.seq
               and done.kind = 'step' and done.id > parent.id)
        """
    ).fetchall()
    assert too_early == [], "a parent went on before its children had ended"
