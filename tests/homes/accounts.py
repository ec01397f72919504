"""What must hold of several homes together when everything has ended, whatever was broken on the way."""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import psycopg

from scoop_outbox.wire.sharing import choose
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
    """Each home by itself has done everything once; together they have done what was to be done, once and in order."""
    for one in sites:
        with psycopg.connect(one.server.url, autocommit=True) as connection:
            assert_exactly_once(connection)
    ends = Counter(tuple(row) for one in sites for row in one.ask("select saga, state from scoop_outbox.run"))
    expected = Counter(end for n in range(1, orders + 1) for end in flow.expected_ends(n).items())
    assert ends == expected, f"too many: {ends - expected}; too few: {expected - ends}"
    handled = "select message_id, service, saga from scoop_outbox.run"
    begun = Counter(tuple(row) for one in sites for row in one.ask(handled))
    assert {run: times for run, times in begun.items() if times > 1} == {}, "handled in several homes"
    _assert_children_are_known(sites)
    _assert_parents_waited(sites)


def assert_shared(sites: Sequence[Site]) -> None:
    """Homes of one service have each handled what belongs to them, and have passed messages on to each other."""
    services = {one.service for one in sites}
    together = [[one for one in sites if one.service == service] for service in sorted(services)]
    shared = [homes for homes in together if len(homes) > 1]
    assert shared
    for homes in shared:
        _assert_each_has_its_own(homes)
        _assert_passed_on(homes)


def _assert_each_has_its_own(homes: Sequence[Site]) -> None:
    """What has the same key is handled in the same home, and each home has something to do."""
    ids = {one.name: one.ask("select id from scoop_outbox.home")[0][0] for one in homes}
    for one in homes:
        runs = one.ask(
            "select m.topic, m.id::text, coalesce(m.key, m.id::text)"
            " from scoop_outbox.run r join scoop_outbox.message m on m.id = r.message_id"
        )
        print(f"{one.name} has handled", *Counter(topic for topic, _, _ in runs).items())
        assert runs, f"{one.name} has handled nothing"
        strange = [run for run in runs if choose(ids.values(), run[2]) != ids[one.name]]
        assert strange == [], f"handled in {one.name}, where they do not belong"


def _assert_passed_on(homes: Sequence[Site]) -> None:
    """Each message that was passed on was handled where it was sent to, and nowhere else."""
    passed: Counter[str] = Counter()
    for one in homes:
        rows = one.ask("select message_id, topic, reply_to from passed_on")
        passed[one.name] = len(rows)
        print(f"{one.name} has passed on", len(rows), f"of {len({row[0] for row in rows})} messages")
        for other in homes:
            told = {message for message, _, reply_to in rows if reply_to.endswith(f"control.{other.name}")}
            here = {message for (message,) in other.ask("select message_id from scoop_outbox.run")}
            assert told <= here, f"{one.name} has passed on to {other.name} what that has not handled: {told - here}"
            assert not (told and other is one), f"{one.name} has passed messages on to itself"
    assert passed.total() > 0, "nothing was passed on"


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
