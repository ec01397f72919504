"""Runs: looking at them, and taking parked ones on again. Needs no application."""

from __future__ import annotations

import uuid

from scoop_outbox.answers import Answer
from scoop_outbox.core.plans import parking
from scoop_outbox.core.plans.parking import ParkedRun
from scoop_outbox.operations import hierarchy
from scoop_outbox.operations.hierarchy import Hierarchy, Unstarted
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from scoop_outbox.store.standalone import OpenedDatabase

__all__ = ["Answer", "Hierarchy", "ParkedRun", "Runs", "Unstarted"]


class Runs(OpenedDatabase):
    """The runs of one database. Use it in a `with` block, or close it.

    Args:
        database: a PostgreSQL URL.
        schema: the schema of our tables.

    Raises:
        DatabaseError: the URL is not usable. Every method raises it too, when the database cannot be used.
        DefinitionError: the name of the schema is not usable.
    """

    def __init__(self, database: str, *, schema: str = DEFAULT_SCHEMA) -> None:
        """Open nothing yet."""
        super().__init__(database, schema, "runs")

    def show(self, sought: uuid.UUID | str) -> Hierarchy:
        """Return everything below a message or a run, as it stands now.

        Args:
            sought: the id of the message or the run, or its first six hexadecimal digits or more.

        Raises:
            DefinitionError: it is no id.
            UnknownMessage: no id begins with it.
            AmbiguousId: several do; the error names them.
        """
        with self._home.blocking_driver() as driver:
            return driver.run(hierarchy.show(sought, self._home.failures))

    def parked(self, service: str, limit: int = 1000) -> list[ParkedRun]:
        """Return parked runs of a service, at most `limit` of them."""
        with self._home.blocking_driver() as driver:
            return driver.run(parking.list_parked(service, limit))

    def retry(self, run_id: uuid.UUID) -> Answer:
        """Take a parked run on again: see `Scoop.retry`."""
        with self._home.blocking_driver() as driver:
            return driver.run(parking.retry(run_id))
