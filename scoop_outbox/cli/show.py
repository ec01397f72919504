"""A message or a run, and all that is below it: `scoop-outbox show`."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from scoop_outbox.cli.options import on_a_database, required

if TYPE_CHECKING:
    from scoop_outbox.operations.runs import Hierarchy

INTERVAL = 1.0
"""Seconds between two looks of `--watch`."""


@click.command()
@click.argument("sought", metavar="ID")
@click.option("--watch", is_flag=True, help="Look again every second, until nothing goes on by itself.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object, in a line.")
@on_a_database
def show(*, sought: str, watch: bool, json_: bool, database: str | None, schema: str) -> None:
    """Show a message or a run and everything below it: states, times, steps and failures.

    ID is the id of a message or a run, or its first 6 hexadecimal digits or more.
    """
    from scoop_outbox.operations.runs import Runs

    with Runs(required(database), schema=schema) as runs:
        found = runs.show(sought)
        _print(found, json_=json_)
        while watch and not found.ended:
            time.sleep(INTERVAL)
            found = runs.show(found.run_id or found.message_id)
            if sys.stdout.isatty():
                click.clear()
            _print(found, json_=json_)


def _print(found: Hierarchy, *, json_: bool) -> None:
    from scoop_outbox.cli.output import as_json
    from scoop_outbox.cli.trees import lines_of

    click.echo(as_json(found, ended=found.ended) if json_ else "\n".join(lines_of(found)))
