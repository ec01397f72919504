"""Which of several homes of a service handles a message.

Homes of one service share its consumer group or queue, and the broker gives a message to any of them. It is handled in
the homes that its launcher has chosen, saga by saga. If no saga of the service is waited for, each saga handles it in
the home that the message's key belongs to: what belongs to one key lies in one database.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from scoop_outbox.message import Envelope
from scoop_outbox.wire.headers import EXPECTS, HOME, id_of

_MEMBERS = 4


@dataclass(frozen=True, slots=True)
class Expected:
    """A saga that a launcher waits for.

    Attributes:
        service: whose it is.
        saga: its name.
        home: the home in which it is to run; None is whichever takes the message in.
        reply_to: the control topic of that home.
    """

    service: str
    saga: str
    home: uuid.UUID | None = None
    reply_to: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a message is, and which other homes could handle it.

    Attributes:
        service: whose it is here.
        home: the home that has received it.
        known: the control topics of the homes that are known.
        sharing: by saga of the service that listens on the topic, the homes that share what is for it.
        names: by saga, its names in other homes, and former ones: it is renamed in one home after the other.
    """

    service: str
    home: uuid.UUID
    known: Mapping[uuid.UUID, str] = field(default_factory=dict)
    sharing: Mapping[str, Collection[uuid.UUID]] = field(default_factory=dict)
    names: Mapping[str, Collection[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Route:
    """Where a message is handled.

    Attributes:
        homes: by saga of the service, the other home in which it handles the message; None is this one. Who is not
            named is not affected.
        others: the control topics of these homes.
    """

    homes: Mapping[str, uuid.UUID | None] = field(default_factory=dict)
    others: Mapping[uuid.UUID, str] = field(default_factory=dict)

    @property
    def stays(self) -> bool:
        """Whether it is taken in where it is."""
        return not self.others or None in self.homes.values()

    @property
    def elsewhere(self) -> frozenset[str]:
        """The sagas that do not handle it here."""
        return frozenset(saga for saga, home in self.homes.items() if home is not None)


def expected(headers: Mapping[str, str], service: str | None = None) -> list[Expected]:
    """Return who is waited for, as a header says that is known to be well-formed.

    Args:
        headers: of a message.
        service: only sagas of this one; None is all.
    """
    if EXPECTS not in headers:
        return []
    named = [[*one, None, None][:_MEMBERS] for one in json.loads(headers[EXPECTS])]
    return [
        Expected(of, saga, None if home is None else id_of(home), reply_to)
        for of, saga, home, reply_to in named
        if service in (None, of)
    ]


def choose(homes: Collection[uuid.UUID], key: str) -> uuid.UUID:
    """Return the home that a key belongs to.

    Of rendezvous hashing (Thaler and Ravishankar, 1996): when a home is added or goes, only the keys move that are its
    own. `launch_across` chooses in the same way.
    """
    return max(homes, key=lambda home: hashlib.md5(f"{home}{key}".encode(), usedforsecurity=False).hexdigest())


def route(envelope: Envelope, place: Place) -> Route:
    """Say where a message is handled that a home has received.

    A launcher says which homes those are, and how they are told: they are, also when nobody here has heard of them yet.
    Sagas that it did not know, by whatever name, handle the message in the home to which it belongs, as if nobody had
    addressed it.
    """
    named = {one.saga: one for one in expected(envelope.headers, place.service)}
    if not named and envelope.headers.get(HOME) == str(place.home):
        return Route()
    told = [(one.saga, one.home, one.reply_to) for one in named.values()]
    for saga, homes in place.sharing.items():
        if saga in named:
            continue
        same = next((named[name] for name in place.names.get(saga, ()) if name in named), None)
        if same is None:
            told.append((saga, _home_of(envelope, homes), None))
        else:
            told.append((saga, same.home, same.reply_to))
    return _routed(place, told)


def _home_of(envelope: Envelope, homes: Collection[uuid.UUID]) -> uuid.UUID:
    """Return the home to which a message belongs that nobody has addressed: its launcher's, or the one of its key."""
    launcher = id_of(envelope.headers.get(HOME, ""))
    if launcher is not None and launcher in homes:
        return launcher
    return choose(homes, envelope.id if envelope.key is None else envelope.key)


def passed_over(envelope: Envelope, service: str, home: uuid.UUID, elsewhere: Iterable[str]) -> frozenset[str]:
    """Return the sagas that do not handle a message in the home to which it was passed on.

    Args:
        envelope: the message.
        service: whose it is.
        home: the home.
        elsewhere: those of them that the home has named that has received it.
    """
    named = [one.saga for one in expected(envelope.headers, service) if one.home != home]
    return frozenset(named) | frozenset(elsewhere)


def _routed(place: Place, chosen: Iterable[tuple[str, uuid.UUID | None, str | None]]) -> Route:
    homes: dict[str, uuid.UUID | None] = {}
    others: dict[uuid.UUID, str] = {}
    for saga, home, said in chosen:
        # What a home says of itself counts more than what a launcher has heard of it.
        reply_to = said if home is None else place.known.get(home, said)
        if home is None or home == place.home or reply_to is None:
            homes[saga] = None
        else:
            homes[saga], others[home] = home, reply_to
    return Route(homes, others)
