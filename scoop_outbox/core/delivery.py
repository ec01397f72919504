"""Plans of launching and taking in: how a message gets from one transaction into others."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scoop_outbox.core.claim import Hints, Unhandled
from scoop_outbox.core.required import check_handlers
from scoop_outbox.core.settle import emitted
from scoop_outbox.core.statement import BEGIN, COMMIT, Plan, ask, statement
from scoop_outbox.headers import CONTEXT, HOME, LAUNCHED_AT, LINEAGE, PREFIX, storable
from scoop_outbox.message import Envelope
from scoop_outbox.scope import Emission


def launch(emissions: Sequence[Emission], *, brokered: bool = False) -> Plan[Unhandled]:
    """Write messages from outside any run into the outbox, in whatever transaction is open.

    Returns the topics of those that no saga is subscribed to. Raises `UnhandledMessage` if one of them must not be.

    Args:
        emissions: the messages.
        brokered: whether a broker carries them, and not this home itself.
    """
    yield from check_handlers(emissions)
    (unhandled,) = yield from ask(statement("launch", **emitted(emissions, None, 0, brokered=brokered)))
    return [topic for (topic,) in unhandled]


def launch_and_commit(emissions: Sequence[Emission], hints: Hints, *, brokered: bool = False) -> Plan[Unhandled]:
    """Do as `launch` in a transaction of its own."""
    yield from check_handlers(emissions)
    launching = statement("launch", **emitted(emissions, None, 0, brokered=brokered))
    _, unhandled, _ = yield from ask(BEGIN, launching, COMMIT)
    hints.outbox()
    return [topic for (topic,) in unhandled]


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
    home: uuid.UUID | None = None,
    unusable: Sequence[Unusable] = (),
) -> Plan[None]:
    """Take messages into this home: each once, and one run for each saga that is to handle it.

    Who handles a message launched by a run of this home was frozen when it was launched; any other message starts a
    root of each saga that is subscribed when it is first taken in. Messages that were taken in before change nothing.

    Args:
        envelopes: the messages.
        hints: told which runs have mail.
        service: take in for this service only; None is all that share the home.
        home: this home's id: a message of another one is a root here. None when they cannot but be our own.
        unusable: messages that become dead letters of this service in the same transaction.
    """
    statements = [statement("take_in", **arrived(envelopes, service, home))]
    if unusable:
        statements.append(statement("bury_incoming", **_buried(unusable, service)))
    _, mailed, *_ = yield from ask(BEGIN, *statements, COMMIT)
    for run_id, of, saga in mailed:
        hints.mail(of, saga, "", run_id, 0.0)


def arrived(envelopes: Sequence[Envelope], service: str | None, home: uuid.UUID | None) -> dict[str, Any]:
    """Return the parameters of `take_in`; see the plan of that name."""

    def lineage(envelope: Envelope) -> str | None:
        foreign = home is not None and envelope.headers.get(HOME) != str(home)
        return None if foreign else envelope.headers.get(LINEAGE)

    return {
        "ids": [envelope.id for envelope in envelopes],
        "topics": [envelope.topic for envelope in envelopes],
        "keys": [envelope.key for envelope in envelopes],
        "bodies": [envelope.body for envelope in envelopes],
        "content_types": [envelope.content_type for envelope in envelopes],
        "headers": [json.dumps(_own(envelope)) for envelope in envelopes],
        "lineages": [lineage(envelope) for envelope in envelopes],
        "contexts": [envelope.headers.get(CONTEXT) for envelope in envelopes],
        "launched_at": [envelope.headers.get(LAUNCHED_AT) for envelope in envelopes],
        "service": service,
    }


def _buried(unusable: Sequence[Unusable], service: str | None) -> dict[str, Any]:
    return {
        "ids": [one.envelope.id for one in unusable],
        "topics": [storable(one.envelope.topic) for one in unusable],
        "keys": [None if one.envelope.key is None else storable(one.envelope.key) for one in unusable],
        "bodies": [one.envelope.body for one in unusable],
        "content_types": [storable(one.envelope.content_type) for one in unusable],
        # All of them, ours too: a replay starts from what came.
        "headers": [json.dumps(dict(one.envelope.headers)) for one in unusable],
        "positions": [storable(one.position) for one in unusable],
        "reasons": [storable(one.reason) for one in unusable],
        "service": service,
    }


def _own(envelope: Envelope) -> dict[str, str]:
    """Return the launcher's headers without ours."""
    return {name: value for name, value in envelope.headers.items() if not name.startswith(PREFIX)}


def read_home() -> Plan[uuid.UUID]:
    """Return this home's id."""
    (rows,) = yield from ask(statement("read_home"))
    home: uuid.UUID = rows[0][0]
    return home


def count_due(service: str, sagas: Sequence[str], limit: int) -> Plan[int]:
    """Return how many pieces of mail could be seen to now if there were slots, counted up to `limit`."""
    (rows,) = yield from ask(statement("count_due", service=service, sagas=list(sagas), most=limit))
    count: int = rows[0][0]
    return count
