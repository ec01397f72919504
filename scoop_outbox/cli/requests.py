"""What a person asks of runs: `scoop-outbox cancel`, `rollback`, `retry`, `skip` and `abandon`."""

from __future__ import annotations

import getpass
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import click

from scoop_outbox.answers import Answer, RollbackAnswer
from scoop_outbox.cli.options import in_one_line, on_a_database, required

NOT_ALL = 1
"""The exit code when something that was asked for is not carried out."""

_reason = click.option("--reason", metavar="TEXT", help="Why, in words: part of the failure.")
_source = click.option("--source", metavar="NAME", help="Who asks; default: the name of the user who runs the command.")


@click.command()
@click.argument("targets", metavar="ID...", nargs=-1, required=True)
@_reason
@_source
@on_a_database
def cancel(
    *, targets: Sequence[str], reason: str | None, source: str | None, database: str | None, schema: str
) -> None:
    """Ask hierarchies to give up: what has not started never will, and what has committed is rolled back.

    ID is a message, which means all runs that handle it and everything below them, or a run; the first 6 hexadecimal
    digits or more are enough, if they fit nothing else.
    """
    from scoop_outbox.operations.runs import Runs

    with Runs(required(database), schema=schema) as runs:
        found = _found(runs.find_target, targets)
        _answered({target: runs.cancel(target, reason=reason, source=source or user()) for target in found})


@click.command()
@click.argument("targets", metavar="ID...", nargs=-1, required=True)
@_reason
@_source
@click.option(
    "--if-active",
    type=click.Choice(["refuse", "cancel", "wait"]),
    default="refuse",
    show_default=True,
    help="When a run at, above or below ID has not ended: refuse; cancel it (none above), and roll back what commits "
    "all the same; or wait until it has ended.",
)
@on_a_database
def rollback(
    *,
    targets: Sequence[str],
    reason: str | None,
    source: str | None,
    if_active: Literal["refuse", "cancel", "wait"],
    database: str | None,
    schema: str,
) -> None:
    """Undo hierarchies that have committed: everything below is compensated, in reverse order.

    ID is a message, which means all runs that handle it, or a run; the first 6 hexadecimal digits or more are enough,
    if they fit nothing else. A part of a hierarchy may be undone, too: what is above it stays committed, and is not
    told.
    """
    from scoop_outbox.operations.runs import Runs

    answers: dict[uuid.UUID, RollbackAnswer] = {}
    with Runs(required(database), schema=schema) as runs:
        for target in _found(runs.find_target, targets):
            answers[target] = runs.rollback(target, reason=reason, source=source or user(), if_active=if_active)
    _answered(answers)


def user() -> str:
    """Return the name of who runs the command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container the user may have no name
        return "scoop-outbox"


_run_ids = click.argument("run_ids", metavar="RUN...", nargs=-1, required=True)
_note = click.option("--note", metavar="TEXT", help="Why, or what was done by hand: kept with who, and when.")
_source = click.option("--source", metavar="NAME", help="Who asks; default: the name of the user who runs the command.")


@click.command()
@click.argument("run_ids", metavar="[RUN]...", nargs=-1)
@click.option("--service", metavar="NAME", help="All parked runs of this service.")
@_note
@_source
@on_a_database
def retry(
    *,
    run_ids: Sequence[str],
    service: str | None,
    note: str | None,
    source: str | None,
    database: str | None,
    schema: str,
) -> None:
    """Execute again what stuck runs failed with, after its cause has been fixed.

    A run whose rollback has failed is rolled back, and then those above that had stopped because of it. A parked run
    goes on where it was parked.

    RUN is the id of a run, or its first 6 hexadecimal digits or more.
    """
    from scoop_outbox.operations.runs import Runs

    if bool(run_ids) == bool(service):
        raise click.UsageError("pass ids of runs, or --service")
    with Runs(required(database), schema=schema) as runs:
        asked = _found(runs.find_run, run_ids) if service is None else [run.id for run in runs.parked(service)]
        if not asked:
            click.echo(f"no parked runs of service {service}", err=True)
        _answered({run_id: runs.retry(run_id, note=note, source=source or user()) for run_id in asked})


@click.command()
@_run_ids
@_note
@_source
@on_a_database
def skip(*, run_ids: Sequence[str], note: str | None, source: str | None, database: str | None, schema: str) -> None:
    """Count as compensated what stuck runs could not undo, because somebody did it by hand, and go on behind that.

    RUN is the id of a run, or its first 6 hexadecimal digits or more.
    """
    from scoop_outbox.operations.runs import Runs

    with Runs(required(database), schema=schema) as runs:
        found = _found(runs.find_run, run_ids)
        _answered({run_id: runs.skip(run_id, note=note, source=source or user()) for run_id in found})


@click.command()
@_run_ids
@_note
@_source
@on_a_database
def abandon(*, run_ids: Sequence[str], note: str | None, source: str | None, database: str | None, schema: str) -> None:
    """Leave stuck runs as they are, for good: nothing more of them is executed or undone.

    RUN is the id of a run, or its first 6 hexadecimal digits or more.
    """
    from scoop_outbox.operations.runs import Runs

    with Runs(required(database), schema=schema) as runs:
        found = _found(runs.find_run, run_ids)
        _answered({run_id: runs.abandon(run_id, note=note, source=source or user()) for run_id in found})


def _found(find: Callable[[str], uuid.UUID], given: Sequence[str]) -> Sequence[uuid.UUID]:
    """Return the ids that are meant, each once, before anything is done: one that is not clear stops the others."""
    return list(dict.fromkeys(map(find, given)))


def _answered(answers: Mapping[uuid.UUID, Answer] | Mapping[uuid.UUID, RollbackAnswer]) -> None:
    for target, answered in answers.items():
        told = answered if isinstance(answered, RollbackAnswer) else RollbackAnswer(answered)
        click.echo(f"{target}\t{told.answer}")
        for run in told.active:
            click.echo(f"  {run.id}\t{run.state}\t{in_one_line(run.service)}/{in_one_line(run.saga)}")
        if told.home is not None:
            click.echo(f"  home {in_one_line(told.home)}")
    if not all(answered.fulfils for answered in answers.values()):
        raise SystemExit(NOT_ALL)
