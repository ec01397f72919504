"""The home of a database, and the others that it knows: `scoop-outbox home`."""

from __future__ import annotations

import click

from scoop_outbox.cli.options import on_a_database, required
from scoop_outbox.cli.requests import NOT_ALL


@click.group()
def home() -> None:
    """Say what has become of this home, or of another one. See docs/homes.md."""


@home.command()
@on_a_database
def moved(*, database: str | None, schema: str) -> None:
    """Say that this database is the home from now on, and that the one that it is a copy of is gone for good.

    Also after it was restored from a backup: other homes are told, and what they know of runs is compared with what
    this one does.
    """
    from scoop_outbox.operations.homes import Homes

    with Homes(required(database), schema=schema) as homes:
        asked = homes.move()
    click.echo(f"moved: other homes are told, and are asked after {asked} children")


@home.command()
@click.argument("name", metavar="HOME")
@on_a_database
def forget(*, name: str, database: str | None, schema: str) -> None:
    """Forget another home, by its name or id, that is gone for good.

    Whatever waits for children there has failed with them. Should the home come back, it is known again when it says
    who listens there.
    """
    from scoop_outbox.operations.homes import Homes

    with Homes(required(database), schema=schema) as homes:
        forgotten = homes.forget(name)
    if forgotten is None:
        click.echo(f"{name}\tunknown")
        raise SystemExit(NOT_ALL)
    click.echo(f"{name}\tforgotten\t{forgotten} children that were waited for have failed")
