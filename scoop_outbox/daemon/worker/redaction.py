"""Quoting: which messages of exceptions may stand in the log, and which hold values that somebody has sent."""

from __future__ import annotations

import re

_DATABASES = {
    "aiomysql", "aioodbc", "aiosqlite", "asyncmy", "asyncpg", "clickhouse_connect", "cx_Oracle", "django", "duckdb",
    "MySQLdb", "mysql", "oracledb", "peewee", "pg8000", "pony", "psycopg", "psycopg2", "psycopg_pool", "pymongo",
    "pymssql", "pymysql", "pyodbc", "redis", "sqlalchemy", "sqlite3", "tortoise",
}  # fmt: skip
_VALIDATORS = {
    "attr", "attrs", "beartype", "cattr", "cattrs", "cerberus", "dacite", "fastjsonschema", "jsonschema",
    "jsonschema_rs", "marshmallow", "mashumaro", "msgspec", "pydantic", "pydantic_core", "schema", "trafaret",
    "typeguard", "typedload", "voluptuous",
}  # fmt: skip
_LIBRARIES = _DATABASES | _VALIDATORS
"""Packages whose exceptions quote, in the first line too, what they were given: `invalid input syntax: "4111-1111"`."""
_CUT = "..."
"""What the name of a type begins with whose package was cut off for want of room."""

_NAME = r'"[^"]*"'
_OF_A_CONSTRAINT = re.compile(
    # SQLAlchemy names the driver's class in front.
    r"(?:\([\w.]+\) )?(?:"
    rf"duplicate key value violates unique constraint {_NAME}"
    rf"|conflicting key value violates exclusion constraint {_NAME}"
    rf"|new row for relation {_NAME} violates check constraint {_NAME}"
    rf"|null value in column {_NAME} of relation {_NAME} violates not-null constraint"
    rf"|insert or update on table {_NAME} violates foreign key constraint {_NAME}"
    rf"|update or delete on table {_NAME} violates foreign key constraint {_NAME} on table {_NAME}"
    r")"
)
"""What Postgres says of a constraint: names of the schema, no value. In other languages it is left out."""


def first_line(kind: str, message: str | None) -> str:
    """Return the first line of an exception's message, or nothing if it may quote values.

    Args:
        kind: the name of its type, with its module. What was raised need not exist here.
        message: its text, if it has one.
    """
    first = next(iter((message or "").strip().splitlines()), "")
    quotes = kind.startswith(_CUT) or kind.partition(".")[0] in _LIBRARIES
    return "" if quotes and not _OF_A_CONSTRAINT.fullmatch(first) else first
