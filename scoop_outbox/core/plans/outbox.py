"""Plans of the relay: what is to be published, what was, and what cannot be."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

from scoop_outbox.core.statement import BEGIN, COMMIT, Plan, ask, statement
from scoop_outbox.message import Envelope
from scoop_outbox.wire.headers import EXPECTS, HOME, REPLY_TO

Place = tuple[int, int]
"""Where a message stands in the outbox: its shard, and its number there."""

Flow = tuple[int, str]
"""A topic within a shard of the outbox: what keeps its order, whatever becomes of other topics."""


class Writing(NamedTuple):
    """Who was writing into the outbox at some moment.

    Attributes:
        ends: numbers that messages had been given before that moment.
        transactions: those that had written into it, or were about to, and had not ended; what had been written by
            others until then is seen by whoever reads afterwards.
    """

    ends: Sequence[int]
    transactions: Collection[str]


@dataclass(slots=True)
class Outgoing:
    """Messages to be published, in order, and where each stands in the outbox. Lists side by side, for there are many.

    Attributes:
        places: where they stand.
        envelopes: the messages.
        writing: who was writing just before, if it was asked.
    """

    places: list[Place] = field(default_factory=list)
    envelopes: list[Envelope] = field(default_factory=list)
    writing: Writing | None = None

    def __len__(self) -> int:
        """Return how many messages these are."""
        return len(self.places)

    @property
    def flows(self) -> set[Flow]:
        """The topics within shards that they belong to."""
        return {(shard, envelope.topic) for (shard, _), envelope in zip(self.places, self.envelopes, strict=True)}

    def firsts(self, flows: Collection[Flow]) -> dict[Flow, int]:
        """Return where the first message of each of these topics within shards stands, of those that are here."""
        found: dict[Flow, int] = {}
        for (shard, seq), envelope in zip(self.places, self.envelopes, strict=True):
            if (flow := (shard, envelope.topic)) in flows:
                found.setdefault(flow, seq)
        return found

    def full(self, limit: int, most_bytes: int) -> set[int]:
        """Return the shards of which as much was read as was asked for."""
        counts = Counter(map(itemgetter(0), self.places))
        full = {shard for shard, count in counts.items() if count >= limit}
        # Bodies are rarely large enough for the sums to matter, and to make them takes three times as long as this.
        largest = max((len(envelope.body) for envelope in self.envelopes), default=0)
        if any(count * largest >= most_bytes for shard, count in counts.items() if shard not in full):
            sizes: Counter[int] = Counter()
            for (shard, _), envelope in zip(self.places, self.envelopes, strict=True):
                sizes[shard] += len(envelope.body)
            full |= {shard for shard, size in sizes.items() if size >= most_bytes}
        return full

    def without(self, shards: Collection[int] = (), flows: Collection[Flow] = ()) -> Outgoing:
        """Return the messages of all other shards and flows."""
        kept = [
            (place, envelope)
            for place, envelope in zip(self.places, self.envelopes, strict=True)
            if place[0] not in shards and (place[0], envelope.topic) not in flows
        ]
        return Outgoing([place for place, _ in kept], [envelope for _, envelope in kept])


def read_outbox(
    low: Mapping[int, int],
    limit: int,
    most_bytes: int,
    home: uuid.UUID,
    blocked: Sequence[Flow] = (),
    in_hand: Sequence[int] = (),
    *,
    ask_who_writes: bool = False,
) -> Plan[Outgoing]:
    """Read messages to be published, oldest first, without locking them.

    Args:
        low: the shards to read, and the number above which.
        limit: most rows of a shard.
        most_bytes: of a shard, no row is read behind the one with which its bodies have so many bytes.
        home: this home's id, which messages carry.
        blocked: topics within shards of which nothing is to be read.
        in_hand: numbers of messages that are not to be read again, in order.
        ask_who_writes: whether to ask, before that, who is writing into the outbox.
    """
    shards, numbers = list(low), list(low.values())
    reading = statement(
        "read_outbox",
        shards=shards,
        low=numbers,
        most=limit,
        bytes=most_bytes,
        blocked_shards=[shard for shard, _ in blocked],
        blocked_topics=[topic for _, topic in blocked],
        in_hand=list(in_hand),
    )
    writing = None
    if ask_who_writes:
        # In this order: see `Writing`.
        ends, writers = yield from ask(statement("read_ends", shards=shards, low=numbers), statement("read_writers"))
        writing = Writing([seq for (seq,) in ends], {transaction for (transaction,) in writers})
    # Alone: a long answer in a batch is read piece by piece, which took a third of a relay's rate.
    (rows,) = yield from ask(reading)
    if not rows:
        return Outgoing(writing=writing)
    rows.sort(key=itemgetter(1))
    # By columns: what is done for each row is most of what reading costs.
    of, seqs, ids, topics, keys, bodies, content_types, *texts = zip(*rows, strict=True)
    # Messages that the same line launches have the same headers, but for those of children: decoded once, and shared.
    named = list(zip(*texts, strict=True))
    headers = {one: _headers(home, *one) for one in set(named)}
    return Outgoing(
        list(zip(of, seqs, strict=True)),
        list(map(Envelope, ids, topics, keys, bodies, content_types, map(headers.__getitem__, named))),
        writing,
    )


def _headers(home: uuid.UUID, text: str, expects: str | None, reply_to: str | None) -> dict[str, str]:
    """Return the headers of a message, with what other homes have to know of it."""
    headers: dict[str, str] = {**json.loads(text), HOME: str(home)}
    if expects is not None and reply_to is not None:
        headers |= {EXPECTS: expects, REPLY_TO: reply_to}
    return headers


def delete_published(places: Sequence[Place], epochs: Mapping[int, int]) -> Plan[int]:
    """Delete what was published, of the shards that are still owned, and return how many rows that were.

    Args:
        places: where the messages stand.
        epochs: the shards that the relay believes to own, and since which epoch.
    """
    seqs: dict[int, list[str]] = {}
    for shard, seq in places:
        seqs.setdefault(shard, []).append(str(seq))
    # A crash that forgets the delete publishes again, which intake notices: not worth a wait for the disk.
    _, _, deleted, _ = yield from ask(
        BEGIN,
        statement("without_waiting_for_disk"),
        statement(
            "delete_published",
            shards=list(seqs),
            seqs=[f"{{{','.join(of_shard)}}}" for of_shard in seqs.values()],
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
