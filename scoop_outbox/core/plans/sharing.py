"""Plans of a service that has several homes: which of them share what comes for it, and what is passed on."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scoop_outbox.core.plans.homes import Identity
from scoop_outbox.core.statement import Plan, Statement, ask, statement
from scoop_outbox.wire.control import Kind, body_of
from scoop_outbox.wire.forwarded import Forwarded


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Other homes, as one service sees them.

    Attributes:
        reply_to: the control topics of those that are known.
        beside: whether any of them has sagas of the service, too.
    """

    reply_to: Mapping[uuid.UUID, str]
    beside: bool


@dataclass(frozen=True, slots=True)
class Sharing:
    """The homes in which a service listens on one topic, and those of them that share what nobody has addressed."""

    listening: frozenset[uuid.UUID] = frozenset()
    sharing: frozenset[uuid.UUID] = frozenset()


def read_neighbours(service: str) -> Plan[Neighbours]:
    """Return the other homes that are known."""
    (rows,) = yield from ask(statement("read_neighbours", service=service))
    return Neighbours({home: reply_to for home, reply_to, _ in rows}, any(beside for *_, beside in rows))


def read_sharing(service: str, topics: Sequence[str]) -> Plan[dict[str, Sharing]]:
    """Return which homes have sagas of a service on some topics, this one included."""
    (rows,) = yield from ask(statement("read_sharing", service=service, topics=list(topics)))
    return {topic: Sharing(frozenset(listening), frozenset(sharing)) for topic, listening, sharing in rows}


def forwarding(home: Identity, passed: Sequence[tuple[str, Forwarded]]) -> list[Statement]:
    """Return what passes messages on.

    Args:
        home: this home.
        passed: control topics of other homes, and what is said there.
    """
    if not passed:
        return []
    return [
        statement(
            "forward",
            topics=[topic for topic, _ in passed],
            keys=[one.envelope.id if one.envelope.key is None else one.envelope.key for _, one in passed],
            bodies=[body_of(home.sender, Kind.FORWARDED, one.to_json()) for _, one in passed],
        )
    ]
