"""What must hold of several homes together when everything has ended, whatever was broken on the way."""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import psycopg

from tests.crash import flow
from tests.crash.ledger import assert_exactly_once
from tests.homes.sites import Site


class Effect(NamedTuple):
    """What a callback has done, and when by a clock that all homes of a test share."""

    run: uuid.UUID
    step: str
    kind: str
    seq: int
    at: datetime


def assert_all_agree(sites: Sequence[Site], orders: int) -> None:
    """Each home by itself has done everything once; together they have done what was to be done, in order."""
    for one in sites:
        with psycopg.connect(one.server.url, autocommit=True) as connection:
            assert_exactly_once(connection)
    ends = Counter(tuple(row) for one in sites for row in one.ask("select saga, state from scoop_outbox.run"))
    expected = Counter(end for n in range(1, orders + 1) for end in flow.expected_ends(n).items())
    assert ends == expected, f"too many: {ends - expected}; too few: {expected - ends}"
    _assert_children_are_known(sites)
    _assert_parents_waited(sites)


def _assert_children_are_known(sites: Sequence[Site]) -> None:
    """Each home knows of its children elsewhere what their homes do, to the number of the last report."""
    known = Counter(
        row
        for one in sites
        for row in one.ask(
            "select c.message_id, c.service, c.saga, c.home, c.state, c.generation from scoop_outbox.child c"
            " where c.home is not null"
        )
    )
    true = Counter(
        row
        for one in sites
        for row in one.ask(
            "select f.message_id, f.service, f.saga, h.id, coalesce(r.state, 'cancelled'), f.generation"
            " from scoop_outbox.foreign_child f cross join scoop_outbox.home h"
            " left join scoop_outbox.run r on r.id = f.run_id"
        )
    )
    assert known == true, f"only known: {known - true}; only true: {true - known}"


def _assert_parents_waited(sites: Sequence[Site]) -> None:
    """No parent went on before its children elsewhere had ended, nor back before they had."""
    effects: dict[uuid.UUID, list[Effect]] = defaultdict(list)
    for one in sites:
        for row in one.ask("select run_id, step, kind, split_part(key, ':', 2)::int, at from effect"):
            effects[row[0]].append(Effect(*row))
    wrong: list[Any] = []
    for one in sites:
        for parent, seq, step, child in one.ask(
            "select c.run_id, c.seq, s.step, c.child_run from scoop_outbox.child c"
            " join scoop_outbox.step s on s.run_id = c.run_id and s.seq = c.seq where c.home is not null"
        ):
            for done in effects[child]:
                wrong += [(done, above) for above in effects[parent] if _is_early(done, above, seq, step)]
    assert wrong == [], "a parent went on before its children had ended"


def _is_early(done: Effect, above: Effect, seq: int, step: str) -> bool:
    if done.at <= above.at:
        return False
    if above.kind == "compensation":
        return above.step == step
    return above.seq > seq and done.kind == "step"
