"""The plan of homes that are gone for good: nobody waits for them any longer."""

from __future__ import annotations

from scoop_outbox.core.plans.failures import Known, Writing, id_of
from scoop_outbox.core.statement import BEGIN, COMMIT, Plan, ask, statement
from scoop_outbox.failure import Failure

_PAUSE = 0.05
AT_ONCE = 500
"""How many children of a home that is forgotten are ended in one transaction."""


def forget_home(name: str, known: Known) -> Plan[int | None]:
    """Forget another home, by its name or id, and end what waits for children there: they have failed.

    What a transaction launches that has begun before, and commits later, is ended by forgetting the home once more, by
    its id. Children there that have committed cannot be undone: whoever wants to is told so.

    Returns:
        How many children that were; None when no such home is known.
    """
    (found,) = yield from ask(statement("find_peer", name=name))
    if not found:
        return None
    ended = 0
    for (home,) in found:
        # First, so that nobody launches anything for it any more.
        yield from ask(statement("drop_peer_listeners", home=home))
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
            if not rows[0][1]:
                break
            if not rows[0][0]:  # somebody holds the others at this moment
                yield from ask(statement("pause", seconds=_PAUSE))
        yield from ask(statement("drop_peer", home=home))
    return ended
