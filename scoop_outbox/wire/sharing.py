"""Which of several homes of a service handles a message.

Homes of one service share its consumer group or queue, and the broker gives a message to any of them. It is handled in
the home that its launcher has chosen, or, if it has no launcher that knows of homes, in the one that its key belongs
to: what is delivered twice, to two of them, is then handled once, and what belongs to one key lies in one database.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from scoop_outbox.message import Envelope
from scoop_outbox.wire.headers import EXPECTS, HOME, id_of

_IN_A_HOME = 3


@dataclass(frozen=True, slots=True)
class Expected:
    """A saga that a launcher waits for.

    Attributes:
        service, saga: which.
        home: the home in which it is to run; None is whichever takes the message in.
    """

    service: str
    saga: str
    home: uuid.UUID | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a message is, and which other homes could handle it.

    Attributes:
        service: whose it is here.
        home: the home that has received it.
        known: the homes that this one could pass it on to.
        listening: the homes, this one included, in which sagas of the service listen on its topic.
        sharing: those of them that share what nobody has addressed.
    """

    service: str
    home: uuid.UUID
    known: Collection[uuid.UUID]
    listening: Collection[uuid.UUID] = ()
    sharing: Collection[uuid.UUID] = ()


def expected(headers: Mapping[str, str]) -> list[Expected]:
    """Return who is waited for, as a header says; it is known to be well-formed."""
    return [
        Expected(one[0], one[1], id_of(one[2]) if len(one) == _IN_A_HOME else None)
        for one in json.loads(headers.get(EXPECTS, "[]"))
    ]


def choose(homes: Collection[uuid.UUID], key: str) -> uuid.UUID:
    """Return the home that a key belongs to.

    Of rendezvous hashing (Thaler and Ravishankar, 1996): when a home is added or goes, only the keys move that are its
    own. `launch_across` chooses in the same way.
    """
    return max(homes, key=lambda home: hashlib.md5(f"{home}{key}".encode(), usedforsecurity=False).hexdigest())


def passed_on(envelope: Envelope, place: Place) -> tuple[bool, frozenset[uuid.UUID]]:
    """Return whether a message is handled where it is, and which other homes are to handle it.

    A home that is not known any more cannot be passed anything: what was meant for it is handled here.
    """
    chosen = _chosen(envelope, place)
    elsewhere = frozenset(one for one in chosen if one != place.home and one in place.known)
    return len(chosen) == 0 or len(elsewhere) < len(chosen), elsewhere


def _chosen(envelope: Envelope, place: Place) -> set[uuid.UUID]:
    """Return the homes that are to handle a message; none means whichever has it."""
    named = [one.home or place.home for one in expected(envelope.headers) if one.service == place.service]
    if named:
        return set(named)
    launcher = id_of(envelope.headers.get(HOME, ""))
    if launcher is not None and launcher in place.listening:
        return {launcher}  # it did not know of the others yet, and waits for its own sagas
    if launcher == place.home or not place.sharing:
        return set()
    return {choose(place.sharing, envelope.id if envelope.key is None else envelope.key)}
