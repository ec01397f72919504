"""Plans of other homes as operators see them. Nothing is written."""

from __future__ import annotations

from dataclasses import dataclass

from scoop_outbox.core.statement import Plan, ask, statement


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
