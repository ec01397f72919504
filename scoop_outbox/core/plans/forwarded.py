"""The plan of messages that another home of a service has received, and has passed on to this one.

They are taken in as if they had come here. They are not passed on again: homes that know of others at different moments
would send a message in a circle.
"""

from __future__ import annotations

from collections.abc import Sequence

from scoop_outbox.core.plans.claim import Hints
from scoop_outbox.core.plans.homes import Identity, read_identity
from scoop_outbox.core.plans.intake import (
    Unusable,
    burying,
    disbelief,
    intake_params,
    nobody_for,
    started_elsewhere,
    taking_in,
)
from scoop_outbox.core.statement import Plan, ask, statement
from scoop_outbox.message import Envelope
from scoop_outbox.wire.forwarded import Forwarded
from scoop_outbox.wire.sharing import passed_over
from scoop_outbox.wire.signature import ControlKeys
from scoop_outbox.wire.validation import defect

_POSITION = "forwarded"

Lost = tuple[str, Unusable]
"""A service, and a message for it that has become a dead letter."""


def take_in_forwarded(passed: Sequence[Forwarded], keys: ControlKeys | None, hints: Hints | None) -> Plan[list[Lost]]:
    """Take in what was passed on, in the transaction that is open.

    Args:
        passed: the messages.
        keys: one for which a third home waits has to be signed with one of them; None asks for no signature.
        hints: told which runs have mail.

    Returns:
        What could not be taken in.
    """
    services: dict[str, list[Forwarded]] = {}
    for one in passed:
        services.setdefault(one.service, []).append(one)
    if not services:
        return []
    home = yield from read_identity()
    lost: list[Lost] = []
    for service, given in services.items():
        unusable = yield from _take_in(service, given, home, keys, hints)
        lost += [(service, one) for one in unusable]
    return lost


def _take_in(
    service: str, passed: Sequence[Forwarded], home: Identity, keys: ControlKeys | None, hints: Hints | None
) -> Plan[list[Unusable]]:
    usable: list[Envelope] = []
    unusable: list[Unusable] = []
    elsewhere: dict[str, frozenset[str]] = {}
    for given in passed:
        one, reason = given.envelope, refusal(given, keys, home)
        if reason is None:
            usable.append(one)
            elsewhere[one.id] = passed_over(one, service, home.id, given.elsewhere)
        else:
            unusable.append(Unusable(one, _POSITION, reason))
    params = intake_params(usable, service, home, elsewhere)
    known, reported = started_elsewhere(usable, params)
    started = (yield from ask(*known, taking_in(params), *reported))[len(known)]
    if hints is not None:
        for run_id, of, saga, _ in started:
            hints.mail(of, saga, "", run_id, 0.0)
    begun = {str(message_id) for *_, message_id in started}
    lineages = dict(zip(params["ids"], params["lineages"], strict=True))
    left = [one.id for one in usable if one.id not in begun]
    (rows,) = yield from ask(
        statement("read_unhandled", ids=left, lineages=[lineages[one] for one in left], service=service)
    )
    unhandled = {str(row[0]) for row in rows}
    unusable += [Unusable(one, _POSITION, nobody_for(service, one.topic)) for one in usable if one.id in unhandled]
    if unusable:
        yield from ask(burying(unusable, service))
    return unusable


def refusal(given: Forwarded, keys: ControlKeys | None, home: Identity) -> str | None:
    """Say why a message is not taken in, if so: as whoever has received it has seen to, if it is one of us."""
    return defect(given.envelope) or disbelief(keys, given.envelope, home, given.service)
