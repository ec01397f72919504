"""Roles of a database: `scoop-outbox roles print`."""

from __future__ import annotations

import click


@click.group()
def roles() -> None:
    """Print the database roles for workers, relays, launching programs, operators and readers."""


@roles.command("print")
@click.option("--schema", default="scoop_outbox", show_default=True, help="Postgres schema of the tables.")
@click.option("--prefix", metavar="NAME", help="What the names of the roles begin with; default: the schema's name.")
def print_(*, schema: str, prefix: str | None) -> None:
    """Print the SQL that makes the roles, for an administrator of the database to run.

    It is one transaction, and safe to repeat: scoop-outbox roles print | psql -v ON_ERROR_STOP=1 DATABASE
    """
    from scoop_outbox.store.roles import script

    click.echo(script(schema, prefix or schema), nl=False)
