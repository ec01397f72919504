"""How tables are stored: how full their pages are, when they are vacuumed, and what the planner is told of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sqlalchemy import Connection, MetaData, Table, event

from scoop_outbox.store.ddl import counting_distinct, storing

# Rows of these tables are updated in place again and again: room on the page keeps the indexes out of it.
_UPDATED = {"fillfactor": "80"}
# Queues are emptied as fast as they fill: vacuum comes by how much has changed, not by what share of it. And it leaves
# them their pages: a statement that is planned for a queue without any reads all of it, also when it is full.
_QUEUE = {
    "autovacuum_vacuum_scale_factor": "0",
    "autovacuum_vacuum_threshold": "5000",
    "autovacuum_vacuum_cost_delay": "0",
    "vacuum_truncate": "false",
}
_STORED = {"run": _UPDATED, "child": _UPDATED, "outbox": _QUEUE, "mailbox": _QUEUE, "lane_entry": _QUEUE}
# A run with many children is all that there is when statistics are gathered early. What each child needs is then looked
# for in the rows of all, on the connections of steps, where nothing keeps the planner from it: of 10,000 children each
# took 1.7 times as long as of 100. So a run counts as having five rows, whatever has been found.
_DISTINCT = {"child": "-0.2", "step": "-0.2"}


def store_well(metadata: MetaData) -> None:
    """Have those of our tables that need it created with settings of their own."""
    for name, settings in _STORED.items():
        event.listen(metadata.tables[f"{metadata.schema}.{name}"], "after_create", _stored(settings))
    for name, count in _DISTINCT.items():
        event.listen(metadata.tables[f"{metadata.schema}.{name}"], "after_create", _counted(count))


def _counted(count: str) -> Callable[..., None]:
    def tell(table: Table, connection: Connection, **_: object) -> None:
        connection.execute(counting_distinct("run_id", count, connection, str(table.schema), table.name))

    return tell


def _stored(settings: Mapping[str, str]) -> Callable[..., None]:
    def store(table: Table, connection: Connection, **_: object) -> None:
        connection.execute(storing(settings, connection, str(table.schema), table.name))

    return store
