"""The plan of a home that was restored from an older backup, or has moved: what it and others know is compared.

Nothing is guessed. Others are told, so that they ask after their children here; and this home asks after its own.
"""

from __future__ import annotations

from scoop_outbox.core.plans.failures import Known
from scoop_outbox.core.plans.homes import announce_restored, read_identity, read_place
from scoop_outbox.core.plans.silence import ask_all
from scoop_outbox.core.statement import BEGIN, COMMIT, Plan, ask, statement


def move_home(known: Known) -> Plan[int]:
    """Note that this home is in this database from now on, and compare what is known here and elsewhere.

    Args:
        known: the failures that this process knows.

    Returns:
        After how many children in other homes it asks.
    """
    yield from ask(BEGIN)
    _, here = yield from read_place()
    if here is not None:
        yield from ask(statement("store_place", place=here))
    identity = yield from read_identity()
    # Who has told nobody who listens here is known to nobody.
    asked = (yield from compare(known)) if identity.name is not None and identity.revision > 0 else 0
    yield from ask(COMMIT)
    return asked


def compare(known: Known) -> Plan[int]:
    """Tell all homes that this one was restored, and ask after all children there, in the transaction that is open."""
    yield from announce_restored()
    return (yield from ask_all(None, known))
