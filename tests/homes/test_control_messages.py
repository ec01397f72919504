"""What other homes say has the effect of having come once and in order, however it comes.

A broker delivers at least once; what it delivers again comes late. The real plans on a real database, without a broker.
"""

from __future__ import annotations

import itertools
import json
import random
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scoop_outbox.broker.protocol import Delivery
from scoop_outbox.core.statement import Statement, statement
from scoop_outbox.message import uuid7
from scoop_outbox.wire.control import Kind
from tests.homes.ear import SAGA, SERVICE, TOPIC, Child, Ear, Peer, failure

SOME = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
CHANCE = st.integers(0, 1 << 32).map(random.Random)


def jumbled(chance: random.Random, new: Sequence[Delivery], old: Sequence[Delivery] = ()) -> list[list[Delivery]]:
    """Each of the new ones at least once, some of the old ones again, shuffled, and in batches."""
    every = [*new, *chance.choices(new, k=len(new)), *(chance.choices(old, k=len(old)) if old else ())]
    chance.shuffle(every)
    cuts = sorted(chance.sample(range(len(every) + 1), k=min(len(every), chance.randint(0, 3))))
    return [every[a:b] for a, b in itertools.pairwise([0, *cuts, len(every)])]


class Phase(NamedTuple):
    """What the parent does, or nothing, and how the child is reported afterwards: one report behind the other."""

    does: str | None
    states: str


# What is reported in a phase may come in any order, as often as you like, and so may all that was reported before.
STORIES = {
    "it commits": [Phase(None, "started committed")],
    "it fails": [Phase(None, "started rolled_back")],
    "it cannot be undone": [Phase(None, "started rollback_failed")],
    "somebody mends it": [Phase(None, "started rollback_failed rolling_back rolled_back")],
    "somebody mends it at the third try": [
        Phase(None, "started rollback_failed"),
        Phase(None, "rolling_back rollback_failed rolling_back rolled_back"),
    ],
    "its parent has stopped, and somebody mends it": [
        Phase(None, "started rollback_failed"),
        Phase("stops", "rolling_back rolled_back"),
    ],
    "its parent has stopped, and it is being mended": [
        Phase(None, "started rollback_failed"),
        Phase("stops", "rolling_back"),
    ],
    "it is ordered back": [Phase(None, "started committed"), Phase("roll_back", "rolled_back")],
    "it is ordered back, which has to be mended": [
        Phase(None, "started committed"),
        Phase("roll_back", "rollback_failed rolling_back rolled_back"),
    ],
    "it is ordered back, and has been forgotten": [Phase(None, "started committed"), Phase("roll_back", "unknown")],
    "somebody undoes it": [Phase(None, "started committed"), Phase(None, "rolling_back rolled_back")],
    "it is cancelled before it starts": [Phase("cancel", "cancelled")],
    "it is cancelled and gives up": [Phase(None, "started"), Phase("cancel", "rolled_back")],
    "it starts while it is cancelled": [Phase("cancel", "started rolled_back")],
    "it commits while it is cancelled": [Phase("cancel", "started committed")],
    "it commits while it is cancelled, and is ordered back": [
        Phase(None, "started"),
        Phase("cancel", "committed"),
        Phase("roll_back", "rolled_back"),
    ],
}
LAST = {
    "started": ("started", True),
    "committed": ("committed", False),
    "rolled_back": ("rolled_back", False),
    "rollback_failed": ("rollback_failed", False),
    "rolling_back": ("rolling_back", True),
    "cancelled": ("cancelled", False),
    "unknown": ("rollback_failed", False),
}


def parent_of(ear: Ear, child: Child, home: Peer) -> uuid.UUID:
    """Have a run here that waits for a child in another home."""
    parent = uuid7()
    ear.execute("insert into message (id, topic, body, content_type, headers) values (%s, 'R', '', '', '{}')", parent)
    ear.execute(
        "insert into run (id, message_id, service, saga, lineage) values (%s, %s, 'orders', 'order', array[%s::uuid])",
        *(parent, parent, parent),
    )
    ear.execute(
        "insert into child (message_id, service, saga, run_id, seq, ordinal, home) values (%s, %s, %s, %s, 1, 1, %s)",
        *(*child, parent, home.sender.id),
    )
    ear.execute(
        "insert into peer (id, name, reply_to) values (%s, %s, %s) on conflict do nothing",
        *(home.sender.id, home.sender.name, home.sender.reply_to),
    )
    return parent


def does(what: str, parent: uuid.UUID) -> Statement:
    """What a parent says to its children."""
    given = {"run": parent, "failure": None, "reason": None, "context": None, "rollback_by": None}
    if what == "cancel":
        return statement("cancel_children", **given, order="cancel")
    return statement("ask_children", **given, order="roll_back", seq=1, reverse=False)


def reports(child: Child, states: Sequence[str]) -> list[dict[str, Any]]:
    """Reports of a child, numbered."""
    more: dict[str, dict[str, Any]] = {
        "committed": {"result": {"of": "it"}},
        "rolled_back": {"failure": failure("why")},
        "rollback_failed": {"failure": failure("why"), "obstacle": failure("why not")},
        "unknown": {"failure": failure("who?")},
    }
    return [child.said(number, state=state, **more.get(state, {})) for number, state in enumerate(states, 1)]


async def tell(ear: Ear, there: Peer, story: Sequence[Phase], chance: random.Random | None) -> dict[str, Any]:
    """Tell a story, each report once and in order or as it comes, and return what is known of the child then."""
    child = Child(uuid7())
    parent = parent_of(ear, child, there)
    numbered = reports(child, [state for phase in story for state in phase.states.split()])
    news = [there.news(one) for one in numbered]
    told: list[Delivery] = []
    for phase in story:
        if phase.does == "stops":
            ear.execute("update run set state = 'rollback_failed' where id = %s", parent)
        elif phase.does is not None:
            await ear.write(does(phase.does, parent))
        new = news[len(told) : len(told) + len(phase.states.split())]
        for batch in [[one] for one in new] if chance is None else jumbled(chance, new, told):
            await ear.hear(*batch)
        told += new
    before = ear.count("mailbox"), ear.count("outbox")
    for one in told:
        await ear.hear(one)
    assert (ear.count("mailbox"), ear.count("outbox")) == before, "what was known already has done something"
    assert ear.count("dead_letter") == 0
    assert (ear.count(f"mailbox where run_id = '{parent}'") > 0) is any(
        one["state"] not in ("started", "rolling_back") for one in numbered
    )
    return known(ear, child)


def known(ear: Ear, child: Child) -> dict[str, Any]:
    ((row,),) = ear.ask(
        """
        select json_build_object(
            'state', c.state, 'open', c.open, 'generation', c.generation, 'result', c.result, 'home', c.home,
            'healing', c.healing, 'consumed', c.consumed, 'has failed', c.failed_at is not null,
            'its run', coalesce(c.child_run, %s) = %s,
            'failure', (select f.message from failure f where f.id = c.failure),
            'obstacle', (select f.message from failure f where f.id = c.obstacle))
        from child c
        where (c.message_id, c.service, c.saga) = (%s, %s, %s)
        """,
        *(child.run, child.run, *child),
    )
    assert row.pop("its run")
    return dict(row)


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
@given(chance=CHANCE)
@SOME
async def test_news_of_a_child_counts_once_and_in_order(
    ear: Ear, there: Peer, story: list[Phase], chance: random.Random
) -> None:
    in_order = await tell(ear, there, story, None)
    assert await tell(ear, there, story, chance) == in_order
    states = " ".join(phase.states for phase in story).split()
    assert (in_order["state"], in_order["open"]) == LAST[states[-1]]
    assert in_order["generation"] == len(states)
    assert in_order["healing"] is any(phase.does == "stops" for phase in story)


async def test_a_child_whose_failure_has_been_handled_is_not_told_of_again(ear: Ear, there: Peer) -> None:
    child = Child(uuid7())
    parent_of(ear, child, there)
    started, stuck, again, undone = (
        there.news(one) for one in reports(child, ["started", "rollback_failed", "rolling_back", "rolled_back"])
    )
    await ear.hear(started, stuck)
    ear.execute("update child set consumed = true")
    before = known(ear, child)
    for batch in ([again], [undone], [undone, again]):
        await ear.hear(*batch)
        assert known(ear, child) == before


async def test_news_of_a_run_that_is_nobodys_child_does_nothing(ear: Ear, there: Peer) -> None:
    mine, strange = Child(uuid7()), Child(uuid7())
    parent_of(ear, mine, there)
    before = known(ear, mine)
    wrong_run = {**reports(mine, ["committed"])[0], "run": str(strange.run)}
    await ear.hear(there.news(*reports(strange, ["committed"]), wrong_run))
    assert known(ear, mine) == before
    assert (ear.count("child"), ear.count("mailbox"), ear.count("dead_letter")) == (1, 0, 0)


async def test_one_message_tells_of_many_children_and_wakes_their_parent_once(ear: Ear, there: Peer) -> None:
    first, *others = (Child(uuid7()) for _ in range(20))
    parent = parent_of(ear, first, there)
    for one in others:
        ear.execute(
            "insert into child (message_id, service, saga, run_id, seq, ordinal, home) "
            "values (%s, %s, %s, %s, 1, 1, %s)",
            *(*one, parent, there.sender.id),
        )
    every = [reports(one, ["started", "committed"]) for one in (first, *others)]
    await ear.hear(there.news(*(one for pair in every for one in reversed(pair))))
    assert ear.ask("select state, open, count(*) from child group by 1, 2") == [("committed", False, 20)]
    assert ear.ask("select run_id from mailbox") == [(parent,)]


ORDERS = ("message", "cancel", "roll_back", "where")


async def carry_out(ear: Ear, there: Peer, child: Child, what: str) -> None:
    """Let the message of a child arrive, or an order about it."""
    if what == "message":
        await ear.take_in(there.launched(child))
        return
    generation = {"cancel": 0, "roll_back": 2, "where": 1}[what]
    more = {} if what == "where" else {"reason": failure(what), "context": {"because": what}}
    await ear.hear(there.orders(what, child.said(generation), **more))


def runs_of(ear: Ear, child: Child) -> list[tuple[Any, ...]]:
    return ear.ask("select id, state, parent_home from run where message_id = %s", child.message)


@given(chance=CHANCE)
@SOME
async def test_a_child_is_started_or_cancelled_whatever_comes_first_and_how_often(
    ear: Ear, there: Peer, chance: random.Random
) -> None:
    child = Child(uuid7())
    events = ["message", "cancel", *chance.choices(["message", "cancel"], k=4)]
    chance.shuffle(events)
    sent = ear.count("outbox")
    for event in events:
        await carry_out(ear, there, child, event)
    (written,) = ear.ask(
        "select run_id, home, generation, cancelled from foreign_child where message_id = %s", child[0]
    )
    assert written == (child.run, there.sender.id, 1, events[0] == "cancel")
    assert ear.count("dead_letter") == 0
    if events[0] == "message":
        assert runs_of(ear, child) == [(child.run, "running", there.sender.id)]
        asked = ear.ask(
            "select kind, f.message from request q join failure f on f.id = failure where target = %s", child.run
        )
        assert asked == [("cancel", "cancel")]
        return
    assert runs_of(ear, child) == []
    (told,) = ear.said(Kind.NEWS)[sent:]
    assert told["children"] == [child.said(1, state="cancelled")]


@given(chance=CHANCE)
@SOME
async def test_a_child_rolls_back_once_however_often_it_is_told(ear: Ear, there: Peer, chance: random.Random) -> None:
    child = Child(uuid7())
    await carry_out(ear, there, child, "message")
    ear.execute("update run set state = 'committed', seq = 3, ended_at = now() where id = %s", child.run)
    ended = {"message": child.message, "run": child.run, "result": "7", "failure": None, "obstacle": None}
    await ear.write(statement("tell_home", state="committed", **ended))
    # What was said before comes late: the message, and an order that was overtaken by the news.
    events = ["roll_back", *chance.choices(ORDERS, k=5)]
    chance.shuffle(events)
    for event in events:
        await carry_out(ear, there, child, event)
    (run,) = ear.ask(
        "select state, undo_seq, inherited, f.message from run join failure f on f.id = failure where run.id = %s",
        child.run,
    )
    assert run == ("rolling_back", 3, {"because": "roll_back"}, "roll_back")
    assert ear.count(f"request where target = '{child.run}'") == 0
    told = [one["children"][0] for one in ear.said(Kind.NEWS) if one["children"][0]["run"] == str(child.run)]
    # Who asks is told where it stands; nothing has happened since the last report.
    assert told[0] == child.said(1, state="started")
    assert {one["generation"] for one in told} <= {1, 2}

    ear.execute("update run set state = 'rolled_back' where id = %s", child.run)
    for event in events:
        await carry_out(ear, there, child, event)
    assert runs_of(ear, child) == [(child.run, "rolled_back", there.sender.id)]


@given(chance=CHANCE)
@SOME
async def test_an_order_about_a_run_that_is_not_here_is_answered_and_leaves_nothing(
    ear: Ear, there: Peer, chance: random.Random
) -> None:
    child = Child(uuid7())
    orders = [there.orders(order, child.said(7), reason=failure("why")) for order in ("roll_back", "where")]
    for batch in jumbled(chance, orders):
        await ear.hear(*batch)
    assert ear.ask("select from foreign_child where message_id = %s", child.message) == []
    told = [one for news in ear.said(Kind.NEWS) for one in news["children"] if one["run"] == str(child.run)]
    assert {(one["generation"], one["state"], one["failure"]["type"]) for one in told} == {(8, "unknown", "UnknownRun")}


async def test_a_home_counts_on_from_what_its_parents_home_has_heard(ear: Ear, there: Peer) -> None:
    child = Child(uuid7())
    await carry_out(ear, there, child, "message")
    await ear.hear(there.orders("cancel", child.said(9)), there.orders("cancel", child.said(4)))
    assert ear.ask("select generation from foreign_child") == [(9,)]


def listening(*topics: str) -> list[dict[str, Any]]:
    return [{"topic": one, "pattern": None, "names": [], "service": SERVICE, "saga": SAGA} for one in topics]


@given(chance=CHANCE, last=st.integers(1, 5))
@SOME
async def test_the_newest_list_of_subscriptions_counts(ear: Ear, chance: random.Random, last: int) -> None:
    there, mine = Peer(f"there-{uuid.uuid4()}"), 3
    ear.execute("update home set revision = %s, announced = '[]'", mine)
    lists = {number: listening(*(f"topic {one}" for one in range(number % 3))) for number in range(1, last + 1)}
    known = {str((await ear.identity()).id): mine}
    said = [
        there.says(Kind.SUBSCRIPTIONS, revision=number, subscriptions=listed, known=known)
        for number, listed in lists.items()
    ]
    sent = ear.count("outbox")
    newest = 0
    for one in itertools.chain.from_iterable(jumbled(chance, said)):
        await ear.hear(one)
        newest = max(newest, json.loads(one.envelope.body)["revision"])
        # Confirmed is what is known, though something older was said.
        assert ear.said(Kind.CONFIRMED)[-1]["revision"] == newest
        topics = ear.ask("select topic from peer_subscription where home = %s order by 1", there.sender.id)
        assert [{"topic": topic} for (topic,) in topics] == [{"topic": one["topic"]} for one in lists[newest]]
    assert {topic for (topic,) in ear.ask("select topic from outbox order by seq")[sent:]} == {there.sender.reply_to}
    assert ear.said(Kind.SUBSCRIPTIONS) == [], "who knows our list is not told it"


@pytest.mark.parametrize("known", [None, 1, 2], ids=["nothing", "an older one", "the newest one"])
async def test_a_home_is_told_our_subscriptions_unless_it_knows_them(ear: Ear, there: Peer, known: int | None) -> None:
    ear.execute("update home set revision = 2, announced = '[]'")
    ours = str((await ear.identity()).id)
    await ear.hear(
        there.says(Kind.SUBSCRIPTIONS, revision=4, subscriptions=[], known={} if known is None else {ours: known})
    )
    told = ear.said(Kind.SUBSCRIPTIONS)
    if known == 2:
        assert told == []
        return
    (one,) = told
    assert (one["revision"], one["known"], one["subscriptions"]) == (2, {str(there.sender.id): 4}, listening(TOPIC))


@given(chance=CHANCE)
@SOME
async def test_what_was_confirmed_stays_so(ear: Ear, chance: random.Random) -> None:
    there = Peer(f"there-{uuid.uuid4()}")
    for batch in jumbled(chance, [there.says(Kind.CONFIRMED, revision=number) for number in (1, 2, 3)]):
        await ear.hear(*batch)
    assert ear.ask("select confirmed from peer where id = %s", there.sender.id) == [(3,)]
