"""Plans of the home: which one a connection leads to."""

from __future__ import annotations

import uuid

from scoop_outbox.core.statement import Plan, ask, statement


def read_home() -> Plan[uuid.UUID]:
    """Return this home's id."""
    (rows,) = yield from ask(statement("read_home"))
    home: uuid.UUID = rows[0][0]
    return home


def find_home(schema: str) -> Plan[tuple[str, bool]]:
    """Return the name of the database that a connection leads to, and whether the tables are there."""
    (((database, is_there),),) = yield from ask(statement("find_home", schema=schema))
    return database, is_there
