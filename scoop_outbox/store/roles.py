"""The roles of a database: who may do what with the tables. What each may is in `roles.sql`."""

from __future__ import annotations

from importlib import resources

from psycopg import sql

from scoop_outbox.errors import DefinitionError
from scoop_outbox.store.adaptation import ADAPTERS
from scoop_outbox.store.schema import checked_schema

MEMBERS = ("owner", "worker", "relay", "intake", "pruner", "launcher", "operator", "reader")
"""The roles, behind the prefix of their names and an underscore."""

_NAME_LIMIT = 63
"""Longest name of a role in bytes: Postgres cuts what is longer off without a word."""

_LINE = f"-- {'-' * 117}\n"


def owner_of(prefix: str) -> str:
    """Return the name of the role that owns the tables.

    Raises:
        DefinitionError: the prefix cannot be that of roles.
    """
    longest = max(len(member) for member in MEMBERS) + 1
    if not prefix or "\0" in prefix or prefix.startswith("pg_") or len(prefix.encode()) > _NAME_LIMIT - longest:
        raise DefinitionError(
            f"roles cannot be named after {prefix[:40]!r}: a prefix has 1 to {_NAME_LIMIT - longest} bytes, and does "
            "not begin with pg_"
        )
    return f"{prefix}_owner"


def script(schema: str, prefix: str) -> str:
    """Return what an administrator executes to make the roles of a schema and to say what each may.

    Safe to repeat; whatever the roles could do before with tables of that schema is replaced, in one transaction.

    Args:
        schema: the Postgres schema of the tables, which need not be there yet.
        prefix: what the names of the roles begin with.

    Raises:
        DefinitionError: one of the names cannot be used.
    """
    essay, roles, grants = _parts()
    return f"{essay}\nbegin;\n\n{_named(schema, prefix)};\n\n{roles}\n{grants}\ncommit;\n"


def grants(schema: str, prefix: str) -> tuple[str, str]:
    """Return two statements for one transaction, which give roles that exist what they need of tables that exist.

    Args:
        schema: the Postgres schema of the tables.
        prefix: what the names of the roles begin with.

    Raises:
        DefinitionError: one of the names cannot be used.
    """
    return _named(schema, prefix), _parts()[2]


def _named(schema: str, prefix: str) -> str:
    owner_of(prefix)
    names = sql.SQL("select set_config('scoop_outbox.schema', {}, true), set_config('scoop_outbox.roles', {}, true)")
    text = names.format(sql.Literal(checked_schema(schema)), sql.Literal(prefix))
    return text.as_bytes(ADAPTERS).decode()


def _parts() -> list[str]:
    """Return the essay, what makes the roles, and what says what each may."""
    text = (resources.files(__package__) / "roles.sql").read_text("utf-8")
    return [part.strip("\n") + "\n" for part in text.split(_LINE)]
