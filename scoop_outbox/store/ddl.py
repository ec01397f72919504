"""Statements that define something, with names put into them: for what SQLAlchemy cannot say in all its versions."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa


def defining(statement: str, connection: sa.Connection, schema: str, table: str = "", **more: str) -> sa.DDL:
    """Return a statement in which `%(schema)s` and `%(table)s` are these names, quoted, and others are as given.

    Args:
        statement: with a place for each name; the table's name has its schema before it.
        connection: the database that it is meant for.
        schema: the schema.
        table: a table of it.
        more: what else stands in it, as it is.
    """
    preparer = connection.dialect.identifier_preparer
    quoted = preparer.quote_schema(schema)
    # As they are quoted for a statement with parameters, which this is not: DDL doubles percent signs itself.
    names = {"schema": quoted.replace("%%", "%"), "table": f"{quoted}.{preparer.quote(table)}".replace("%%", "%")}
    return sa.DDL(statement, context={**names, **more})  # type: ignore[no-untyped-call]


def storing(settings: Mapping[str, str], connection: sa.Connection, schema: str, table: str) -> sa.DDL:
    """Return the statement that says how a table is stored: to create it so, SQLAlchemy has words only from 2.1 on."""
    told = ", ".join(f"{name} = {value}" for name, value in settings.items())
    return defining(f"alter table %(table)s set ({told})", connection, schema, table)


def counting_distinct(column: str, count: str, connection: sa.Connection, schema: str, table: str) -> sa.DDL:
    """Return the statement that says how many values a column has, as the planner shall see it."""
    statement = f"alter table %(table)s alter column {column} set (n_distinct = {count})"
    return defining(statement, connection, schema, table)
