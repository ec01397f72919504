"""Control messages: what homes say to each other about runs, and who listens where. See docs/protocol.md.

A control message is a JSON object in the body of an ordinary message. It is read here without a look at any database:
what is malformed, or of a version that nobody here knows, is refused in words and becomes a dead letter.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from scoop_outbox.answers import ActiveRun
from scoop_outbox.wire.forwarded import Forwarded, read_forwarded
from scoop_outbox.wire.headers import id_of, run_id
from scoop_outbox.wire.members import (
    MalformedControl,
    failure_of,
    json_of,
    number_of,
    object_of,
    objects_of,
    text_of,
    texts_of,
    time_of,
    uuid_of,
)

VERSION = 1
PREFIX = "scoop."
"""What the topics begin with on which homes speak, unless somebody has chosen something else."""

_CONTROL_TOPIC = re.compile(r"(.*[.])?control[.][A-Za-z0-9._-]{1,100}", re.DOTALL)
_GENERATIONS = 1 << 30
"""The most that the number of a report can be: whoever goes on counting from there has room."""


class Kind(StrEnum):
    """What a control message is about."""

    SUBSCRIPTIONS = "subscriptions"
    CONFIRMED = "confirmed"
    NEWS = "news"
    ORDERS = "orders"
    FORWARDED = "forwarded"
    QUESTION = "question"
    ANSWER = "answer"


class Order(StrEnum):
    """What a parent's home asks of children."""

    ROLL_BACK = "roll_back"
    CANCEL = "cancel"
    WHERE = "where"
    RELEASE = "release"


class ReportedState(StrEnum):
    """Where a child stands, as its home reports it."""

    STARTED = "started"
    COMMITTED = "committed"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    ROLLBACK_FAILED = "rollback_failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Sender:
    """The home that speaks.

    Attributes:
        id: of the home.
        name: of the home, as people know it.
        reply_to: the topic on which it is told something.
        at: when it said it, by the clock of its database; None if it did not say.
    """

    id: uuid.UUID
    name: str
    reply_to: str
    at: datetime | None = None

    def to_json(self) -> dict[str, str]:
        """Return the form on the wire."""
        said = {"id": str(self.id), "name": self.name, "replyTo": self.reply_to}
        return said if self.at is None else {**said, "at": self.at.isoformat()}


@dataclass(frozen=True, slots=True)
class Listener:
    """A saga, with names that it had before, and what it listens on: by name, other names, or a regular expression."""

    topic: str
    service: str
    saga: str
    pattern: str | None = None
    names: tuple[str, ...] = ()
    formerly: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the form on the wire: where there are no former names, as older versions do."""
        said = {"topic": self.topic, "pattern": self.pattern, "names": list(self.names)}
        former = {"formerly": list(self.formerly)} if self.formerly else {}
        return {**said, "service": self.service, "saga": self.saga, **former}


@dataclass(frozen=True, slots=True)
class Subscriptions:
    """All who listen in a home.

    Attributes:
        revision: grows with each change of the list.
        listeners: who.
        known: of other homes, by id, the revision that the sender has taken in.
        restored: whether the sender was restored from an older backup: children there are to be asked after.
        draining: whether other homes that have these sagas, too, are to be preferred.
    """

    revision: int
    listeners: Sequence[Listener]
    known: Mapping[uuid.UUID, int]
    restored: bool = False
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The sender has taken in this revision of the receiver's subscriptions.

    Attributes:
        revision: which.
        waiting: how many children in the receiver's home the sender waits for at that moment; None if it does not say.
    """

    revision: int
    waiting: int | None = None


@dataclass(frozen=True, slots=True)
class ChildRef:
    """A child: the message, the saga that handles it, and the id of the run, which follows from these.

    Attributes:
        generation: the number of the last report that the sender of an order has had; in a report its own number.
    """

    message: uuid.UUID
    run: uuid.UUID
    service: str
    saga: str
    generation: int

    @classmethod
    def of(cls, message: uuid.UUID, service: str, saga: str, generation: int) -> ChildRef:
        """Return a child by what its run's id is made of."""
        return cls(message, run_id(message, service, saga), service, saga, generation)

    def to_json(self) -> dict[str, Any]:
        """Return the form on the wire."""
        return {
            "message": str(self.message),
            "run": str(self.run),
            "service": self.service,
            "saga": self.saga,
            "generation": self.generation,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """Where a child stands.

    Attributes:
        child: which one; the generation is the number of this report.
        state: where it stands.
        result: as JSON text, if it has committed and left one.
        failure: why it was rolled back, as a JSON object.
        obstacle: why it could not be rolled back, as a JSON object.
        failed_at: when it failed, by the clock of its home: failures are told in that order.
        abandoned: whether somebody has given it up that could not be rolled back: it counts as done.
    """

    child: ChildRef
    state: ReportedState
    result: str | None = None
    failure: Mapping[str, Any] | None = None
    obstacle: Mapping[str, Any] | None = None
    failed_at: datetime | None = None
    abandoned: bool = False


@dataclass(frozen=True, slots=True)
class News:
    """Where children stand, told to the home of their parents."""

    reports: Sequence[Report]


@dataclass(frozen=True, slots=True)
class Orders:
    """What is asked of children by the home of their parent.

    Attributes:
        order: what.
        children: of whom.
        reason: why, as a JSON object.
        context: what compensations see, as JSON text.
        rollback_by: until when a rollback has to end.
    """

    order: Order
    children: Sequence[ChildRef]
    reason: Mapping[str, Any] | None = None
    context: str | None = None
    rollback_by: datetime | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """Whether all runs above a child have ended, asked of the home of its parent by who wants to undo it.

    Attributes:
        question: names it in the answer.
        child: which one.
        answer_to: the topic on which the answer is expected: whoever does not know all that is above passes it on.
    """

    question: str
    child: ChildRef
    answer_to: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Which runs above a child have not ended; none: all have."""

    question: str
    active: Sequence[ActiveRun]


Content = Subscriptions | Confirmed | News | Orders | Forwarded | Question | Answer


@dataclass(frozen=True, slots=True)
class Control:
    """A control message."""

    sender: Sender
    content: Content


def is_control_topic(topic: str) -> bool:
    """Tell whether a topic can be one on which a home is told something, whatever it begins with."""
    return _CONTROL_TOPIC.fullmatch(topic) is not None


def is_reserved(topic: str) -> bool:
    """Tell whether homes speak on a topic, however it is written, unless they have chosen other names."""
    name = topic.rpartition("/")[2]
    return name == homes_topic(PREFIX) or name.startswith(control_topic(PREFIX, ""))


def control_topic(prefix: str, home: str) -> str:
    """Return the topic on which a home is told something."""
    return f"{prefix}control.{home}"


def homes_topic(prefix: str) -> str:
    """Return the topic on which all homes are told something."""
    return f"{prefix}homes"


def body_of(sender: Sender, kind: Kind, members: Mapping[str, Any]) -> bytes:
    """Return the body of a control message."""
    said = {"version": VERSION, "kind": kind.value, "from": sender.to_json(), **members}
    return json.dumps(said, separators=(",", ":")).encode()


def read_control(body: bytes) -> Control:
    """Read the body of a control message.

    Raises:
        MalformedControl: it is none, or of a version or kind that is not known here.
    """
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        raise MalformedControl("it is no JSON") from None
    said = object_of(said, "it")
    if said.get("version") != VERSION:
        raise MalformedControl(f"it is of version {said.get('version')!r:.40}, and only {VERSION} is known here")
    if said.get("kind") not in list(Kind):
        raise MalformedControl(f"its kind {said.get('kind')!r:.40} is not known here")
    return Control(_sender(said), _READERS[Kind(said["kind"])](said))


def _sender(said: Mapping[str, Any]) -> Sender:
    sender = object_of(said.get("from"), "from")
    if not is_control_topic(text_of(sender, "replyTo")):
        raise MalformedControl("replyTo is no control topic")
    return Sender(uuid_of(sender, "id"), text_of(sender, "name"), text_of(sender, "replyTo"), time_of(sender, "at"))


def _subscriptions(said: Mapping[str, Any]) -> Subscriptions:
    known = object_of(said.get("known") or {}, "known")
    return Subscriptions(
        number_of(said, "revision", _GENERATIONS),
        [_listener(one) for one in objects_of(said, "subscriptions")],
        {home: number_of(known, text) for text in known if (home := id_of(text)) is not None},
        said.get("restored") is True,
        said.get("draining") is True,
    )


def _listener(said: Mapping[str, Any]) -> Listener:
    names, formerly = texts_of(said, "names"), texts_of(said, "formerly")
    # Whether it is one says the database, which is who reads it.
    pattern = None if said.get("pattern") is None else text_of(said, "pattern")
    return Listener(text_of(said, "topic"), text_of(said, "service"), text_of(said, "saga"), pattern, names, formerly)


def _confirmed(said: Mapping[str, Any]) -> Confirmed:
    waiting = None if said.get("waiting") is None else number_of(said, "waiting")
    return Confirmed(number_of(said, "revision", _GENERATIONS), waiting)


def _news(said: Mapping[str, Any]) -> News:
    return News([_report(one) for one in objects_of(said, "children")])


def _report(said: Mapping[str, Any]) -> Report:
    if said.get("state") not in list(ReportedState):
        raise MalformedControl(f"the state {said.get('state')!r:.40} of a child is not known here")
    return Report(
        _child(said),
        ReportedState(said["state"]),
        json_of(said["result"], "result") if "result" in said else None,
        failure_of(said, "failure"),
        failure_of(said, "obstacle"),
        time_of(said, "failedAt"),
        said.get("abandoned") is True,
    )


def _orders(said: Mapping[str, Any]) -> Orders:
    if said.get("order") not in list(Order):
        raise MalformedControl(f"the order {said.get('order')!r:.40} is not known here")
    context = said.get("context")
    return Orders(
        Order(said["order"]),
        [_child(one) for one in objects_of(said, "children")],
        failure_of(said, "reason"),
        None if context is None else json_of(object_of(context, "context"), "context"),
        time_of(said, "rollbackBy"),
    )


def _question(said: Mapping[str, Any]) -> Question:
    if not is_control_topic(text_of(said, "answerTo")):
        raise MalformedControl("answerTo is no control topic")
    child = _child(object_of(said.get("child"), "child"))
    return Question(text_of(said, "question"), child, text_of(said, "answerTo"))


def _answer(said: Mapping[str, Any]) -> Answer:
    return Answer(text_of(said, "question"), [_active(one) for one in objects_of(said, "active")])


def _active(said: Mapping[str, Any]) -> ActiveRun:
    return ActiveRun(uuid_of(said, "run"), *(text_of(said, name) for name in ("service", "saga", "state")))


def _child(said: Mapping[str, Any]) -> ChildRef:
    return ChildRef(
        uuid_of(said, "message"),
        uuid_of(said, "run"),
        text_of(said, "service"),
        text_of(said, "saga"),
        number_of(said, "generation", _GENERATIONS),
    )


_READERS: Mapping[Kind, Callable[[Mapping[str, Any]], Content]] = {
    Kind.SUBSCRIPTIONS: _subscriptions,
    Kind.CONFIRMED: _confirmed,
    Kind.NEWS: _news,
    Kind.ORDERS: _orders,
    Kind.FORWARDED: read_forwarded,
    Kind.QUESTION: _question,
    Kind.ANSWER: _answer,
}
