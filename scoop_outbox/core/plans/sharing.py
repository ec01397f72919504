"""Plans of a service that has several homes: which of them share what comes for it, and what is passed on."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scoop_outbox.core.plans.homes import Identity
from scoop_outbox.core.statement import Plan, Statement, ask, statement
from scoop_outbox.message import Envelope
from scoop_outbox.wire.control import Kind, body_of
from scoop_outbox.wire.forwarded import Forwarded
from scoop_outbox.wire.sharing import Route


@dataclass(frozen=True, slots=True)
class Sharing:
    """The homes that share what comes for a service on one topic.

    Attributes:
        homes: by saga, under each name that it has in some home.
        known: the control topics of the others.
        names: by saga, what it is called in other homes, or was called.
    """

    homes: Mapping[str, frozenset[uuid.UUID]] = field(default_factory=dict)
    known: Mapping[uuid.UUID, str] = field(default_factory=dict)
    names: Mapping[str, frozenset[str]] = field(default_factory=dict)


def read_sharing(service: str, topics: Sequence[str]) -> Plan[dict[str, Sharing]]:
    """Return which homes share what comes for a service on some topics; nothing if it has one home."""
    (rows,) = yield from ask(statement("read_sharing", service=service, topics=list(topics)))
    homes: dict[str, dict[str, frozenset[uuid.UUID]]] = {topic: {} for topic in topics}
    known: dict[str, dict[uuid.UUID, str]] = {topic: {} for topic in topics}
    names: dict[str, dict[str, frozenset[str]]] = {topic: {} for topic in topics}
    for topic, saga, ids, others, called in rows:
        names[topic][saga] = frozenset(called)
        homes[topic][saga] = frozenset(ids)
        known[topic] |= {uuid.UUID(home): reply_to for home, reply_to in others or ()}
    return {topic: Sharing(homes[topic], known[topic], names[topic]) for topic in topics}


def forwarding(home: Identity, service: str, routed: Sequence[tuple[Envelope, Route]]) -> list[Statement]:
    """Return what passes messages on to the other homes that handle them.

    Args:
        home: this home.
        service: whose messages they are.
        routed: the messages, and where each is handled.
    """
    passed = [
        (reply_to, Forwarded(service, one, _elsewhere(route, other)))
        for one, route in routed
        for other, reply_to in route.others.items()
    ]
    if not passed:
        return []
    return [
        statement(
            "forward",
            ids=[one.envelope.id for _, one in passed],
            topics=[topic for topic, _ in passed],
            keys=[one.envelope.id if one.envelope.key is None else one.envelope.key for _, one in passed],
            bodies=[body_of(home.sender, Kind.FORWARDED, one.to_json()) for _, one in passed],
        )
    ]


def _elsewhere(route: Route, home: uuid.UUID) -> tuple[str, ...]:
    """Return the sagas that handle a message, but not in a home to which it is passed on."""
    return tuple(saga for saga, of in route.homes.items() if of != home)
