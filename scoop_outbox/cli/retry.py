"""Taking parked runs on again: `scoop-outbox retry`."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import click

from scoop_outbox.cli.options import on_a_database, required

NOT_ALL = 1
"""The exit code when a run is not parked, or is not there."""


@click.command()
@click.argument("runs", metavar="[RUN]...", type=click.UUID, nargs=-1)
@click.option("--service", metavar="NAME", help="All runs of this service that are parked.")
@on_a_database
def retry(*, runs: Sequence[uuid.UUID], service: str | None, database: str | None, schema: str) -> None:
    """Take parked runs on again, where they were parked, once what kept them from going on has been mended."""
    from scoop_outbox.operations.runs import Answer, Runs

    if bool(runs) == bool(service):
        raise click.UsageError("name runs by their ids, or a service with --service")
    with Runs(required(database), schema=schema) as found:
        asked = list(runs) if service is None else [run.id for run in found.parked(service)]
        if not asked:
            click.echo(f"no run of service {service} is parked", err=True)
        answers = []
        for run_id in asked:
            answers.append(found.retry(run_id))
            click.echo(f"{run_id}\t{answers[-1]}")
    if any(answer is not Answer.ACCEPTED for answer in answers):
        raise SystemExit(NOT_ALL)
