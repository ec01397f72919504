"""What a message or a run waits for: `scoop-outbox explain`."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from scoop_outbox.cli.options import in_one_line, on_a_database, required

if TYPE_CHECKING:
    from scoop_outbox.operations.runs import Explanation, Waiting

_INDENT = "  "


@click.command()
@click.argument("sought", metavar="ID")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object, in a line.")
@on_a_database
def explain(*, sought: str, json_: bool, database: str | None, schema: str) -> None:
    """Say what a run, or the hierarchy below a message, waits for. Locks nothing.

    ID is the id of a message or a run, or its first 6 hexadecimal digits or more.
    """
    from scoop_outbox.cli.output import as_json
    from scoop_outbox.operations.runs import Runs

    with Runs(required(database), schema=schema) as runs:
        found = runs.explain(sought)
    if json_:
        click.echo(as_json(found))
        return
    for line in _lines(found):
        click.echo(line)
    if found.left_out:
        click.echo(f"and {found.left_out} more: scoop-outbox show shows all of them", err=True)


def _lines(found: Explanation) -> Iterator[str]:
    """Yield what waits as a tree, below each run what it waits for. It may have thousands of levels."""
    below: dict[uuid.UUID | None, list[Waiting]] = defaultdict(list)
    known = {one.run_id for one in found.waiting} - {None}
    for one in found.waiting:
        below[one.parent if one.parent in known else None].append(one)
    ahead = [(0, one) for one in reversed(below[None])]
    while ahead:
        level, one = ahead.pop()
        for line in _told(one):
            yield _INDENT * level + line
        if one.run_id is not None:
            ahead += [(level + 1, child) for child in reversed(below[one.run_id])]


def _told(one: Waiting) -> Iterator[str]:
    yield in_one_line(one.text)
    for reason in one.reasons:
        yield f"{_INDENT}- {in_one_line(reason.text)}"
    if one.next is not None:
        yield f"{_INDENT}- next: {in_one_line(one.next)}"
    if not one.reasons and not one.children:
        yield f"{_INDENT}- nothing that is known keeps it from going on"
