"""Plans of intake: messages from the outbox or a broker become runs of this home, each once."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scoop_outbox._deadlines import Deadlines
from scoop_outbox.core.plans.claim import Hints
from scoop_outbox.core.plans.homes import Identity
from scoop_outbox.core.statement import BEGIN, COMMIT, Plan, Statement, ask, statement
from scoop_outbox.message import Envelope
from scoop_outbox.wire.headers import (
    CONTEXT,
    DEADLINES,
    EXPECTS,
    HOME,
    LAUNCHED_AT,
    LINEAGE,
    PREFIX,
    REPLY_TO,
    storable,
)
from scoop_outbox.wire.sharing import expected
from scoop_outbox.wire.signature import ControlKeys

_NOWHERE: Mapping[str, frozenset[str]] = {}


@dataclass(frozen=True, slots=True)
class Unusable:
    """A message that came in and cannot be taken in, with where it stood and why."""

    envelope: Envelope
    position: str
    reason: str


def take_in(
    envelopes: Sequence[Envelope],
    hints: Hints,
    *,
    service: str | None = None,
    home: Identity | None = None,
    elsewhere: Mapping[str, frozenset[str]] = _NOWHERE,
    passing: Sequence[Statement] = (),
    unusable: Sequence[Unusable] = (),
) -> Plan[list[str]]:
    """Take messages into this home: each once, and one run for each saga that is to handle it.

    Who is waited for by a run of this home was frozen when it launched the message. Whoever else is subscribed when it
    is first taken in handles it too, in a late run that nobody waits for. Of a message that another home has launched,
    those are children whom that home says it waits for. Any other message starts a root of each saga that is subscribed
    then. Messages that were taken in before change nothing.

    Args:
        envelopes: the messages.
        hints: told which runs have mail, and which messages are handled by nobody.
        service: take in for this service only; None is all that share the home.
        home: this home. None when they cannot but be our own.
        elsewhere: by message, the sagas of the service that handle it in other homes.
        passing: what tells these homes in the same transaction.
        unusable: messages that become dead letters of this service in the same transaction.

    Returns:
        The ids of messages that nobody of the service handles, has handled or was to handle.
    """
    params = intake_params(envelopes, service, home, elsewhere)
    known, reported = started_elsewhere(envelopes, params)
    buried = [burying(unusable, service)] if unusable else []
    taking = taking_in(params)
    started = (yield from ask(BEGIN, *known, taking, *reported, *passing, *buried, COMMIT))[1 + len(known)]
    for run_id, of, saga, _ in started:
        hints.mail(of, saga, "", run_id, 0.0)
    if reported or passing:
        hints.outbox()
    begun = {str(message_id) for *_, message_id in started}
    left = [envelope.id for envelope in envelopes if envelope.id not in begun]
    if service is None:
        for message_id in left:
            hints.ended(uuid.UUID(message_id))
    if service is None or not left:
        return []
    # Most of them come again.
    lineages = dict(zip(params["ids"], params["lineages"], strict=True))
    above = [lineages[message_id] for message_id in left]
    (unhandled,) = yield from ask(statement("read_unhandled", ids=left, lineages=above, service=service))
    return [str(row[0]) for row in unhandled]


def bury(unusable: Sequence[Unusable], service: str) -> Plan[None]:
    """Make dead letters of messages that a service cannot take in; what is one already stays the same one."""
    yield from ask(BEGIN, burying(unusable, service), COMMIT)


def read_listening(service: str, topics: Sequence[str]) -> Plan[dict[str, set[str]]]:
    """Return which sagas of a service are subscribed to each of some topics, as the home knows it."""
    (rows,) = yield from ask(statement("read_listening", service=service, topics=list(topics)))
    found: dict[str, set[str]] = {topic: set() for topic in topics}
    for topic, saga in rows:
        found[topic].add(saga)
    return found


def taking_in(params: Mapping[str, Any]) -> Statement:
    """Return the statement that takes in what parameters say: one for what other homes wait for costs more."""
    return statement("take_in_across", **params) if "homes" in params else statement("take_in", **params)


def started_elsewhere(
    envelopes: Sequence[Envelope], params: Mapping[str, Any]
) -> tuple[list[Statement], list[Statement]]:
    """Return what tells other homes that runs have begun for which they wait: what comes before `take_in`, and behind.

    Nothing if there can be none.
    """
    told = [
        (envelope.id, home, envelope.headers[REPLY_TO])
        for envelope, home in zip(envelopes, params.get("homes", ()), strict=False)
        if home is not None
    ]
    if not told:
        return [], []
    ids, homes, reply_to = map(list, zip(*told, strict=True))
    known = statement("know_peers", homes=homes, reply_to=reply_to)
    return [known], [statement("report_started", ids=ids, homes=homes, service=params["service"])]


def waits_elsewhere(envelope: Envelope, home: Identity | None, service: str | None) -> bool:
    """Tell whether another home waits for a message to be handled by a service; None is any."""
    if home is None or EXPECTS not in envelope.headers or REPLY_TO not in envelope.headers:
        return False
    if envelope.headers.get(HOME, str(home.id)) == str(home.id):
        return False
    return bool(expected(envelope.headers, service))


def disbelief(keys: ControlKeys | None, envelope: Envelope, home: Identity | None, service: str) -> str | None:
    """Say why it is not believed that other homes wait for a service to handle a message, or are to handle it, if so.

    A home without a name shares nothing: it has no part in what is to be handled in a home that is named.
    """
    told = [] if home is None else expected(envelope.headers, service)
    others = [one for one in told if home is not None and one.home not in (None, home.id)]
    if others and home is not None and home.name is None:
        return (
            f"saga {others[0].saga!r} of {service} is to handle it in home {others[0].home}, which shares its group or "
            "queue with this one. This one has no name: give it one (SCOOP_OUTBOX_HOME), or a group of its own"
        )
    waits = waits_elsewhere(envelope, home, service)
    problem = keys.problem(envelope.headers, envelope.body) if keys is not None and (waits or others) else None
    return None if problem is None else f"another home is said to {'wait for' if waits else 'handle'} it, but {problem}"


def nobody_for(service: str, topic: str) -> str:
    """Say that no saga of a service is there for a message, and what to do about it."""
    return (
        f"no saga of {service} listens on {topic!r}: what brings it here lets in too much, or a saga is "
        "missing; start the service with the saga, then replay this"
    )


def intake_params(
    envelopes: Sequence[Envelope],
    service: str | None,
    home: Identity | None,
    elsewhere: Mapping[str, frozenset[str]] = _NOWHERE,
) -> dict[str, Any]:
    """Return the parameters of `take_in`; see the plan of that name."""

    def lineage(envelope: Envelope) -> str | None:
        foreign = home is not None and envelope.headers.get(HOME) != str(home.id)
        return None if foreign else envelope.headers.get(LINEAGE)

    params = {
        "ids": [envelope.id for envelope in envelopes],
        "topics": [envelope.topic for envelope in envelopes],
        "keys": [envelope.key for envelope in envelopes],
        "bodies": [envelope.body for envelope in envelopes],
        "content_types": [envelope.content_type for envelope in envelopes],
        "headers": [json.dumps(_own(envelope)) for envelope in envelopes],
        "lineages": [lineage(envelope) for envelope in envelopes],
        "contexts": [envelope.headers.get(CONTEXT) for envelope in envelopes],
        "launched_at": [envelope.headers.get(LAUNCHED_AT) for envelope in envelopes],
        "deadlines": [_deadlines(envelope) for envelope in envelopes],
        "service": service,
    }
    waits = [waits_elsewhere(envelope, home, service) for envelope in envelopes]
    shared = [elsewhere.get(envelope.id, frozenset()) for envelope in envelopes]
    if any(waits) or any(shared):
        from_there = list(zip(envelopes, waits, strict=True))
        params["homes"] = [uuid.UUID(envelope.headers[HOME]) if waits else None for envelope, waits in from_there]
        params["above"] = [envelope.headers.get(LINEAGE) if waits else None for envelope, waits in from_there]
        params["expects"] = [
            _expects(envelope, service, others) if waits or others else None
            for (envelope, waits), others in zip(from_there, shared, strict=True)
        ]
    return params


def _expects(envelope: Envelope, service: str | None, elsewhere: frozenset[str]) -> str:
    """Return who is waited for, or handles a message elsewhere, and whether here."""
    named = [(one.service, one.saga) for one in expected(envelope.headers, service)]
    others = [(service, saga) for saga in sorted(elsewhere) if (service, saga) not in named]
    return json.dumps([[of, saga, saga not in elsewhere] for of, saga in (*named, *others)])


def _deadlines(envelope: Envelope) -> str | None:
    """Return the deadlines of a message as they are stored, whatever its producer has put around them."""
    text = envelope.headers.get(DEADLINES)
    return None if text is None else Deadlines.from_json(json.loads(text)).dumps()


def burying(unusable: Sequence[Unusable], service: str | None) -> Statement:
    """Return the statement that makes dead letters of messages; what is one already stays the same one."""
    return statement(
        "bury_incoming",
        ids=[one.envelope.id for one in unusable],
        topics=[storable(one.envelope.topic) for one in unusable],
        keys=[None if one.envelope.key is None else storable(one.envelope.key) for one in unusable],
        bodies=[one.envelope.body for one in unusable],
        content_types=[storable(one.envelope.content_type) for one in unusable],
        # All of them, ours too: a replay starts from what came.
        headers=[json.dumps(dict(one.envelope.headers)) for one in unusable],
        positions=[storable(one.position) for one in unusable],
        reasons=[storable(one.reason) for one in unusable],
        service=service,
    )


def _own(envelope: Envelope) -> dict[str, str]:
    """Return the launcher's headers without ours."""
    return {name: value for name, value in envelope.headers.items() if not name.startswith(PREFIX)}
