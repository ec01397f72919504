"""Runs of a database: `scoop-outbox runs`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from scoop_outbox.cli.options import duration, in_one_line, on_a_database, required

if TYPE_CHECKING:
    from scoop_outbox.operations.runs import ListedRun

STATES = ("running", "rolling_back", "committed", "rolled_back", "rollback_failed", "parked")


@click.command()
@click.option("--state", "states", type=click.Choice(STATES), multiple=True, help="Only this state; repeatable.")
@click.option("--service", metavar="NAME", help="Only runs of this service.")
@click.option("--saga", metavar="NAME", help="Only runs of sagas of this name.")
@click.option(
    "--older-than",
    metavar="AGE",
    type=duration,
    help="Only runs of this age or older, as in 90s, 15min, 2h, 1d; the oldest first.",
)
@click.option("--stuck", is_flag=True, help="Only runs that need a person: parked or rollback_failed.")
@click.option("--text", metavar="TEXT", help="Only runs with this text in their failure, or in why they are parked.")
@click.option("--key", metavar="KEY", help="Only runs of messages with this key.")
@click.option(
    "--limit", default=100, show_default=True, type=click.IntRange(1, 100_000), help="Largest number of rows."
)
@click.option("--json", "json_", is_flag=True, help="Print JSON objects, one a line.")
@on_a_database
def runs(
    *,
    states: Sequence[str],
    service: str | None,
    saga: str | None,
    older_than: timedelta | None,
    stuck: bool,
    text: str | None,
    key: str | None,
    limit: int,
    json_: bool,
    database: str | None,
    schema: str,
) -> None:
    """List runs, the newest first, as tab-separated values.

    Without --state, these are runs that have not ended or could not be rolled back; with --key or --text, runs in any
    state. Committed and rolled back ones are searched for in all of the history.
    """
    from scoop_outbox.cli.output import as_json
    from scoop_outbox.operations.runs import Runs

    if stuck and states:
        raise click.UsageError("--stuck stands for two states: leave it out, or --state")
    with Runs(required(database), schema=schema) as opened:
        found = opened.list(
            states=states,
            service=service,
            saga=saga,
            older_than=older_than,
            stuck=stuck,
            text=text,
            key=key,
            limit=limit,
        )
    if not found:
        any_state = states or stuck or text is not None or key is not None
        click.echo("no runs" if any_state else "no runs under way or stuck: --state lists others", err=True)
    elif not json_:
        click.echo("id\tservice\tsaga\tstate\tstep\tage\tkey\tfailure")
    for run in found:
        click.echo(as_json(run) if json_ else "\t".join(_fields(run)))
    if len(found) == limit:
        click.echo(f"there may be more than {limit}: see --limit", err=True)


def _fields(run: ListedRun) -> Iterable[str]:
    from scoop_outbox.cli.output import seconds_text

    yield str(run.id)
    yield in_one_line(run.service)
    yield in_one_line(run.saga)
    yield run.state
    yield in_one_line(run.step or "-") + _waits_for(run)
    yield seconds_text(run.age)
    yield "-" if run.key is None else in_one_line(run.key)
    yield _why(run)


def _waits_for(run: ListedRun) -> str:
    homes = ", ".join(map(in_one_line, run.waits_for))
    return f" (waits for home {homes})" if homes else ""


def _why(run: ListedRun) -> str:
    """Return what a run failed with, or why it is parked, in a line."""
    from scoop_outbox.cli.output import told_in_one_line

    if run.reason is not None:
        return in_one_line(run.reason)
    return "-" if run.failure_type is None else told_in_one_line(run.failure_type, run.failure_message)
