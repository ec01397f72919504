"""Plans of a service that begins: what it listens on becomes known, and the tables are those that the code expects."""

from __future__ import annotations

from collections.abc import Sequence

from scoop_outbox.core.statement import Plan, ask, statement
from scoop_outbox.saga import Saga


def subscribe(service: str, sagas: Sequence[Saga]) -> Plan[None]:
    """Make known which sagas of a service listen on which topics; who is known already stays, ordered as it is now."""
    yield from ask(
        statement(
            "subscribe",
            topics=[saga.topic for saga in sagas],
            services=[service] * len(sagas),
            sagas=[saga.name for saga in sagas],
            ordered=[saga.ordered is not None for saga in sagas],
        )
    )


def read_revision() -> Plan[str | None]:
    """Return the revision that the tables are at; None if they were never migrated."""
    (rows,) = yield from ask(statement("read_revision"))
    return rows[0][0] if rows else None
