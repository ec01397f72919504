"""Plans of the relay: what is to be published, what was, and what cannot be."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scoop_outbox.core.statement import BEGIN, COMMIT, Plan, ask, statement
from scoop_outbox.headers import HOME
from scoop_outbox.message import Envelope

Place = tuple[int, int]
"""Where a message stands in the outbox: its shard, and its number there."""


@dataclass(slots=True)
class Waiting:
    """A row of the outbox: a message, and where it stands."""

    place: Place
    envelope: Envelope

    @property
    def shard(self) -> int:
        """The shard that it belongs to by its key."""
        return self.place[0]


def read_outbox(floors: Sequence[Place], limit: int, most_bytes: int, home: uuid.UUID) -> Plan[list[Waiting]]:
    """Read messages to be published, oldest first, without locking them.

    Args:
        floors: a shard and the number above which to read, for each shard that this relay owns.
        limit: most rows of a shard.
        most_bytes: of a shard, no row is read behind the one with which its bodies have so many bytes.
        home: this home's id, which messages carry.
    """
    shards = [shard for shard, _ in floors]
    above = [floor for _, floor in floors]
    (rows,) = yield from ask(statement("read_outbox", shards=shards, floors=above, most=limit, bytes=most_bytes))
    origin = str(home)
    return [
        Waiting((shard, seq), Envelope(message_id, topic, key, bytes(body), content_type, {**headers, HOME: origin}))
        for shard, seq, message_id, topic, key, body, content_type, headers in rows
    ]


def delete_published(places: Sequence[Place], epochs: Mapping[int, int]) -> Plan[int]:
    """Delete what was published, of the shards that are still owned, and return how many rows that were.

    Args:
        places: where the messages stand.
        epochs: the shards that the relay believes to own, and since which epoch.
    """
    # A crash that forgets the delete publishes again, which intake notices: not worth a wait for the disk.
    _, _, deleted, _ = yield from ask(
        BEGIN,
        statement("without_waiting_for_disk"),
        statement(
            "delete_published",
            shards=[shard for shard, _ in places],
            seqs=[seq for _, seq in places],
            owned=list(epochs),
            epochs=list(epochs.values()),
        ),
        COMMIT,
    )
    count: int = deleted[0][0]
    return count


def bury_unpublishable(reasons: Mapping[Place, str], epochs: Mapping[int, int]) -> Plan[int]:
    """Make dead letters of what can never be published, in the shards still owned, and return of how many.

    Args:
        reasons: where the messages stand, and why each cannot be published.
        epochs: the shards that the relay believes to own, and since which epoch.
    """
    (buried,) = yield from ask(
        statement(
            "bury_unpublishable",
            shards=[shard for shard, _ in reasons],
            seqs=[seq for _, seq in reasons],
            reasons=[reason.replace("\0", "\\x00") for reason in reasons.values()],
            owned=list(epochs),
            epochs=list(epochs.values()),
        )
    )
    count: int = buried[0][0]
    return count


def look_at_outbox(limit: int) -> Plan[tuple[int, float]]:
    """Return how many messages wait, counted up to `limit` in each shard, and the age of the oldest in seconds."""
    (rows,) = yield from ask(statement("look_at_outbox", most=limit))
    count, age = rows[0]
    return count, age
