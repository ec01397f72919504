"""The plan of dead letters of the control channel: what other homes have said, and can be understood now, is taken in.

It may be believed or understood since, because this home has other keys, or is of a newer version. Whatever it says is
taken in as if it came now, late: what has been heard since counts more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scoop_outbox.core.plans.control import take_in_control
from scoop_outbox.core.plans.failures import Known
from scoop_outbox.core.plans.forwarded import refusal
from scoop_outbox.core.plans.homes import Identity
from scoop_outbox.core.statement import COMMIT, Plan, Statement, ask
from scoop_outbox.message import Envelope
from scoop_outbox.wire import validation
from scoop_outbox.wire.control import Control, read_control
from scoop_outbox.wire.forwarded import Forwarded
from scoop_outbox.wire.headers import HOME
from scoop_outbox.wire.members import MalformedControl
from scoop_outbox.wire.signature import ControlKeys

NOT_BELIEVED = "not believed"
"""What the reason of a dead letter begins with that none of the control keys has signed."""


@dataclass(frozen=True, slots=True)
class Listening:
    """What it takes to hear other homes.

    Attributes:
        known: the failures that this process knows.
        keys: what they say has to be signed with one of them; None asks for no signature.
    """

    known: Known
    keys: ControlKeys | None


def spoken(headers: Mapping[str, str], body: bytes) -> Control:
    """Read what another home has said.

    Raises:
        MalformedControl: it is no control message, or of a version or kind that is not known here.
    """
    control = read_control(body)
    # Whoever may launch could speak in the name of another home: what is published carries its own.
    if headers.get(HOME) != str(control.sender.id):
        raise MalformedControl(f"its header {HOME} is another home than the one that it says it is from")
    return control


def take_in_letter(
    envelope: Envelope, reason: str, identity: Identity, listening: Listening, drop: Statement
) -> Plan[str | None]:
    """Take in a dead letter of the control channel, in the transaction that is open, and end that; if it can be now.

    Args:
        envelope: the message.
        reason: why it is a dead letter.
        identity: this home.
        listening: what it takes to hear other homes.
        drop: forgets the dead letter.

    Returns:
        Why it can still not be taken in, with the transaction still open; None when it was.
    """
    problem = validation.defect(envelope) or _disbelief(envelope, reason, listening.keys)
    if problem is not None:
        return problem
    try:
        control = spoken(envelope.headers, envelope.body)
    except MalformedControl as error:
        return f"no control message: {error}"
    problem = _misheard(control, identity, listening.keys)
    if problem is not None:
        return problem
    noticed = yield from take_in_control([control], listening.known, None, keys=listening.keys, begin=(), end=(drop,))
    if noticed.dead_letters:
        return noticed.dead_letters[0][1].reason
    yield from ask(COMMIT)
    return None


def _misheard(control: Control, identity: Identity, keys: ControlKeys | None) -> str | None:
    """Say why a control message is not for this home, or what it passes on is not believed."""
    if identity.id == control.sender.id:
        return "this home has said it itself"
    if identity.name == control.sender.name:
        return f"another home, {control.sender.id}, has the name of this one"
    return refusal(control.content, keys, identity) if isinstance(control.content, Forwarded) else None


def _disbelief(envelope: Envelope, reason: str, keys: ControlKeys | None) -> str | None:
    if keys is not None:
        problem = keys.problem(envelope.headers, envelope.body)
        return None if problem is None else f"{NOT_BELIEVED}: {problem}"
    if reason.startswith(NOT_BELIEVED):
        return f"{NOT_BELIEVED}: this process has no control keys, and the home has some"
    return None
