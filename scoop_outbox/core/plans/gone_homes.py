"""The plan of homes that are gone for good: nobody waits for them any longer."""

from __future__ import annotations

from scoop_outbox.core.plans.failures import Known, Writing, id_of
from scoop_outbox.core.statement import BEGIN, COMMIT, Plan, ask, statement
from scoop_outbox.failure import Failure

AT_ONCE = 500
"""How many children of a home that is forgotten are ended in one transaction."""


def forget_home(name: str, known: Known) -> Plan[int | None]:
    """Forget another home, by its name or id, and end what waits for children there: they have failed.

    Returns:
        How many children that were; None when no such home is known.
    """
    (found,) = yield from ask(statement("find_peer", name=name))
    if not found:
        return None
    ended = 0
    for (home,) in found:
        writing = Writing(known)
        text = f"the home {name} was forgotten while this was waited for there"
        failure = id_of(writing.name(Failure("HomeForgotten", text, "scoop-outbox home forget")))
        while True:
            _, *_, rows, _ = yield from ask(
                BEGIN,
                *writing.statements(),
                statement("retire_children_of_home", home=home, failure=failure, most=AT_ONCE),
                COMMIT,
            )
            writing = Writing(known)  # it is written
            ended += rows[0][0]
            if rows[0][0] < AT_ONCE:
                break
        yield from ask(BEGIN, statement("drop_peer_listeners", home=home), statement("drop_peer", home=home), COMMIT)
    return ended
