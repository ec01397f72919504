"""The plan of silence: children in other homes of which nothing has been heard for long are asked after.

What was lost at a broker comes back this way, whatever it was: news, for the home that is asked tells them again; and
what those children had been told to do, for that is said again with the question. Both do nothing if nothing was lost.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from scoop_outbox.core.plans.failures import Known, recall
from scoop_outbox.core.plans.homes import Identity, read_identity
from scoop_outbox.core.run import ChildState
from scoop_outbox.core.statement import BEGIN, COMMIT, READ_CLOCK, Plan, Statement, ask, statement
from scoop_outbox.failure import Failure
from scoop_outbox.wire.control import ChildRef, Kind, Order, body_of

AT_ONCE = 500
"""Of how many children another home is asked in one message."""

_EVER = datetime.min.replace(tzinfo=UTC)

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
    _, rows, clock = yield from ask(BEGIN, _silent_children(after, heard_since, silent), READ_CLOCK)
    now: datetime = clock[0][0]
    found = [_Silent(*row) for row in rows]
    writes = yield from _asking(found, known)
    yield from ask(*writes, COMMIT)
    return Asked(len(found), _place(found), now)


def ask_all(home: uuid.UUID | None, known: Known) -> Plan[int]:
    """Ask after all children in another home whose parents are under way, in the transaction that is open.

    Also after those that have committed: the other home, or this one, may know something else of them than before.

    Args:
        home: which one; None: in all of them.
        known: the failures that this process knows.

    Returns:
        After how many.
    """
    asked, after = 0, None
    while True:
        (rows,) = yield from ask(_silent_children(after, _EVER, timedelta(0), home))
        found = [_Silent(*row) for row in rows]
        writes = yield from _asking(found, known)
        if writes:
            yield from ask(*writes)
        asked, after = asked + len(found), _place(found)
        if after is None:
            break
    (rows,) = yield from ask(statement("read_committed_elsewhere", home=home))
    if rows:
        identity = yield from read_identity()
        refs = [(to, ChildRef.of(*child).to_json()) for to, *child in rows]
        yield from ask(*_questions(refs, identity))
    return asked + len(rows)


def _silent_children(
    after: tuple[uuid.UUID, str, str] | None, heard_since: datetime, silent: timedelta, home: uuid.UUID | None = None
) -> Statement:
    message, service, saga = after or (uuid.UUID(int=0), "", "")
    of = {"heard_since": heard_since, "silent": silent, "message": message, "service": service, "saga": saga}
    return statement("read_silent_children", **of, home=home, most=AT_ONCE)


def _asking(found: Sequence[_Silent], known: Known) -> Plan[list[Statement]]:
    """Return what asks after children, and tells them once more what they had been told."""
    if not found:
        return []
    identity = yield from read_identity()
    reasons = yield from recall([one.failure for one in found if one.state in _TOLD], known)
    refs = [(one.reply_to, one.ref) for one in found]
    return [*_questions(refs, identity), *_repeated(found, reasons, identity)]


def _place(found: Sequence[_Silent]) -> tuple[uuid.UUID, str, str] | None:
    """Return the last of them, if there may be more."""
    last = found[-1] if len(found) == AT_ONCE else None
    return None if last is None else (last.message, last.service, last.saga)


def _questions(refs: Sequence[tuple[str, dict[str, Any]]], identity: Identity) -> list[Statement]:
    asked: dict[str, list[dict[str, Any]]] = {}
    for reply_to, ref in refs:
        asked.setdefault(reply_to, []).append(ref)
    return [
        _order(identity, to, Order.WHERE, children[first : first + AT_ONCE])
        for to, children in asked.items()
        for first in range(0, len(children), AT_ONCE)
    ]


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
