"""Removing what has ended: `scoop-outbox prune`, and the options of processes that do so in the background."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from scoop_outbox.cli.options import duration, on_a_database, required

if TYPE_CHECKING:
    from scoop_outbox.operations.retention import ArchivedHierarchy

C = TypeVar("C", bound=Callable[..., Any])

_archive = click.option(
    "--archive",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to append each hierarchy to before it goes, as JSON, one a line.",
)
_remember = click.option(
    "--remember",
    metavar="AGE",
    type=duration,
    default="7d",
    show_default=True,
    help="How long the message of a pruned hierarchy starts nothing if it comes again; 7d at least.",
)


def with_retention(command: C) -> C:
    """Give a command that relays the options of what it prunes."""
    for option in (
        _archive,
        _remember,
        click.option(
            "--retain-payload",
            metavar="AGE",
            type=duration,
            envvar="SCOOP_OUTBOX_RETAIN_PAYLOAD",
            help="Erase what finished hierarchies hold, of sagas that do not say so themselves, after this time "
            "[env: SCOOP_OUTBOX_RETAIN_PAYLOAD].",
        ),
        click.option(
            "--retention",
            metavar="AGE",
            type=duration,
            envvar="SCOOP_OUTBOX_RETENTION",
            help="Prune finished hierarchies, of sagas that do not say so themselves, after this time, as in 30d "
            "[env: SCOOP_OUTBOX_RETENTION]; default: never.",
        ),
    ):
        command = option(command)
    return command


@click.command()
@click.option(
    "--older-than",
    metavar="AGE",
    type=duration,
    required=True,
    help="Only hierarchies that ended so long ago, as in 12h or 30d. Sagas that want more get it.",
)
@click.option(
    "--retain-payload",
    metavar="AGE",
    type=duration,
    help="Erase what hierarchies hold that ended so long ago, and keep their trace.",
)
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="Number of hierarchies at most; default: all.")
@click.option("--dry-run", is_flag=True, help="Count what would go; remove nothing.")
@_remember
@_archive
@on_a_database
def prune(
    *,
    older_than: timedelta,
    retain_payload: timedelta | None,
    limit: int | None,
    dry_run: bool,
    remember: timedelta,
    archive: Path | None,
    database: str | None,
    schema: str,
) -> None:
    """Remove hierarchies that have ended, whole, a few at a time; and messages that nobody handles.

    What can still run, or be mended, stays. Rolling back what has been pruned is answered: expired.
    """
    from scoop_outbox.operations.retention import Pruning, PruningOptions

    options = PruningOptions(older_than, retain_payload, remember, limit)
    with Pruning(required(database), schema=schema) as opened:
        keep = None if archive is None or dry_run else Archive(archive)
        counts = opened.count(options) if dry_run else opened.prune(options, keep)
    click.echo("hierarchies\truns\tunhandled messages\terased payloads\tforgotten")
    click.echo(f"{counts.hierarchies}\t{counts.runs}\t{counts.unhandled}\t{counts.erased}\t{counts.forgotten}")


class Archive:
    """Appends hierarchies to a file, and has them on the disk when it returns. Several processes may share one.

    A line that a process could not end, for it was killed or the disk was full, stays as it is, and the next one begins
    behind it: its hierarchy was not pruned, and comes again.

    Args:
        path: the file; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        """Write nothing yet."""
        self._path = path

    def __call__(self, hierarchies: Iterable[ArchivedHierarchy]) -> None:
        """Append hierarchies.

        Raises:
            click.ClickException: the file cannot be written.
        """
        try:
            with self._path.open("ab+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if file.seek(0, os.SEEK_END):
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        file.write(b"\n")
                file.writelines(f"{one.to_json()}\n".encode() for one in hierarchies)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise click.ClickException(f"{self._path} cannot be written: {error.strerror}") from error

    def one(self, hierarchy: ArchivedHierarchy) -> None:
        """Append one hierarchy: for `Scoop.on_archive`."""
        self([hierarchy])
