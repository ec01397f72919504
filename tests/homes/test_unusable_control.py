"""What cannot be understood on the control channel becomes a dead letter with its bytes, and holds up nothing else."""

from __future__ import annotations

import copy
import json
import logging
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from scoop_outbox.message import uuid7
from scoop_outbox.wire.control import Kind
from tests.homes.ear import CHANNEL, SAGA, SERVICE, Child, Ear, Peer, delivered, failure

CHILD = Child(uuid7()).said(1)
HOME = {"id": str(uuid.uuid4()), "name": "there", "replyTo": "scoop.control.there"}
BASE = {"version": 1, "from": HOME}
NEWS = {**BASE, "kind": "news", "children": [{**CHILD, "state": "rolled_back", "failure": failure("why")}]}
ORDERS = {**BASE, "kind": "orders", "order": "cancel", "children": [CHILD], "reason": failure("why")}
LISTENER = {"topic": "t", "pattern": None, "names": ["u"], "service": SERVICE, "saga": SAGA}
LISTS = {**BASE, "kind": "subscriptions", "revision": 1, "subscriptions": [LISTENER], "known": {}}
CONFIRMED = {**BASE, "kind": "confirmed", "revision": 1}
QUESTION = {**BASE, "kind": "question", "question": "1", "child": CHILD, "answerTo": "scoop.control.there"}
ACTIVE = {"run": str(uuid.uuid4()), "service": SERVICE, "saga": SAGA, "state": "running"}
ANSWER = {**BASE, "kind": "answer", "question": "1", "active": [ACTIVE]}
DEEP = 1_000_000


def but(said: dict[str, Any], *path: str | int, **members: Any) -> bytes:
    """A control message with other members somewhere in it; what is `...` is left out."""
    changed = copy.deepcopy(said)
    place: Any = changed
    for step in path:
        place = place[step]
    for name, value in members.items():
        place.pop(name, None)
        if value is not ...:
            place[name] = value
    return json.dumps(changed).encode()


def deep(said: dict[str, Any], *path: str | int, member: str, depth: int) -> bytes:
    """A control message with a member that is nested so deep."""
    return but(said, *path, **{member: "HERE"}).replace(b'"HERE"', b"[" * depth + b"]" * depth)


UNUSABLE: dict[str, bytes] = {
    "no JSON": b"\xff\x00 no JSON",
    "empty": b"",
    "a list": b"[]",
    "a number of too many digits": b"1" * 10_000,
    "nested too deep": b"[" * DEEP,
    "a later version": but(NEWS, version=2),
    "no version": but(NEWS, version=...),
    "a version that is a text": but(NEWS, version="1"),
    "an unknown kind": but(NEWS, kind="gossip"),
    "no kind": but(NEWS, kind=...),
    "a kind that is a list": but(NEWS, kind=[]),
    "nobody": but(NEWS, **{"from": ...}),
    "a nameless home": but(NEWS, "from", name=""),
    "a home without an id": but(NEWS, "from", id="there"),
    "a home with a NUL in its name": but(NEWS, "from", name="a\0b"),
    "a home with a surrogate in its name": but(NEWS, "from", name="\ud800"),
    "a home that cannot be answered": but(NEWS, "from", replyTo=None),
    "news of nobody": but(NEWS, children=...),
    "news of a text": but(NEWS, children=["child"]),
    "an unknown state": but(NEWS, "children", 0, state="asleep"),
    "a state that is an object": but(NEWS, "children", 0, state={}),
    "a child without a run": but(NEWS, "children", 0, run=...),
    "a child without a service": but(NEWS, "children", 0, service=...),
    "a generation below zero": but(NEWS, "children", 0, generation=-1),
    "a generation that is a boolean": but(NEWS, "children", 0, generation=True),
    "a generation that is a fraction": but(NEWS, "children", 0, generation=1.5),
    "a generation without a successor": but(NEWS, "children", 0, generation=(1 << 31) - 1),
    "a failure that is a text": but(NEWS, "children", 0, failure="because"),
    "a result that is no JSON for Postgres": but(NEWS, "children", 0, result=float("nan")),
    "a result that is more than any number": but(NEWS, "children", 0, result=7).replace(b": 7", b": 1e999"),
    "an unknown order": but(ORDERS, order="explode"),
    "an order without children": but(ORDERS, children=...),
    "an order with a context that is a list": but(ORDERS, context=[]),
    "an order for a time that is none": but(ORDERS, rollbackBy="soon"),
    "an order for a time without its zone": but(ORDERS, rollbackBy="2030-01-01T00:00:00"),
    "an order to go on counting where nobody can": but(ORDERS, "children", 0, generation=(1 << 31) - 1),
    "a revision that is a text": but(LISTS, revision="1"),
    "no subscriptions": but(LISTS, subscriptions=...),
    "a pattern that is none": but(LISTS, "subscriptions", 0, pattern="("),
    "a pattern that is none for Postgres": but(LISTS, "subscriptions", 0, pattern="(?P<x>a)"),
    "a pattern that is none for Postgres and says so late": but(LISTS, "subscriptions", 0, pattern="a++"),
    "a pattern that is beyond all numbers": but(LISTS, "subscriptions", 0, pattern="a{99999999999999999999}"),
    "a pattern that is nested too deep": but(LISTS, "subscriptions", 0, pattern="(" * 200_000 + ")" * 200_000),
    "other names that are a text": but(LISTS, "subscriptions", 0, names="u"),
    "former names that are a text": but(LISTS, "subscriptions", 0, formerly="u"),
    "another name that is a number": but(LISTS, "subscriptions", 0, names=[1]),
    "a topic with a NUL": but(LISTS, "subscriptions", 0, topic="a\0b"),
    "a topic that no index can hold": but(LISTS, "subscriptions", 0, topic="".join(map(chr, range(0x4E00, 0x6E00)))),
    "known homes that are a list": but(LISTS, known=[1]),
    "a known home with a revision that is none": but(LISTS, known={HOME["id"]: "two"}),
    "a question of nobody": but(QUESTION, child=...),
    "a question that cannot be answered": but(QUESTION, answerTo="somewhere"),
    "a question without a name": but(QUESTION, question=""),
    "an answer to nothing": but(ANSWER, question=...),
    "an answer of nothing": but(ANSWER, active=...),
    "an answer of a run without a state": but(ANSWER, "active", 0, state=None),
    "a confirmation of nothing": but(CONFIRMED, revision=...),
}


@pytest.mark.parametrize("body", UNUSABLE.values(), ids=UNUSABLE)
async def test_it_becomes_a_dead_letter_and_the_others_count(ear: Ear, body: bytes) -> None:
    before, after = Peer("before"), Peer("after")
    bad = delivered(body)
    await ear.hear(before.says(Kind.CONFIRMED, revision=1), bad, after.says(Kind.CONFIRMED, revision=2))
    assert ear.ask("select name, confirmed from peer where confirmed > 0 order by 2") == [("before", 1), ("after", 2)]
    ((message_id, topic, stored, service, position, reason),) = ear.ask(
        "select message_id, topic, body, service, position, reason from dead_letter"
    )
    assert (str(message_id), topic, bytes(stored)) == (bad.envelope.id, CHANNEL, body)
    assert (service, position) == (CHANNEL, bad.position)
    assert reason
    assert ear.ask("select name from peer where confirmed = 0") == []
    await ear.hear(bad)
    assert ear.count("dead_letter") == 1, "what comes again is the same dead letter"


FORMS: dict[str, bytes] = {
    "unknown members": but(NEWS, mood="good", children=[{**CHILD, "state": "started", "weather": "fine"}]),
    "nothing but a state of a failure": but(NEWS, "children", 0, failure={}),
    "a failure that makes no sense": but(NEWS, "children", 0, failure={"type": 7, "causes": "none", "stackTrace": [1]}),
    "a failure with a NUL": but(NEWS, "children", 0, failure={"type": "a\0b", "message": "\ud800", "causes": [{}]}),
    "a result that is null": but(NEWS, "children", 0, state="committed", result=None),
    "a result with a NUL": but(NEWS, "children", 0, state="committed", result="\0 \ud800 \\u0000"),
    "a result that is nested": deep(NEWS, "children", 0, member="result", depth=500),
    "no children at all": but(NEWS, children=[]),
    "nobody listens": but(LISTS, subscriptions=[]),
    "the same listener twice": but(LISTS, subscriptions=[LISTENER, LISTENER]),
    "nothing is known": but(LISTS, known=...),
    "a known home that is none": but(LISTS, known={"everybody": 1}),
    "no reason": but(ORDERS, reason=None),
    "a time in another zone": but(ORDERS, order="roll_back", rollbackBy="2030-01-01T00:00:00+05:30"),
}


@pytest.mark.parametrize("body", FORMS.values(), ids=FORMS)
async def test_what_is_said_in_another_form_is_taken_in(ear: Ear, body: bytes) -> None:
    await ear.hear(delivered(body))
    assert ear.ask("select reason from dead_letter") == []
    assert ear.ask("select name from peer") == [("there",)]


@pytest.mark.parametrize("depth", [900, 990, 1000, 2000, 3000, 5000, 20_000, 100_000])
@pytest.mark.parametrize("member", ["result", "failure"])
async def test_whatever_is_nested_ends_somewhere(ear: Ear, depth: int, member: str) -> None:
    body = deep(NEWS, "children", 0, member=member, depth=depth)
    after = Peer("after")
    await ear.hear(delivered(body), after.says(Kind.CONFIRMED, revision=2))
    assert ear.ask("select confirmed from peer where name = 'after'") == [(2,)]
    assert ear.count("dead_letter") + len(ear.ask("select from peer where name = 'there'")) == 1


async def test_what_the_broker_calls_defective_is_a_dead_letter(ear: Ear) -> None:
    good = Peer("before").says(Kind.CONFIRMED, revision=1)
    bad = replace(good, defect="its header scoop-id is no UUID")
    await ear.hear(bad)
    assert ear.ask("select reason from dead_letter") == [("no control message: its header scoop-id is no UUID",)]


async def test_launching_goes_on_whatever_pattern_another_home_has_announced(ear: Ear) -> None:
    """A pattern that the database cannot read would be read at every launch."""
    there = Peer()
    for number, pattern in enumerate(
        ("(?<=a)b", "a++", r"\p{L}", "(?P<x>a)", "a{1,9999}", "[[:nope:]]", "[[:alpha:]]+"), 1
    ):
        await ear.hear(
            there.says(Kind.SUBSCRIPTIONS, revision=number, subscriptions=[{**LISTENER, "pattern": pattern}], known={})
        )
        ear.ask("select from peer_subscription where 'topic' ~ pattern")


@pytest.mark.parametrize("does", ["news", "orders", "subscriptions"])
async def test_another_home_of_the_same_name_is_not_listened_to(
    ear: Ear, caplog: pytest.LogCaptureFixture, does: str
) -> None:
    twin = Peer("here")
    said: dict[str, Callable[[], Any]] = {
        "news": lambda: twin.news({**CHILD, "state": "committed"}),
        "orders": lambda: twin.orders("cancel", CHILD),
        "subscriptions": lambda: twin.says(Kind.SUBSCRIPTIONS, revision=1, subscriptions=[LISTENER], known={}),
    }
    with caplog.at_level(logging.ERROR):
        await ear.hear(said[does](), Peer("other").says(Kind.CONFIRMED, revision=0))
    assert "two homes have one name" in caplog.text
    assert str(twin.sender.id) in caplog.text
    # It is known, so that neither starts again like this.
    assert ear.ask("select name, revision from peer order by 1") == [("here", 0), ("other", 0)]
    assert [ear.count(table) for table in ("peer_subscription", "foreign_child", "outbox", "dead_letter")] == [0] * 4


async def test_what_a_home_has_said_itself_does_nothing(ear: Ear) -> None:
    me = Peer("here")
    me.sender = replace(me.sender, id=(await ear.identity()).id)
    await ear.hear(me.says(Kind.SUBSCRIPTIONS, revision=1, subscriptions=[LISTENER], known={}))
    assert [ear.count(table) for table in ("peer", "peer_subscription", "outbox", "dead_letter")] == [0] * 4


async def test_whoever_speaks_in_the_name_of_another_home_is_not_heard(ear: Ear) -> None:
    body = Peer("there").says(Kind.CONFIRMED, revision=2).envelope.body
    await ear.hear(delivered(body, str(uuid.uuid4())))
    ((reason,),) = ear.ask("select reason from dead_letter")
    assert "is another home than the one that it says it is from" in reason
    assert ear.ask("select from peer") == []
