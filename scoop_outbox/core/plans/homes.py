"""Plans of homes that know each other: under which name this one cooperates, and who listens in which of them.

Each home tells all others the whole list of those who listen in it, with a revision that grows; they confirm it. What
is launched afterwards in one of them is waited for in the other. See docs/protocol.md.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from scoop_outbox.core.statement import BEGIN, COMMIT, Plan, Rows, Statement, ask, statement
from scoop_outbox.errors import DefinitionError
from scoop_outbox.wire.control import (
    Kind,
    Listener,
    Sender,
    Subscriptions,
    body_of,
    control_topic,
    homes_topic,
)


@dataclass(frozen=True, slots=True)
class Identity:
    """This home, as other homes know it.

    Attributes:
        id: of the home, made by the migration.
        name: what people call it; None until somebody has named it: then it cooperates with no other.
        prefix: what the topics begin with on which homes speak.
        revision: of the list of those who listen here, as it was announced last.
        now: when this was read, by the database's clock.
    """

    id: uuid.UUID
    name: str | None
    prefix: str
    revision: int = 0
    now: datetime | None = None

    @property
    def control_topic(self) -> str | None:
        """The topic on which this home is told something, if it cooperates."""
        return None if self.name is None else control_topic(self.prefix, self.name)

    @property
    def homes_topic(self) -> str:
        """The topic on which all homes are told something."""
        return homes_topic(self.prefix)

    @property
    def sender(self) -> Sender:
        """How this home signs what it says."""
        assert self.name is not None  # noqa: S101 - who has no name says nothing
        return Sender(self.id, self.name, control_topic(self.prefix, self.name), self.now)


def read_identity() -> Plan[Identity]:
    """Return how this home is known."""
    (rows,) = yield from ask(statement("read_identity"))
    return Identity(*rows[0])


def name_home(name: str | None) -> Plan[Identity]:
    """Give this home a name, if it has none and one is given, and return how it is known.

    Raises:
        DefinitionError: it has another name already, another home has this name, or this is a copy of a home that has
            been named elsewhere.
    """
    identity = yield from read_identity()
    if name is not None and identity.name is None:
        yield from ask(statement("name_home", name=name))
        identity = yield from read_identity()
    if identity.name is not None:
        yield from _check_place(identity.name)
        yield from _check_namesakes(identity.name)
    if name is not None and identity.name != name:
        raise DefinitionError(
            f"this database is the home {identity.name!r}, and this process calls it {name!r}: other homes know it by "
            "its name, which stays. Give all processes of this database the same home= (SCOOP_OUTBOX_HOME)"
        )
    return identity


def _check_place(name: str) -> Plan[None]:
    """Refuse to cooperate in a copy of a home: both would be told what is meant for one, and would answer."""
    stored, here = yield from read_place()
    if here is not None and stored is None:
        yield from ask(statement("store_place", place=here))
    elif here is not None and stored != here:
        raise DefinitionError(
            f"this database is a copy of the home {name!r}, which was named in another database: both would answer for "
            "each other. If the other one is gone for good, or this was restored from a backup, say so: scoop-outbox "
            "home moved. If it is not, use a schema that is migrated anew, and another name"
        )


def read_place() -> Plan[tuple[str | None, str | None]]:
    """Return where this home was when it was named, and where it is; neither where the server does not say."""
    (allowed,) = yield from ask(statement("may_read_place"))
    if not allowed[0][0]:
        return None, None
    (rows,) = yield from ask(statement("read_place"))
    return rows[0][0], rows[0][1]


def _check_namesakes(name: str) -> Plan[None]:
    """Refuse a name that another home has: both would read what one of them is told."""
    (rows,) = yield from ask(statement("find_namesake"))
    if rows:
        raise DefinitionError(
            f"another home is called {name!r}, too ({rows[0][0]}): each would get what the other one is told. Give one "
            f"of them another name. If the other one is gone for good: scoop-outbox home forget {rows[0][0]}"
        )


def announce_home(*, begins: bool = False) -> Plan[bool]:
    """Tell all homes who listens here, if that has changed since they were told; answer whether it has.

    In a transaction of its own: whoever announces at the same time waits, and finds nothing changed.

    Args:
        begins: whether to tell them anyway, as each process does that begins: something may have been lost at the
            broker, here, or there.
    """
    if (yield from read_identity()).name is None:
        return False
    _, home, listeners = yield from ask(BEGIN, statement("lock_identity"), statement("read_listeners_here"))
    identity, announced, said = _announcement(home, listeners)
    changed: bool = said != announced
    if not changed and not begins:
        yield from ask(COMMIT)
        return False
    yield from _announce(identity, identity.revision + changed, said)
    yield from ask(COMMIT)
    return changed


def announce_restored() -> Plan[None]:
    """Tell all homes that this one was restored from an older backup, and who listens here, under a new number.

    In the transaction that is open.
    """
    home, listeners = yield from ask(statement("lock_identity"), statement("read_listeners_here"))
    identity, _, said = _announcement(home, listeners)
    yield from _announce(identity, identity.revision + 1, said, restored=True)


def _announce(identity: Identity, revision: int, said: str, *, restored: bool = False) -> Plan[None]:
    (peers,) = yield from ask(statement("read_known_revisions"))
    members = _members(revision, said, peers) | ({"restored": True} if restored else {})
    yield from ask(
        statement("store_announced", revision=revision, announced=said),
        _say(identity, identity.homes_topic, Kind.SUBSCRIPTIONS, members),
    )


def read_unconfirmed() -> Plan[list[str]]:
    """Return the names of the homes that have not said that they know who listens here now."""
    (rows,) = yield from ask(statement("read_unconfirmed"))
    return [name for (name,) in rows]


def learn(sender: Sender, told: Subscriptions) -> Plan[None]:
    """Take in who listens in another home, in the transaction that is open, and answer.

    What is known of a home is its newest list. That is confirmed, and a home that does not know ours is told.
    """
    home, known, listeners, peers = yield from ask(
        statement("lock_identity"),
        statement("lock_peer", home=sender.id),
        statement("read_listeners_here"),
        statement("read_known_revisions"),
    )
    if not known:
        return  # it is being forgotten at this moment
    identity, announced, said = _announcement(home, listeners)
    revision = known[0][0]
    waiting = None
    if told.revision > revision:
        revision = told.revision
        yield from ask(*_stored(sender.id, told))
    else:  # before, whoever launches at this moment may not know yet that the home is being drained
        open_still, counted = yield from ask(
            statement("read_launching", home=sender.id), statement("count_waiting", home=sender.id)
        )
        waiting = None if open_still[0][0] else counted[0][0]
    confirmed = {"revision": revision, "waiting": waiting}
    writes = [_say(identity, sender.reply_to, Kind.CONFIRMED, confirmed)]
    if announced is not None and told.known.get(identity.id, 0) < identity.revision:
        known_now = {one: number for one, number in peers if one != sender.id}
        pairs = [*known_now.items(), (sender.id, revision)]
        members = _members(identity.revision, said, pairs)
        writes.append(_say(identity, sender.reply_to, Kind.SUBSCRIPTIONS, members))
    yield from ask(*writes)


def _stored(home: uuid.UUID, told: Subscriptions) -> list[Statement]:
    columns = {
        "topics": [one.topic for one in told.listeners],
        "services": [one.service for one in told.listeners],
        "sagas": [one.saga for one in told.listeners],
    }
    more = {
        "patterns": [one.pattern for one in told.listeners],
        "names": [json.dumps(one.names) for one in told.listeners],
        "formerly": [json.dumps(one.formerly) for one in told.listeners],
    }
    return [
        statement("store_peer_revision", home=home, revision=told.revision, draining=told.draining),
        statement("drop_peer_subscriptions", home=home, **columns),
        statement("store_peer_subscriptions", home=home, **columns, **more),
    ]


def _announcement(home: Rows, listeners: Rows) -> tuple[Identity, str | None, str]:
    """Return this home, what it has announced last, and what it has to announce."""
    *known, announced, draining = home[0]
    listed = [
        Listener(topic, service, saga, pattern, tuple(names), tuple(formerly)).to_json()
        for topic, service, saga, pattern, names, formerly in listeners
    ]
    said = {"subscriptions": listed} | ({"draining": True} if draining else {})
    return Identity(*known), announced, json.dumps(said, separators=(",", ":"), sort_keys=True)


def _members(revision: int, said: str, peers: Sequence[Sequence[Any]]) -> dict[str, Any]:
    return {"revision": revision, **json.loads(said), "known": {str(home): number for home, number in peers}}


def _say(identity: Identity, topic: str, kind: Kind, members: Mapping[str, Any]) -> Statement:
    return statement("send_control", topic=topic, key=str(identity.id), body=body_of(identity.sender, kind, members))
