"""Roles of a test: a prefix of its own, and logins that have some of them."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from scoop_outbox.store.roles import MEMBERS, script
from scoop_outbox.store.schema import DEFAULT_SCHEMA


@dataclass(frozen=True)
class Roles:
    """The roles of one schema of a database.

    Attributes:
        admin_url: the database, as its administrator.
        prefix: what their names begin with.
        schema: the schema.
    """

    admin_url: str
    prefix: str
    schema: str = DEFAULT_SCHEMA

    def apply(self) -> None:
        """Do as the administrator who runs what is printed."""
        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            connection.execute(script(self.schema, self.prefix).encode())

    def url(self, *members: str) -> str:
        """Return the database's URL for a new login that has roles, and nothing else."""
        user, password = f"{self.prefix.split()[0]}_{secrets.token_hex(4)}", secrets.token_hex(8)
        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            create = sql.SQL("create role {} login password {}")
            connection.execute(create.format(sql.Identifier(user), sql.Literal(password)))
            for member in members:
                grant = sql.SQL("grant {} to {}")
                connection.execute(grant.format(sql.Identifier(f"{self.prefix}_{member}"), sql.Identifier(user)))
        url = make_url(self.admin_url).set(username=user, password=password)
        return url.render_as_string(hide_password=False)


@contextmanager
def new_roles(admin_url: str, schema: str = DEFAULT_SCHEMA) -> Iterator[Roles]:
    """Yield a prefix of which there are no roles yet, and remove what there is in the end."""
    roles = Roles(admin_url, f"t{secrets.token_hex(4)} 50%", schema)
    try:
        yield roles
    finally:
        with psycopg.connect(admin_url, autocommit=True) as connection:
            query = "select rolname from pg_roles where starts_with(rolname, %s)"
            for (name,) in connection.execute(query, [roles.prefix.split()[0]]).fetchall():
                role = sql.Identifier(name)
                connection.execute(sql.SQL("reassign owned by {} to current_user").format(role))
                connection.execute(sql.SQL("drop owned by {}").format(role))
                connection.execute(sql.SQL("drop role {}").format(role))


__all__ = ["MEMBERS", "Roles", "new_roles"]
