"""Plans of pruning: hierarchies that have ended are removed as a whole, or their payload is, in small transactions.

A hierarchy is everything below a message that no run has launched. It goes when all its runs have ended for good, when
nothing about it is waited for, and when the last of them ended longer ago than the sagas at its top want. Whatever can
still run, or be mended by a person, keeps it.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any

from scoop_outbox._retention import Retention, SagaRetention
from scoop_outbox.core.statement import BEGIN, COMMIT, READ_CLOCK, ROLLBACK, Plan, Rows, Statement, ask, statement

SHORTEST = timedelta(minutes=1)
"""Hierarchies that have not been over for so long stay, whatever is asked for: see `lock_roots`."""

ROOTS_AT_ONCE = 100
RUNS_AT_ONCE = 2_000
"""How much goes in one transaction; a larger hierarchy goes in one of its own."""
FORGOTTEN_AT_ONCE = 1_000
LOOKED_AT = 1_000
"""How many messages are looked at together to find those that nobody has handled."""

_BEGINNING = datetime(1, 1, 2, tzinfo=UTC)
_LOWEST = uuid.UUID(int=0)


class Part(Enum):
    """What goes of a hierarchy: all of it, or its payload."""

    WHOLE = "whole"
    PAYLOAD = "payload"


SagaName = tuple[str, str]
"""A service, and a saga of it."""
NOBODY: SagaName = ("", "")
"""Says nothing about how long something is kept."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A hierarchy, as far as it matters.

    Attributes:
        root: the message at its top.
        runs: all of it.
        ended: whether they have ended for good, and nobody waits for anything about them.
        ended_at: when the last one did; None if one has not.
        sagas: who handles the message at the top.
        erased: whether its payload has been erased.
    """

    root: uuid.UUID
    runs: Sequence[uuid.UUID]
    ended: bool
    ended_at: datetime | None
    sagas: Sequence[SagaName]
    erased: bool


@dataclass(frozen=True, slots=True)
class Pruned:
    """What one transaction has removed.

    Attributes:
        hierarchies: how many.
        runs: how many runs they had.
        left: messages at the top of others, for which there was no room in it.
    """

    hierarchies: int = 0
    runs: int = 0
    left: Sequence[uuid.UUID] = ()


@dataclass(frozen=True, slots=True)
class Periods:
    """For how long each saga's hierarchies are kept, and what the time is.

    Attributes:
        retention: what whoever prunes says.
        sagas: what each saga says that has any.
        now: the time of the database.
    """

    retention: Retention
    sagas: Mapping[SagaName, SagaRetention]
    now: datetime

    def of(self, saga: SagaName, part: Part) -> timedelta | None:
        """Return for how long something is kept of the hierarchies of a saga; None is for ever."""
        own = self.sagas.get(saga, SagaRetention())
        asked = self.retention
        if part is Part.WHOLE:
            says = asked.hierarchies if own.hierarchies is None else own.hierarchies
            limits = [one for one in (says, asked.at_least) if one is not None]
        else:
            says = asked.payload if own.payload is None else own.payload
            limits = [] if says is None else [says]
        return max(SHORTEST, *limits) if limits else None

    def is_due(self, tree: Tree, part: Part) -> bool:
        """Tell whether a hierarchy, or its payload, goes: the saga at its top decides that wants it for longest."""
        if not tree.ended or tree.ended_at is None or not tree.sagas or (part is Part.PAYLOAD and tree.erased):
            return False
        periods = [self.of(saga, part) for saga in tree.sagas]
        kept = [one for one in periods if one is not None]
        return len(kept) == len(periods) and tree.ended_at <= self.now - max(kept)


def read_periods(retention: Retention) -> Plan[Periods]:
    """Return for how long hierarchies are kept, now."""
    rows, clock = yield from ask(statement("read_root_sagas"), READ_CLOCK)
    sagas = {(row[0], row[1]): SagaRetention(row[2], row[3]) for row in rows}
    return Periods(retention, sagas, clock[0][0])


class Walk:
    """A look at everything that may be old enough, from the beginning, saga by saga.

    Args:
        periods: what is old enough.
        part: of what.
    """

    def __init__(self, periods: Periods, part: Part) -> None:
        """Have looked at nothing."""
        self._periods = periods
        self.part = part
        self._ahead = [saga for saga in sorted(periods.sagas) if periods.of(saga, part) is not None]
        self._after = _BEGINNING, _LOWEST

    def next(self) -> Plan[Sequence[uuid.UUID] | None]:
        """Return messages at the top of hierarchies that may be old enough, None when there are no more."""
        while self._ahead:
            saga = self._ahead[0]
            period = self._periods.of(saga, self.part)
            assert period is not None  # noqa: S101 - or it would not be among them
            after, after_run = self._after
            (rows,) = yield from ask(
                statement(
                    "find_old_roots",
                    service=saga[0],
                    saga=saga[1],
                    before=self._periods.now - period,
                    after=after,
                    after_run=after_run,
                    unerased=self.part is Part.PAYLOAD,
                    most=ROOTS_AT_ONCE,
                )
            )
            if len(rows) < ROOTS_AT_ONCE:
                del self._ahead[0]
                self._after = _BEGINNING, _LOWEST
            else:
                self._after = rows[-1][1], rows[-1][2]
            if rows:
                return list(dict.fromkeys(row[0] for row in rows))
        return None


def read_due(roots: Sequence[uuid.UUID], periods: Periods, part: Part) -> Plan[list[Tree]]:
    """Return those hierarchies of which something is to go, as they stand; nothing is locked."""
    (rows,) = yield from ask(statement("read_trees", roots=list(roots)))
    return [tree for tree in map(_tree, rows) if periods.is_due(tree, part)]


def read_archive(trees: Sequence[Tree]) -> Plan[Mapping[uuid.UUID, list[tuple[str, str]]]]:
    """Return the rows of hierarchies by the messages at their tops: of each its table, and itself as JSON text."""
    (rows,) = yield from ask(
        statement(
            "read_archive",
            tops=[tree.root for tree in trees],
            runs=[run for tree in trees for run in tree.runs],
            roots=[tree.root for tree in trees for _ in tree.runs],
        )
    )
    found: dict[uuid.UUID, list[tuple[str, str]]] = {tree.root: [] for tree in trees}
    for root, table, row in rows:
        found[root].append((table, row))
    return found


def prune(roots: Sequence[uuid.UUID], periods: Periods, part: Part) -> Plan[Pruned]:
    """Remove hierarchies, or their payload, in one transaction; those that are not due, or in use, stay.

    Args:
        roots: the messages at their tops.
        periods: what is due.
        part: whether they go, or their payload.
    """
    _, locked, rows = yield from ask(
        BEGIN, statement("lock_roots", roots=list(roots)), statement("read_trees", roots=list(roots))
    )
    held = {row[0] for row in locked}
    due = [tree for tree in map(_tree, rows) if tree.root in held and periods.is_due(tree, part)]
    trees, left = some(due)
    if not trees:
        yield from ask(ROLLBACK)
        return Pruned()
    runs = [run for tree in trees for run in tree.runs]
    (ended,) = yield from ask(statement("lock_ended", runs=runs, before=periods.now))
    trees = _all_locked(trees, ended)
    runs = [run for tree in trees for run in tree.runs]
    of = {"runs": runs, "roots": [tree.root for tree in trees]}
    releasing = [statement("release_elsewhere", **of)] if part is Part.WHOLE else []
    *_, extended = yield from ask(*releasing, _removing(part, of, periods), statement("is_extended", **of))
    if not trees or extended[0][0]:
        # Somebody has begun below it at this moment: the next look sees that.
        yield from ask(ROLLBACK)
        return Pruned(left=[tree.root for tree in left])
    yield from ask(COMMIT)
    return Pruned(len(trees), len(runs), [tree.root for tree in left])


def find_unhandled(after: uuid.UUID, periods: Periods) -> Plan[tuple[list[Tree], uuid.UUID | None]]:
    """Return messages that nobody has handled and that are old enough, from one id on.

    Returns:
        Each as a hierarchy without runs; and the last id that was looked at, None when there are no more.
    """
    period = periods.of(NOBODY, Part.WHOLE)
    if period is None:
        return [], None
    (rows,) = yield from ask(statement("find_unhandled", after=after, before=periods.now - period, most=LOOKED_AT))
    last = rows[-1][0] if len(rows) == LOOKED_AT else None
    return [_nobodys(message, periods.now) for message, is_due in rows if is_due], last


def prune_unhandled(roots: Sequence[uuid.UUID], periods: Periods) -> Plan[int]:
    """Remove messages that nobody has handled; return how many."""
    _, locked = yield from ask(BEGIN, statement("lock_roots", roots=list(roots)))
    of = {"runs": list[uuid.UUID](), "roots": [row[0] for row in locked]}
    _, extended = yield from ask(_removing(Part.WHOLE, of, periods), statement("is_extended", **of))
    handled: bool = extended[0][0]
    yield from ask(ROLLBACK if handled else COMMIT)
    return 0 if handled else len(locked)


def forget_pruned() -> Plan[int]:
    """Forget hierarchies that were pruned long enough ago; return how many, at most `FORGOTTEN_AT_ONCE`."""
    (rows,) = yield from ask(statement("forget_pruned", most=FORGOTTEN_AT_ONCE))
    forgotten: int = rows[0][0]
    return forgotten


def is_pruned(target: uuid.UUID) -> Plan[bool]:
    """Tell whether an id is known to be that of a hierarchy that was pruned, or of a run at its top."""
    (rows,) = yield from ask(statement("is_pruned", target=target))
    pruned: bool = rows[0][0]
    return pruned


def _removing(part: Part, of: Mapping[str, Sequence[uuid.UUID]], periods: Periods) -> Statement:
    if part is Part.PAYLOAD:
        return statement("erase_payload", **of)
    return statement("prune", **of, remember=periods.retention.remembered)


def some(trees: Sequence[Tree]) -> tuple[list[Tree], list[Tree]]:
    """Divide hierarchies into those that go in one transaction, one at least, and the others."""
    size, count = 0, 0
    for tree in trees:
        if count and size + len(tree.runs) > RUNS_AT_ONCE:
            break
        size, count = size + len(tree.runs), count + 1
    return list(trees[:count]), list(trees[count:])


def _all_locked(trees: Sequence[Tree], locked: Rows) -> list[Tree]:
    held: Collection[uuid.UUID] = {row[0] for row in locked}
    return [tree for tree in trees if all(run in held for run in tree.runs)]


def _nobodys(message: uuid.UUID, now: datetime) -> Tree:
    return Tree(message, (), ended=True, ended_at=now, sagas=(), erased=False)


def _tree(row: Sequence[Any]) -> Tree:
    """Return the hierarchy in a row of `read_trees`."""
    root, runs, ended, ended_at, services, sagas, erased = row
    return Tree(root, runs, ended, ended_at, list(zip(services, sagas, strict=True)), erased)
