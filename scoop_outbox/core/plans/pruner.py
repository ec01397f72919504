"""A pruner: looks through a home once, and removes what is due, a small transaction at a time.

Whoever has one calls `look` and `remove` in turn, with pauses as it likes. Between the two nothing is open and nothing
is locked: that is when what is about to go is handed to whoever archives it. What changes meanwhile has not ended any
more, or has ended later, and stays.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scoop_outbox._retention import Retention
from scoop_outbox.core.plans.prune import (
    FORGOTTEN_AT_ONCE,
    Part,
    Periods,
    Tree,
    Walk,
    find_unhandled,
    forget_pruned,
    prune,
    prune_unhandled,
    read_archive,
    read_due,
    read_periods,
    some,
)
from scoop_outbox.core.statement import Plan

_LOWEST = uuid.UUID(int=0)


@dataclass(frozen=True, slots=True)
class ArchivedHierarchy:
    """A hierarchy that is about to go, whole.

    It is handed over before it goes, at least once: if the process dies in between, it is handed over again.

    Attributes:
        message_id: the message at its top.
        erased_only: whether only its payload is to go: messages' bodies and headers, contexts and results.
        rows: its rows by table: `message`, `run`, `step`, `child`, `request`, `failure`, `expected_root`. Each is a
            mapping from columns to JSON values; a body is text as Postgres writes bytes: hexadecimal behind a backslash
            and an x.
    """

    message_id: uuid.UUID
    erased_only: bool
    rows: Mapping[str, Sequence[Mapping[str, Any]]]

    def to_json(self) -> str:
        """Return all of it in one line."""
        return json.dumps({"message_id": str(self.message_id), "erased_only": self.erased_only, **self.rows})


@dataclass(frozen=True, slots=True)
class Found:
    """What is to be removed next, perhaps nothing.

    Attributes:
        trees: the hierarchies.
        part: whether they go, or their payload.
        handled: whether anybody has handled their messages.
        archived: what they hold, if somebody wants to know.
    """

    trees: Sequence[Tree] = ()
    part: Part = Part.WHOLE
    handled: bool = True
    archived: Sequence[ArchivedHierarchy] = ()


@dataclass(slots=True)
class Counts:
    """What has been removed.

    Attributes:
        hierarchies: how many hierarchies.
        runs: how many runs they had.
        unhandled: how many messages that nobody had handled.
        erased: of how many hierarchies the payload.
        forgotten: how many pruned hierarchies are not remembered any more.
    """

    hierarchies: int = 0
    runs: int = 0
    unhandled: int = 0
    erased: int = 0
    forgotten: int = 0

    def add(self, other: Counts) -> None:
        """Count what was removed besides."""
        self.hierarchies += other.hierarchies
        self.runs += other.runs
        self.unhandled += other.unhandled
        self.erased += other.erased
        self.forgotten += other.forgotten


class Pruner:
    """One look through a home.

    Args:
        retention: what is kept for how long.
        thorough: whether payloads are erased and unhandled messages are removed, too: to find them, more is looked at.
        archives: whether somebody wants to know what goes.
        largest: how many runs a hierarchy may have at most to be found, None is any number.
        too_large: the messages at the top of those that have more: they are not looked at again.
    """

    def __init__(
        self,
        retention: Retention,
        *,
        thorough: bool = True,
        archives: bool = False,
        largest: int | None = None,
        too_large: set[uuid.UUID] | None = None,
    ) -> None:
        """Have looked at nothing."""
        self._largest = largest
        self._too_large = set() if too_large is None else too_large
        self._retention = retention
        self._parts = [Part.WHOLE, *([Part.PAYLOAD] if thorough else [])]
        self._archives = archives
        self._periods: Periods | None = None
        self._walk: Walk | None = None
        self._left: Sequence[uuid.UUID] = ()
        self._after: uuid.UUID | None = _LOWEST if thorough else None

    def look(self) -> Plan[Found | None]:
        """Return what is to be removed next, None at the end."""
        if self._periods is None:
            self._periods = yield from read_periods(self._retention)
        while True:
            if self._left:
                roots: Sequence[uuid.UUID] | None = self._left
                self._left = ()
            else:
                roots = None if self._walk is None else (yield from self._walk.next())
            if roots is not None:
                part = self._walk.part if self._walk is not None else Part.WHOLE
                due = yield from read_due([one for one in roots if one not in self._too_large], self._periods, part)
                # What goes in one transaction, and no more: an archive that is handed the others sees them again.
                trees, left = some(self._in_size(due))
                self._left = [tree.root for tree in left]
                return (yield from self._found(trees, part))
            if not self._parts:
                break
            self._walk = Walk(self._periods, self._parts.pop(0))
        if self._after is None:
            return None
        trees, self._after = yield from find_unhandled(self._after, self._periods)
        return (yield from self._found(trees, Part.WHOLE, handled=False))

    def _in_size(self, trees: Sequence[Tree]) -> Sequence[Tree]:
        if self._largest is None:
            return trees
        self._too_large.update(tree.root for tree in trees if len(tree.runs) > self._largest)
        return [tree for tree in trees if len(tree.runs) <= self._largest]

    def remove(self, found: Found) -> Plan[Counts]:
        """Remove what was found, and is still due."""
        roots = [tree.root for tree in found.trees]
        if not roots or self._periods is None:
            return Counts()
        if not found.handled:
            return Counts(unhandled=(yield from prune_unhandled(roots, self._periods)))
        pruned = yield from prune(roots, self._periods, found.part)
        self._left = [*pruned.left, *self._left]
        if found.part is Part.PAYLOAD:
            return Counts(erased=pruned.hierarchies)
        return Counts(pruned.hierarchies, pruned.runs)

    def forget(self) -> Plan[tuple[int, bool]]:
        """Forget some of what was pruned long ago; return how many, and whether there may be more."""
        count = yield from forget_pruned()
        return count, count == FORGOTTEN_AT_ONCE

    def _found(self, trees: Sequence[Tree], part: Part, *, handled: bool = True) -> Plan[Found]:
        if not self._archives or not trees:
            return Found(trees, part, handled)
        rows = yield from read_archive(trees)
        archived = [_archived(tree, rows[tree.root], part) for tree in trees]
        return Found(trees, part, handled, archived)


def _archived(tree: Tree, rows: Sequence[tuple[str, str]], part: Part) -> ArchivedHierarchy:
    tables: dict[str, list[Mapping[str, Any]]] = {}
    for table, row in rows:
        tables.setdefault(table, []).append(json.loads(row))
    return ArchivedHierarchy(tree.root, part is Part.PAYLOAD, tables)
