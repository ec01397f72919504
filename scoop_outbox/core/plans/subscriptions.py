"""Plans of a service that begins: what it listens on becomes known, and the tables are those that the code expects."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from scoop_outbox.core.statement import BEGIN, COMMIT, Plan, ask, statement
from scoop_outbox.errors import BrokerError
from scoop_outbox.external import External
from scoop_outbox.saga import Saga

TAKEN_OVER_AT_ONCE = 20_000
"""How many runs, and how many messages, a saga takes over from its former name in one transaction. The others are
executed under that name, and taken over at the next start."""


@dataclass(frozen=True, slots=True)
class TakenOver:
    """What a saga has taken over from a name that it had before.

    Attributes:
        former: the name.
        saga: its name now.
        runs: how many runs go on under the new name.
        waiting: how many messages that somebody waits for are expected under it.
    """

    former: str
    saga: str
    runs: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a topic may be written at a service's broker.

    Attributes:
        names: its other names.
        pattern: the regular expression of the topics that it stands for, if it stands for others.
    """

    names: tuple[str, ...] = ()
    pattern: str | None = None

    def means(self, topic: str, written: str) -> bool:
        """Tell whether what is written stands for `topic`, whose spelling this is."""
        if written == topic or written in self.names:
            return True
        return self.pattern is not None and re.fullmatch(self.pattern, written) is not None


def announce(
    service: str, sagas: Sequence[Saga], spellings: Mapping[str, Spelling], *, via_broker: bool
) -> Plan[list[TakenOver]]:
    """Make known which sagas of a service listen on which topics; who is known already stays, as it is now.

    What was subscribed, and has begun, under former names of these sagas is theirs from then on. One transaction.

    Args:
        service: whose sagas they are.
        sagas: all of them.
        spellings: how topics may be written, by topic; those that are left out stand for themselves alone.
        via_broker: whether a broker brings the service its messages. Once said, it is not unsaid.
    """
    names = [saga.name for saga in sagas]
    spelt = [spellings.get(saga.topic, Spelling()) for saga in sagas]
    renamed = [(former, saga.name) for saga in sagas for former in saga.formerly]
    *_, former = yield from ask(
        BEGIN,
        statement("lock_service", service=service),
        statement("tell_apart", service=service, sagas=names),
        statement("rename", service=service, formers=[old for old, _ in renamed], sagas=[saga for _, saga in renamed]),
        statement("take_over_subscriptions", service=service, sagas=names),
        statement(
            "subscribe",
            topics=[saga.topic for saga in sagas],
            services=[service] * len(sagas),
            sagas=names,
            ordered=[saga.ordered is not None for saga in sagas],
            external=[isinstance(saga, External) for saga in sagas],
            patterns=[one.pattern for one in spelt],
            names=[json.dumps(one.names) for one in spelt],
            via_broker=via_broker,
            retentions=[_seconds(saga.retention.hierarchies) for saga in sagas],
            payload_retentions=[_seconds(saga.retention.payload) for saga in sagas],
        ),
        statement("read_former", service=service, sagas=names),
    )
    if not former:
        yield from ask(COMMIT)
        return []
    formers, now = [row[0] for row in former], [row[1] for row in former]
    rows, _ = yield from ask(
        statement("take_over", service=service, formers=formers, sagas=now, most=TAKEN_OVER_AT_ONCE), COMMIT
    )
    return [TakenOver(*row) for row in rows if row[2] or row[3]]


def _seconds(period: timedelta | None) -> float | None:
    return None if period is None else period.total_seconds()


def read_subscribed(service: str, sagas: Sequence[Saga]) -> Plan[frozenset[str]]:
    """Return which sagas of a service are subscribed already to the topics that they listen on."""
    (rows,) = yield from ask(
        statement(
            "read_subscribed",
            service=service,
            topics=[saga.topic for saga in sagas],
            sagas=[saga.name for saga in sagas],
        )
    )
    return frozenset(row[0] for row in rows)


def list_services_via_broker() -> Plan[list[str]]:
    """Return the services of this home that have said that a broker brings them their messages."""
    (rows,) = yield from ask(statement("list_services_via_broker"))
    return [row[0] for row in rows]


def read_revision() -> Plan[str | None]:
    """Return the revision that the tables are at; None if they were never migrated."""
    (rows,) = yield from ask(statement("read_revision"))
    return rows[0][0] if rows else None


def check_without_broker(via_broker: Sequence[str], service: str, *, relay: bool) -> None:
    """See whether a process that was told of no broker may do without one.

    Args:
        via_broker: the services that receive from a broker.
        service: whose process it is.
        relay: whether it is to relay.

    Raises:
        BrokerError: it may not: services elsewhere would never see what it delivered, or it would never receive what
            the broker has for it, and nobody would notice.
    """
    away = (
        "Configure the broker (--broker, SCOOP_OUTBOX_BROKER, broker=). To move away from it, drain its queues and set "
        "the broker to postgresql:// in every process"
    )
    if relay and via_broker:
        raise BrokerError(
            f"services of this database use a broker ({', '.join(via_broker)}), and this relay has none: its messages "
            f"would not leave the database. {away}"
        )
    if service in via_broker:
        raise BrokerError(
            f"service {service} receives from a broker, and this process has none: it would receive nothing. {away}"
        )
