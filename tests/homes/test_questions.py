"""What a home does that is asked what is above a child, or is answered, however often and in whatever order."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from scoop_outbox.broker.protocol import Delivery
from scoop_outbox.message import uuid7
from scoop_outbox.wire.control import Kind
from tests.homes.ear import CHANNEL, Child, Ear, Peer, failure
from tests.homes.test_control_messages import parent_of


def asks(home: Peer, child: Child, question: str = "7", answer_to: str | None = None) -> Delivery:
    to = answer_to or home.sender.reply_to
    return home.says(Kind.QUESTION, question=question, child=child.said(1), answerTo=to)


def answers(home: Peer, question: object, *active: dict[str, Any]) -> Delivery:
    return home.says(Kind.ANSWER, question=str(question), active=list(active))


def said(ear: Ear) -> list[tuple[str, dict[str, Any]]]:
    """What was said of questions, and to whom."""
    rows = ear.ask("select topic, body from outbox order by seq")
    found = [(topic, json.loads(body)) for topic, body in rows]
    return [(topic, body) for topic, body in found if body["kind"] in (Kind.QUESTION, Kind.ANSWER)]


@pytest.mark.parametrize("state", ["running", "rolling_back", "parked"])
async def test_a_parent_that_has_not_ended_is_named(ear: Ear, there: Peer, state: str) -> None:
    child = Child(uuid7())
    parent = parent_of(ear, child, there)
    ear.execute("update run set state = %s", state)
    await ear.hear(asks(there, child))
    ((topic, body),) = said(ear)
    assert (topic, body["question"]) == (there.sender.reply_to, "7")
    assert body["active"] == [{"run": str(parent), "service": "orders", "saga": "order", "state": state}]


@pytest.mark.parametrize("state", ["committed", "rolled_back", "rollback_failed"])
async def test_above_a_parent_that_has_ended_and_has_none_there_is_nobody(ear: Ear, there: Peer, state: str) -> None:
    child = Child(uuid7())
    parent_of(ear, child, there)
    ear.execute("update run set state = %s", state)
    await ear.hear(asks(there, child), asks(there, Child(uuid7()), "8"))  # nor above what is not known
    assert [(body["question"], body["active"]) for _, body in said(ear)] == [("7", []), ("8", [])]


async def test_a_question_is_passed_on_to_who_is_above_and_answered_to_who_has_asked(ear: Ear, there: Peer) -> None:
    """Home `over` has launched what runs here, which has launched the child `there`."""
    over, middle, child = Peer("over"), Child(uuid7()), Child(uuid7())
    await ear.take_in(over.launched(middle))
    parent_of(ear, child, there)
    ear.execute("update child set run_id = %s", middle.run)
    await ear.hear(asks(there, child))
    ((topic, body),) = said(ear)
    assert (topic, body["active"][0]["run"]) == (there.sender.reply_to, str(middle.run))
    ear.execute("update run set state = 'committed'")
    await ear.hear(asks(there, child, "8"))
    _, (topic, body) = said(ear)
    assert (topic, body["question"], body["answerTo"]) == (over.sender.reply_to, "8", there.sender.reply_to)
    assert body["child"] == middle.said(1)


async def test_a_question_that_comes_back_to_who_has_asked_it_is_answered_there(ear: Ear, there: Peer) -> None:
    child = Child(uuid7())
    parent = parent_of(ear, child, there)
    question = asked(ear)
    await ear.hear(asks(there, child, str(question), CHANNEL))
    ((outcome, note),) = ear.ask("select outcome, note from request")
    assert (outcome, json.loads(note)) == ("refused above", [[str(parent), "orders", "order", "running"]])
    assert said(ear) == []


ACTIVE = {"run": str(uuid.uuid4()), "service": "orders", "saga": "order", "state": "running"}


def asked(ear: Ear) -> int:
    """Have a question asked; return its number."""
    ((number,),) = ear.ask(
        "insert into request (target, kind, outcome) values (gen_random_uuid(), 'rollback', 'asked above') returning id"
    )
    return int(number)


async def test_that_all_have_ended_stays_true_whatever_comes_late(ear: Ear, there: Peer) -> None:
    question = asked(ear)
    for active, outcome in (
        ([ACTIVE], "refused above"),
        ([ACTIVE], "refused above"),
        ([], "ended above"),
        ([ACTIVE], "ended above"),
    ):
        await ear.hear(answers(there, question, *active))
        assert ear.ask("select outcome from request") == [(outcome,)]


@pytest.mark.parametrize("question", ["99", "-1", "1.5", "a", "1" * 30, "²"])
async def test_an_answer_to_what_nobody_has_asked_does_nothing(ear: Ear, there: Peer, question: str) -> None:
    ear.execute("insert into request (target, kind) values (gen_random_uuid(), 'rollback')")  # one that waits
    await ear.hear(answers(there, question), answers(there, 1))
    assert ear.ask("select outcome, note from request") == [(None, None)]
    assert ear.count("dead_letter") == 0


@pytest.mark.parametrize(
    "parent", ["committed", "running", "rolling_back", "rollback_failed"], ids="its parent is {}".format
)
async def test_what_is_abandoned_counts_as_done_for_a_parent_that_has_committed(
    ear: Ear, there: Peer, parent: str
) -> None:
    child = Child(uuid7())
    parent_of(ear, child, there)
    ear.execute("update run set state = %s", parent)
    failed = {"state": "rollback_failed", "failure": failure("why"), "obstacle": failure("why not")}
    abandoned = there.news(child.said(3, **failed, abandoned=True))
    await ear.hear(there.news(child.said(2, **failed)))
    await ear.hear(abandoned, abandoned)
    assert ear.ask("select state, open, consumed, generation from child") == [
        ("rollback_failed", False, parent == "committed", 3)
    ]
    ((why,),) = ear.ask("select f.message from child c join failure f on f.id = c.failure")
    assert why == "why"
    await ear.hear(there.news(child.said(2, **failed)))
    assert ear.ask("select consumed from child") == [(parent == "committed",)]
