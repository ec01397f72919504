"""Plans of launching, taking in and relaying: how a message gets from one transaction into others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from scoop_outbox.core.claim import Hints
from scoop_outbox.core.settle import emitted
from scoop_outbox.core.statement import BEGIN, COMMIT, Plan, ask, statement
from scoop_outbox.message import Envelope
from scoop_outbox.scope import RESERVED_PREFIX, Emission


def launch(emissions: Sequence[Emission]) -> Plan[None]:
    """Write messages from outside any run into the outbox, in whatever transaction is open."""
    yield from ask(statement("launch", **emitted(emissions, None, 0)))


def launch_and_commit(emissions: Sequence[Emission], hints: Hints) -> Plan[None]:
    """Write messages into the outbox in a transaction of their own."""
    yield from ask(BEGIN, statement("launch", **emitted(emissions, None, 0)), COMMIT)
    hints.outbox()


def take_in(envelopes: Sequence[Envelope], hints: Hints) -> Plan[None]:
    """Take messages into this home: each once, and one run for each saga that is to handle it.

    Who handles a message launched by a run was frozen when it was launched; a message from outside goes to the
    sagas that are subscribed now. Messages that were taken in before change nothing.
    """
    _, mailed, _ = yield from ask(
        BEGIN,
        statement(
            "take_in",
            ids=[envelope.id for envelope in envelopes],
            topics=[envelope.topic for envelope in envelopes],
            keys=[envelope.key for envelope in envelopes],
            bodies=[envelope.body for envelope in envelopes],
            content_types=[envelope.content_type for envelope in envelopes],
            headers=[json.dumps(_own(envelope)) for envelope in envelopes],
            lineages=[envelope.headers.get("scoop-lineage") for envelope in envelopes],
            contexts=[envelope.headers.get("scoop-context") for envelope in envelopes],
            launched_at=[envelope.headers.get("scoop-launched-at") for envelope in envelopes],
        ),
        COMMIT,
    )
    for run_id, service, saga in mailed:
        hints.mail(service, saga, run_id, 0.0)


def _own(envelope: Envelope) -> dict[str, str]:
    """Return the launcher's headers without ours."""
    return {name: value for name, value in envelope.headers.items() if not name.startswith(RESERVED_PREFIX)}


@dataclass(frozen=True, slots=True)
class Waiting:
    """A row of the outbox: a message, and where it stands in its shard."""

    shard: int
    seq: int
    envelope: Envelope


def read_outbox(floors: Sequence[tuple[int, int]], limit: int) -> Plan[list[Waiting]]:
    """Read messages to be published, oldest first, without locking them.

    Args:
        floors: a shard and the number above which to read, for each shard that this relay owns.
        limit: most rows per shard.
    """
    shards = [shard for shard, _ in floors]
    (rows,) = yield from ask(statement("read_outbox", shards=shards, floors=[floor for _, floor in floors], most=limit))
    return [
        Waiting(shard, seq, Envelope(message_id, topic, key, bytes(body), content_type, headers))
        for shard, seq, message_id, topic, key, body, content_type, headers in rows
    ]
