"""Plans of dead letters: listing, reading, replaying and dropping what could not be published or taken in."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from scoop_outbox.core.plans.control_letters import Listening, take_in_letter
from scoop_outbox.core.plans.homes import Identity
from scoop_outbox.core.plans.intake import intake_params, started_elsewhere, taking_in
from scoop_outbox.core.plans.sharing import forwarding, read_sharing
from scoop_outbox.core.statement import BEGIN, COMMIT, ROLLBACK, Plan, Statement, ask, statement
from scoop_outbox.errors import PayloadError
from scoop_outbox.message import Envelope
from scoop_outbox.wire import headers as wire
from scoop_outbox.wire import validation
from scoop_outbox.wire.sharing import Place, Route, route


class Origin(StrEnum):
    """Who had to give a message up."""

    RELAY = "relay"
    INTAKE = "intake"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters are meant: those that fit all that is given.

    Attributes:
        origin: who gave them up.
        topic: where they were published, or should have been.
        service: who could not take them in.
    """

    origin: Origin | None = None
    topic: str | None = None
    service: str | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that could not be published or taken in, without what it holds.

    Attributes:
        id: its number; later ones are higher.
        created_at: when it was given up, by the database's clock.
        message_id: the message's id; for a message from outside, the one that was made for it.
        origin: who gave it up.
        service: who could not take it in; None when it could not be published.
        topic: of the message.
        position: where it stood at the broker, as in `orders[3]@1742`; None when it never got there.
        reason: why, in words.
        size: bytes of its body.
    """

    id: int
    created_at: datetime
    message_id: uuid.UUID | None
    origin: Origin
    service: str | None
    topic: str
    position: str | None
    reason: str
    size: int


@dataclass(frozen=True, slots=True)
class Contents:
    """A dead letter with all that it holds.

    Attributes:
        letter: what is known of it.
        key: of the message; a binary one as hexadecimal digits behind a backslash and an x.
        body: bytes, as they came.
        content_type: of the body.
        headers: all of them, ours too.
    """

    letter: DeadLetter
    key: str | None
    body: bytes
    content_type: str
    headers: Mapping[str, str]

    @property
    def envelope(self) -> Envelope:
        """The message as it would travel."""
        message_id = self.letter.message_id or uuid.UUID(int=0)
        return Envelope(str(message_id), self.letter.topic, self.key, self.body, self.content_type, self.headers)


class ReplayStatus(StrEnum):
    """What became of a replay."""

    REPLAYED = "replayed"
    REFUSED = "refused"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Replay:
    """The answer to a replay.

    Attributes:
        letter: the number that was asked for.
        status: whether it was replayed; there may be no such letter, or it may still be defective.
        reason: why it was refused, or where it went.
    """

    letter: int
    status: ReplayStatus
    reason: str


def list_dead_letters(selection: Selection, *, after: int, most: int) -> Plan[list[DeadLetter]]:
    """Return dead letters by number, those above `after`, at most so many."""
    (rows,) = yield from ask(
        statement(
            "list_dead_letters",
            origin=None if selection.origin is None else selection.origin.value,
            topic=selection.topic,
            service=selection.service,
            after=after,
            most=most,
        )
    )
    return [_letter(row) for row in rows]


def newest_dead_letter() -> Plan[int]:
    """Return the highest number of a dead letter; 0 when there is none."""
    (rows,) = yield from ask(statement("newest_dead_letter"))
    number: int = rows[0][0]
    return number


def read_dead_letter(letter: int) -> Plan[Contents | None]:
    """Return a dead letter with all that it holds; None when there is none of this number."""
    (rows,) = yield from ask(statement("read_dead_letter", letter=letter))
    return _contents(rows[0]) if rows else None


def drop_dead_letters(letters: Sequence[int]) -> Plan[list[int]]:
    """Delete dead letters for good, and return the numbers of those that were there."""
    (rows,) = yield from ask(statement("drop_dead_letters", letters=list(letters)))
    return sorted(row[0] for row in rows)


def replay(letter: int, listening: Listening) -> Plan[Replay]:
    """Put a message back where it was given up, in one transaction.

    What the relay could not publish goes back into the outbox; what a service could not take in is taken in for that
    service, and what another home has said is taken in as if it came now. What can still not be taken in stays a dead
    letter.
    """
    _, rows, home = yield from ask(BEGIN, statement("read_dead_letter", letter=letter), statement("read_identity"))
    if not rows:
        yield from ask(ROLLBACK)
        return Replay(letter, ReplayStatus.UNKNOWN, "there is no such dead letter")
    contents = _contents(rows[0])
    drop = statement("drop_dead_letters", letters=[letter])
    if contents.letter.origin is Origin.RELAY:
        yield from ask(statement("relaunch", letter=letter), drop, COMMIT)
        return Replay(letter, ReplayStatus.REPLAYED, "back in the outbox")
    identity = Identity(*home[0])
    if contents.letter.service is not None and contents.letter.service == identity.control_topic:
        problem = yield from take_in_letter(contents.envelope, contents.letter.reason, identity, listening, drop)
        done = "taken in as said by another home"
    else:
        problem, done = yield from _take_in(contents, identity, drop)
    if problem is None:
        return Replay(letter, ReplayStatus.REPLAYED, done)
    yield from ask(ROLLBACK)
    return Replay(letter, ReplayStatus.REFUSED, problem)


def _take_in(contents: Contents, identity: Identity, drop: Statement) -> Plan[tuple[str | None, str]]:
    """Take a message in for its service, and commit, if it can be now.

    Returns:
        Why it cannot, or None; and where it went.
    """
    defect = _defect(contents.envelope)
    if defect is not None:
        return defect, ""
    service, envelope = contents.letter.service, contents.envelope
    cooperates = service is not None and identity.name is not None
    routed, passing = Route(), []
    if service is not None and cooperates:
        sharing = (yield from read_sharing(service, [envelope.topic]))[envelope.topic]
        routed = route(envelope, Place(service, identity.id, sharing.known, sharing.homes, sharing.names))
        passing = forwarding(identity, service, [(envelope, routed)])
    if not routed.stays:
        yield from ask(*passing, drop, COMMIT)
        return None, f"passed on to another home of {service}"
    params = intake_params([envelope], service, identity, {envelope.id: routed.elsewhere})
    known, reported = started_elsewhere([envelope], params)
    handles = statement("is_handled", message=envelope.id, service=service)
    answers = yield from ask(*known, taking_in(params), *reported, *passing, handles, drop)
    started, handled = answers[len(known)], answers[-2]
    if not handled[0][0]:
        return _nobody(envelope, service), ""
    yield from ask(COMMIT)
    return None, f"taken in by {service}" + ("" if started else " already")


def _nobody(envelope: Envelope, service: str | None) -> str:
    """Say why a service does nothing with a message that it can take in."""
    if wire.LINEAGE in envelope.headers:
        return (
            f"no run of {service} waits for it, and none can start: no saga of the service is subscribed to "
            f"{envelope.topic!r}, or its handler has been retired"
        )
    return f"no saga of {service} is subscribed to {envelope.topic!r}: start the service with one, then replay this"


def _defect(envelope: Envelope) -> str | None:
    """Say why a message can still not be taken in, as far as its headers and body tell."""
    defect = validation.defect(envelope)
    if defect is None and wire.ID not in envelope.headers:
        try:
            envelope.check(None)
        except (PayloadError, RecursionError) as error:
            return str(error)
    return defect


def _letter(row: Sequence[Any]) -> DeadLetter:
    number, created_at, message_id, origin, service, topic, position, reason, size = row
    return DeadLetter(number, created_at, message_id, Origin(origin), service, topic, position, reason, size)


def _contents(row: Sequence[Any]) -> Contents:
    key, body, content_type, headers = row[9:]
    return Contents(_letter(row[:9]), key, bytes(body), content_type, headers)
