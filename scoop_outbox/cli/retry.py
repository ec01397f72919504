"""Retrying parked runs: `scoop-outbox retry`."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import click

from scoop_outbox.cli.options import on_a_database, required

NOT_ALL = 1
"""The exit code when a run is not parked, or is not there."""


@click.command()
@click.argument("runs", metavar="[RUN]...", type=click.UUID, nargs=-1)
@click.option("--service", metavar="NAME", help="All parked runs of this service.")
@on_a_database
def retry(*, runs: Sequence[uuid.UUID], service: str | None, database: str | None, schema: str) -> None:
    """Resume parked runs where they were parked, after their cause has been fixed."""
    from scoop_outbox.operations.runs import Answer, Runs

    if bool(runs) == bool(service):
        raise click.UsageError("pass ids of runs, or --service")
    with Runs(required(database), schema=schema) as found:
        asked = list(runs) if service is None else [run.id for run in found.parked(service)]
        if not asked:
            click.echo(f"no parked runs of service {service}", err=True)
        answers = []
        for run_id in asked:
            answers.append(found.retry(run_id))
            click.echo(f"{run_id}\t{answers[-1]}")
    if any(answer is not Answer.ACCEPTED for answer in answers):
        raise SystemExit(NOT_ALL)
