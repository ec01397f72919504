"""Plans of ancestors: whether all runs above a part of a hierarchy have ended, where these live in other homes.

Whoever is asked to undo a part knows what is above it as far as the first run whose parent lives elsewhere. That
parent's home is asked, which passes the question on to the next one, unless it knows the answer: a run that has not
ended. Whoever knows answers the home that has asked first. That all have ended stays true, and is kept.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Any

from scoop_outbox.answers import MOST_ACTIVE, ActiveRun
from scoop_outbox.core.plans.claim import Hints
from scoop_outbox.core.plans.homes import Identity, read_identity
from scoop_outbox.core.statement import BEGIN, COMMIT, Plan, Rows, Statement, ask, statement
from scoop_outbox.wire.control import Answer, ChildRef, Kind, Question, body_of

ASKED, REFUSED, ENDED = "asked above", "refused above", "ended above"
"""What has become of a question, as a request says it: there is no answer yet; some have not ended; all have."""
PAUSES = (0.02, 0.03, 0.05, 0.1, *[0.2] * 24)
"""Seconds after which the answer is looked for, one after the other. Then whoever asks is told that there is none."""


@dataclass(frozen=True, slots=True)
class Top:
    """The run at or above a target whose parent lives in another home.

    Attributes:
        child: it, as its parent's home knows it.
        reply_to: where that home is told something.
        home: its name.
        is_launched_there: whether the target is a message that was launched there: which sagas handle it, only that
            home knows.
    """

    child: ChildRef
    reply_to: str
    home: str
    is_launched_there: bool


def top_of(rows: Rows) -> Top | None:
    """Return what `read_top_elsewhere` has answered."""
    for message, run, service, saga, generation, reply_to, home, launched in rows:
        return Top(ChildRef(message, run, service, saga, generation), reply_to, home, launched)
    return None


def ask_above(target: uuid.UUID, top: Top, hints: Hints | None) -> Plan[int]:
    """Ask whether all runs above a target have ended, and return the number of the question.

    Args:
        target: what somebody wants to undo.
        top: the run whose parent's home is asked.
        hints: told that something is to be published; None leaves it to the relay to find it.
    """
    _, asked = yield from ask(BEGIN, statement("ask_above", target=target))
    question: int = asked[0][0]
    identity = yield from read_identity()
    assert identity.control_topic is not None  # noqa: S101 - who has a parent in another home cooperates
    yield from ask(_question(identity, top, str(question), identity.control_topic), COMMIT)
    if hints is not None:
        hints.outbox()
    return question


def hear_from_above(target: uuid.UUID, top: Top, hints: Hints | None) -> Plan[tuple[ActiveRun, ...] | None]:
    """Ask whether all runs above a target have ended, and wait for the answer for some seconds.

    Returns:
        Those that have not ended; None if nobody has answered.
    """
    question = yield from ask_above(target, top, hints)
    for pause in (*PAUSES, None):
        (rows,) = yield from ask(statement("read_answer_from_above", question=question))
        for outcome, note in rows:
            if outcome != ASKED:
                return tuple(ActiveRun(uuid.UUID(run), *names) for run, *names in json.loads(note or "[]"))
        if pause is not None:
            yield from ask(statement("pause", seconds=pause))
    return None


def answer_question(asked: Question) -> Plan[None]:
    """Answer which runs above a child have not ended, or pass the question on; in the transaction that is open."""
    child = asked.child
    look = statement(
        "read_above_child", message=child.message, service=child.service, saga=child.saga, most=MOST_ACTIVE
    )
    (rows,) = yield from ask(look)
    identity = yield from read_identity()
    active = [ActiveRun(*row[:4]) for row in rows if row[4]]
    if not active:
        for *_, message, service, saga, generation, reply_to in rows:
            top = Top(ChildRef.of(message, service, saga, generation), reply_to, "", is_launched_there=False)
            yield from ask(_question(identity, top, asked.question, asked.answer_to))
            return
    if asked.answer_to == identity.control_topic:  # it has come back to where it was asked: what a home says itself
        yield from take_in_answer(Answer(asked.question, active))  # it does not hear
        return
    said = {"question": asked.question, "active": [_said(one) for one in active]}
    body = body_of(identity.sender, Kind.ANSWER, said)
    yield from ask(statement("send_control", topic=asked.answer_to, key=str(identity.id), body=body))


def take_in_answer(told: Answer) -> Plan[None]:
    """Keep what is said of the runs above; in the transaction that is open. An answer that nobody waits for is none."""
    if not (told.question.isascii() and told.question.isdigit() and len(told.question) <= len(str(1 << 62))):
        return
    runs = [[str(one.id), one.service, one.saga, one.state] for one in told.active[:MOST_ACTIVE]]
    outcome = REFUSED if runs else ENDED
    note = json.dumps(runs) if runs else None
    yield from ask(statement("store_answer_from_above", question=int(told.question), outcome=outcome, note=note))


def _question(identity: Identity, top: Top, question: str, answer_to: str) -> Statement:
    said = {"question": question, "child": top.child.to_json(), "answerTo": answer_to}
    body = body_of(identity.sender, Kind.QUESTION, said)
    return statement("send_control", topic=top.reply_to, key=str(identity.id), body=body)


def _said(one: ActiveRun) -> dict[str, Any]:
    return {"run": str(one.id), "service": one.service, "saga": one.saga, "state": one.state}
