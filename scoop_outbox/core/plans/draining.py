"""Plans of a home that is being drained: other homes of its services are preferred, and it ends what it has."""

from __future__ import annotations

from dataclasses import dataclass

from scoop_outbox.core.plans.homes import announce_home
from scoop_outbox.core.statement import BEGIN, COMMIT, Plan, ask, statement


@dataclass(frozen=True, slots=True)
class Draining:
    """What keeps a home from being given up.

    Attributes:
        draining: whether it is being drained.
        alone: services and sagas that no other home has which takes over.
        unconfirmed: homes that have not said that they know.
        awaited: for how many children here other homes wait, and messages they are passing on, as they have said last;
            None for one that has not said, or cannot say: a transaction is open there that may launch for this home.
        unpublished: messages in the outbox.
        dead_letters: messages that somebody has to replay, or to drop.
        unfinished: runs that have not ended, or wait for an operator.
        undoable: runs that other homes may still ask to be rolled back, up to a thousand.
    """

    draining: bool
    alone: list[tuple[str, str]]
    unconfirmed: list[str]
    awaited: dict[str, int | None]
    unpublished: int
    dead_letters: int
    unfinished: int
    undoable: int

    @property
    def is_drained(self) -> bool:
        """Tell whether nothing is under way here, no home waits for anything here, and others take over all of it."""
        left = self.alone or self.unconfirmed or self.unpublished or self.dead_letters or self.unfinished
        return self.draining and not left and all(count == 0 for count in self.awaited.values())


def read_draining() -> Plan[Draining]:
    """Return what keeps this home from being given up. All that was is looked through."""
    here, alone, peers = yield from ask(
        statement("read_draining"), statement("read_sagas_only_here"), statement("read_awaiting")
    )
    draining, unpublished, dead_letters, unfinished, undoable = here[0]
    return Draining(
        draining,
        [(service, saga) for service, saga in alone],
        [name for name, confirmed, _ in peers if not confirmed],
        {name: waiting for name, _, waiting in peers},
        unpublished,
        dead_letters,
        unfinished,
        undoable,
    )


def drain_home(*, draining: bool) -> Plan[None]:
    """Ask all homes to prefer others that have the sagas of this one, too, or to do so no longer.

    Each time, they confirm it, and say for how many children here they wait.
    """
    yield from ask(BEGIN, statement("drain_home", draining=draining), COMMIT)
    yield from announce_home(begins=True)
