"""The home of a database, and the others that it knows: `scoop-outbox home`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from scoop_outbox.cli.options import on_a_database, required
from scoop_outbox.cli.requests import NOT_ALL

if TYPE_CHECKING:
    from scoop_outbox.core.plans.draining import Draining

_EVERY = 5.0
"""Seconds from one look to the next while a home is being drained."""
_LOOKS = 2
"""How often in a row nothing has to be left: what was being passed on at the first look has come by the second."""


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


@home.command()
@click.option("--resume", is_flag=True, help="Share with the other homes again.")
@click.option("--alone", is_flag=True, help="Also if it has sagas that no other home has.")
@click.option("--wait", is_flag=True, help="Wait until it is drained.")
@on_a_database
def drain(*, resume: bool, alone: bool, wait: bool, database: str | None, schema: str) -> None:
    """Have other homes of its services take over from this one, and say what is left here.

    Its workers and its relay go on: what has begun here ends here. The exit code is 1 until it is drained.
    """
    from scoop_outbox.operations.homes import Homes

    with Homes(required(database), schema=schema) as homes:
        found = homes.drain(resume=resume, alone=alone)
        quiet = 0
        while wait and not resume and quiet < _LOOKS:
            time.sleep(_EVERY)
            found = homes.drain(alone=True)
            quiet = quiet + 1 if found.is_drained else 0
    for line in _left(found):
        click.echo(line)
    if not resume and not found.is_drained:
        raise SystemExit(NOT_ALL)


def _left(found: Draining) -> Iterator[str]:
    if not found.draining:
        yield "shared\tthis home takes its part again"
        return
    yield "drained" if found.is_drained else "draining"
    for name in found.unconfirmed:
        yield f"unconfirmed\t{name} has not said that it knows"
    for name, count in found.awaited.items():
        if count is None:
            yield f"awaited\t{name} has not said whether it waits for anything here, or a transaction is open there"
        elif count:
            yield f"awaited\t{name} waits for {count} children here, or is passing messages on"
    for service, saga in found.alone:
        yield f"alone\t{saga} of {service}: no other home takes over from this one"
    counts = {
        "unpublished": (found.unpublished, "messages in the outbox"),
        "dead letters": (found.dead_letters, "messages to be replayed, or dropped"),
        "unfinished": (found.unfinished, "runs"),
        "undoable": (found.undoable, "runs that other homes may ask to undo: until then, keep a worker and a relay"),
    }
    for what, (count, of) in counts.items():
        if count:
            yield f"{what}\t{count} {of}"
