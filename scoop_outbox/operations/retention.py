"""Retention: removing hierarchies that ended long ago. Needs no application."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from scoop_outbox._retention import REMEMBERED, Retention
from scoop_outbox.core.plans.prune import Part
from scoop_outbox.core.plans.pruner import ArchivedHierarchy, Counts, Found, Pruner
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from scoop_outbox.store.standalone import OpenedDatabase

__all__ = ["ArchivedHierarchy", "Counts", "Pruning", "PruningOptions"]

Archive = Callable[[Sequence[ArchivedHierarchy]], object]
"""Keeps hierarchies elsewhere; they go when it returns."""

PAUSE = 4.0
"""Between two transactions, so many times as long as the one before took: others are to have the database."""


@dataclass(frozen=True, slots=True)
class PruningOptions:
    """What goes.

    Attributes:
        older_than: what ended longer ago than this, and longer ago than the `retention` of the sagas at its top.
        retain_payload: erase the payload of what ended longer ago than this, where sagas do not say so themselves.
        remember: how long a message at the top that comes again starts nothing; 7 days at least.
        limit: how many hierarchies at most; None is all.
        pause: between two transactions, so many times as long as the one before took.
    """

    older_than: timedelta
    retain_payload: timedelta | None = None
    remember: timedelta = REMEMBERED
    limit: int | None = None
    pause: float = PAUSE


class Pruning(OpenedDatabase):
    """The finished hierarchies of one database. Use it in a `with` block, or close it.

    Each transaction removes a few hierarchies whole: interrupted at any moment, each is there or gone.

    Args:
        database: a PostgreSQL URL.
        schema: the schema of our tables.

    Raises:
        DatabaseError: the URL is not usable. Every method raises it too, when the database cannot be used.
        DefinitionError: the name of the schema is not usable.
    """

    def __init__(self, database: str, *, schema: str = DEFAULT_SCHEMA) -> None:
        """Open nothing yet."""
        super().__init__(database, schema, "prune")

    def prune(self, options: PruningOptions, archive: Archive | None = None) -> Counts:
        """Remove hierarchies that have ended, a few at a time, and what else is old.

        Never one with a run that can still run, or be mended by a person: such as one that is parked, or whose rollback
        has failed and has not been abandoned.

        Args:
            options: what goes.
            archive: is handed what is about to go, and may raise to keep it.

        Raises:
            DefinitionError: a period is negative, or `remember` is too short.
        """
        pruner = _pruner(options, archives=archive is not None)
        counts = Counts()
        for found in self._found(pruner, options, counts):
            if archive is not None and found.archived:
                archive(found.archived)
            began = time.monotonic()
            with self._home.blocking_driver() as driver:
                counts.add(driver.run(pruner.remove(found)))
            time.sleep(options.pause * (time.monotonic() - began))
        more = True
        while more:
            with self._home.blocking_driver() as driver:
                forgotten, more = driver.run(pruner.forget())
            counts.forgotten += forgotten
        return counts

    def count(self, options: PruningOptions) -> Counts:
        """Count what `prune` would remove now. Nothing is locked.

        Raises:
            DefinitionError: as `prune`.
        """
        pruner = _pruner(options, archives=False)
        counts = Counts()
        for found in self._found(pruner, options, counts):
            count = len(found.trees)
            if not found.handled:
                counts.unhandled += count
            elif found.part is Part.PAYLOAD:
                counts.erased += count
            else:
                counts.hierarchies += count
                counts.runs += sum(len(tree.runs) for tree in found.trees)
        return counts

    def _found(self, pruner: Pruner, options: PruningOptions, counts: Counts) -> Iterator[Found]:
        while True:
            with self._home.blocking_driver() as driver:
                found = driver.run(pruner.look())
            if found is None:
                return
            if options.limit is not None:
                left = options.limit - (counts.hierarchies + counts.unhandled + counts.erased)
                if left <= 0:
                    return
                found = replace(found, trees=found.trees[:left], archived=found.archived[:left])
            if found.trees:
                yield found


def _pruner(options: PruningOptions, *, archives: bool) -> Pruner:
    retention = Retention(None, options.retain_payload, options.older_than, options.remember)
    return Pruner(retention.checked(), archives=archives)
