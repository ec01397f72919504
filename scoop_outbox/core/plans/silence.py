"""The plan of silence: children in other homes of which nothing has been heard for long are asked after.

What was lost at a broker comes back this way, whatever it was: news, for the home that is asked tells them again; and
what those children had been told to do, for that is said again with the question. Both do nothing if nothing was lost.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from scoop_outbox.core.plans.failures import Known, recall
from scoop_outbox.core.plans.homes import Identity, read_identity
from scoop_outbox.core.run import ChildState
from scoop_outbox.core.statement import BEGIN, COMMIT, READ_CLOCK, Plan, Statement, ask, statement
from scoop_outbox.failure import Failure
from scoop_outbox.wire.control import ChildRef, Kind, Order, body_of

AT_ONCE = 500
"""Of how many children another home is asked in one message."""

_TOLD = {ChildState.CANCELLING.value: Order.CANCEL, ChildState.ROLLING_BACK.value: Order.ROLL_BACK}
"""What children in these states have been told, unless they have got there by themselves."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Of how many children other homes were asked.

    Attributes:
        asked: how many.
        last: the last of them, if there may be more.
        now: the time of the database's clock.
    """

    asked: int
    last: tuple[uuid.UUID, str, str] | None
    now: datetime


class _Silent(NamedTuple):
    """A child of which nothing has been heard for long, and what it has been told by whom."""

    reply_to: str
    message: uuid.UUID
    service: str
    saga: str
    generation: int
    state: str
    parent: uuid.UUID
    failure: uuid.UUID | None
    context: str | None
    rollback_by: datetime | None

    @property
    def ref(self) -> dict[str, Any]:
        return ChildRef.of(self.message, self.service, self.saga, self.generation).to_json()


def ask_silent(
    heard_since: datetime, silent: timedelta, after: tuple[uuid.UUID, str, str] | None, known: Known
) -> Plan[Asked]:
    """Ask other homes after children that have been open for long, some of them, in one transaction.

    Args:
        heard_since: homes that have not been heard of since then are not asked.
        silent: for how long a child has been open.
        after: the last that was asked after before; None begins with the first.
        known: the failures that this process knows.
    """
    message, service, saga = after or (uuid.UUID(int=0), "", "")
    of = {"heard_since": heard_since, "silent": silent, "message": message, "service": service, "saga": saga}
    _, rows, clock = yield from ask(BEGIN, statement("read_silent_children", **of, most=AT_ONCE), READ_CLOCK)
    now: datetime = clock[0][0]
    found = [_Silent(*row) for row in rows]
    writes: list[Statement] = []
    if found:
        identity = yield from read_identity()
        reasons = yield from recall([one.failure for one in found if one.state in _TOLD], known)
        writes = [*_questions(found, identity), *_repeated(found, reasons, identity)]
    yield from ask(*writes, COMMIT)
    last = found[-1] if len(found) == AT_ONCE else None
    return Asked(len(found), None if last is None else (last.message, last.service, last.saga), now)


def _questions(found: Sequence[_Silent], identity: Identity) -> list[Statement]:
    asked: dict[str, list[dict[str, Any]]] = {}
    for one in found:
        asked.setdefault(one.reply_to, []).append(one.ref)
    return [_order(identity, to, Order.WHERE, children) for to, children in asked.items()]


def _repeated(found: Sequence[_Silent], reasons: Mapping[uuid.UUID, Failure], identity: Identity) -> list[Statement]:
    """Return what tells children again what their parents have told them: those of one parent together."""
    told: dict[tuple[str, str, uuid.UUID], list[_Silent]] = {}
    for one in found:
        if one.state in _TOLD:
            told.setdefault((one.reply_to, one.state, one.parent), []).append(one)
    statements: list[Statement] = []
    for (to, state, _), children in told.items():
        first, more = children[0], {}
        reason = None if first.failure is None else reasons[first.failure]
        if state == ChildState.ROLLING_BACK:
            reason = None if reason is None else Failure.parent_said_so(reason, source=f"home {identity.name}")
            more["context"] = None if first.context is None else json.loads(first.context)
            more["rollbackBy"] = None if first.rollback_by is None else first.rollback_by.isoformat()
        said = None if reason is None else reason.to_json()
        statements.append(_order(identity, to, _TOLD[state], [one.ref for one in children], reason=said, **more))
    return statements


def _order(identity: Identity, to: str, order: Order, children: Sequence[Mapping[str, Any]], **more: Any) -> Statement:
    body = body_of(identity.sender, Kind.ORDERS, {"order": order.value, "children": children, **more})
    return statement("send_control", topic=to, key=str(identity.id), body=body)
