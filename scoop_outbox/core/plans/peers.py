"""Plans of other homes as operators see them. Nothing is written."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from scoop_outbox.core.plans.control import UNKNOWN_RUN
from scoop_outbox.core.plans.homes import Identity, read_place
from scoop_outbox.core.statement import Plan, Rows, ask, statement
from scoop_outbox.wire.control import control_topic


@dataclass(frozen=True, slots=True)
class HomeGlance:
    """Another home, seen in passing.

    Attributes:
        name: its name; its id if it is not known here.
        children: how many children are waited for there.
        heard: seconds since it was last heard of, to a minute; None if it is not known.
        lag: seconds by which our clock was ahead of its clock when something came, that is also how long this took.
        unconfirmed: whether it has not said that it knows who listens here now.
    """

    name: str
    children: int
    heard: float | None
    lag: float | None
    unconfirmed: bool


def look_at_homes(most: int) -> Plan[list[HomeGlance]]:
    """Return the other homes that are known, or in which children are waited for.

    Args:
        most: how many open children are looked through for those in other homes.
    """
    (rows,) = yield from ask(statement("look_at_homes", most=most))
    return [HomeGlance(*row) for row in rows]


@dataclass(frozen=True, slots=True)
class Peer:
    """Another home, as it is known here.

    Attributes:
        id: of the home.
        name: as people know it; None when no home of this id is known here.
        control_topic: the topic on which it is told something.
        revision: of its list of who listens there, as it is known here; 0 when it has not said.
        confirmed: the revision of the list of who listens here that it says it knows.
        heard: seconds since it was last heard of, to a minute.
        lag: seconds by which our clock was ahead of its clock when something came: how long this took, and by how much
            the clocks differ. None when it does not say when it says something.
        listeners: how many pairs of a topic and a saga it has told of.
        children: how many children are waited for there.
        silent: seconds since that of these was heard of which has been silent for longest.
        runs: how many runs here are under way for it.
        draining: whether others that have its sagas, too, are preferred to it.
    """

    id: uuid.UUID
    name: str | None
    control_topic: str | None
    revision: int
    confirmed: int
    heard: float | None
    lag: float | None
    listeners: int
    children: int
    silent: float | None
    runs: int
    draining: bool = False


def examine_peers() -> Plan[list[Peer]]:
    """Return all that is known of other homes."""
    (rows,) = yield from ask(statement("examine_peers"))
    return [Peer(*row) for row in rows]


@dataclass(frozen=True, slots=True)
class LostChildren:
    """Children that their home did not know when it was asked, and for which runs are stuck.

    Attributes:
        home: the id of that home.
        name: its name; its id if it is not known here.
        children: how many.
        parent: one of the runs that are stuck.
    """

    home: uuid.UUID
    name: str
    children: int
    parent: str


def read_lost() -> Plan[list[LostChildren]]:
    """Return which homes did not know children when they were asked."""
    (rows,) = yield from ask(statement("read_lost_children", type=UNKNOWN_RUN))
    return [LostChildren(*row) for row in rows]


def is_elsewhere() -> Plan[bool]:
    """Tell whether this database is not the one in which the home was named."""
    stored, here = yield from read_place()
    return stored is not None and here is not None and stored != here


def read_trouble(identity: Identity) -> Plan[tuple[list[LostChildren], Rows]]:
    """Return what has gone wrong between this home and others.

    Returns:
        Which homes did not know children when they were asked, and dead letters of the control channel by origin: how
        many, and the newest.
    """
    channels = control_topic(identity.prefix, "")
    (letters,) = yield from ask(
        statement(
            "count_control_letters", channel=identity.control_topic, homes=identity.homes_topic, channels=channels
        )
    )
    return (yield from read_lost()), letters
