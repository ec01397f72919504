"""Plans of a service that begins: what it listens on becomes known, and the tables are those that the code expects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scoop_outbox.core.statement import Plan, ask, statement
from scoop_outbox.errors import BrokerError
from scoop_outbox.saga import Saga


def subscribe(service: str, sagas: Sequence[Saga], patterns: Mapping[str, str | None], *, brokered: bool) -> Plan[None]:
    """Make known which sagas of a service listen on which topics; who is known already stays, as it is now.

    Args:
        service: whose sagas they are.
        sagas: all of them.
        patterns: for topics that stand for others, the regular expression of those.
        brokered: whether a broker brings the service its messages.
    """
    yield from ask(
        statement(
            "subscribe",
            topics=[saga.topic for saga in sagas],
            services=[service] * len(sagas),
            sagas=[saga.name for saga in sagas],
            ordered=[saga.ordered is not None for saga in sagas],
            patterns=[patterns.get(saga.topic) for saga in sagas],
            brokered=brokered,
        )
    )


def read_brokered() -> Plan[list[str]]:
    """Return the services of this home that have said that a broker brings them their messages."""
    (rows,) = yield from ask(statement("read_brokered"))
    return [row[0] for row in rows]


def read_revision() -> Plan[str | None]:
    """Return the revision that the tables are at; None if they were never migrated."""
    (rows,) = yield from ask(statement("read_revision"))
    return rows[0][0] if rows else None


def check_unbrokered(services: Sequence[str]) -> None:
    """See whether a relay that was told of no broker may take in what it finds.

    Args:
        services: those that receive from a broker.

    Raises:
        BrokerError: it may not: services elsewhere would never see it, and nobody would notice.
    """
    if services:
        raise BrokerError(
            f"a broker serves {', '.join(services)} of this database, and this relay has none: what it delivered would "
            "stay within the database. Give it the broker (--broker, SCOOP_OUTBOX_BROKER, broker=), or postgresql:// "
            "if that is what you mean"
        )
