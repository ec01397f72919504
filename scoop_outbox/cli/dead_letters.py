"""Messages that could not be published or taken in: `scoop-outbox dead-letters list | show | replay | drop`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from scoop_outbox.cli.options import in_one_line, on_a_database, required

if TYPE_CHECKING:
    from scoop_outbox.operations.dead_letters import Contents, DeadLetter, DeadLetters, Selection

C = TypeVar("C", bound=Callable[..., Any])

NOT_ALL = 1
"""The exit code when a letter was refused, or is not there."""


NUMBER = click.IntRange(1, 2**63 - 1)


@click.group("dead-letters")
def dead_letters() -> None:
    """List, show, replay or drop dead letters: messages that could not be published or taken in."""


def _selecting(command: C) -> C:
    command = click.option("--service", metavar="NAME", help="Only dead letters of the intake of this service.")(
        command
    )
    command = click.option("--topic", metavar="NAME", help="Only dead letters of this topic.")(command)
    return click.option(
        "--origin",
        type=click.Choice(["relay", "intake"]),
        help="Only dead letters of the relay (not published) or of the intake (not taken in).",
    )(command)


@dead_letters.command("list")
@_selecting
@click.option(
    "--after",
    metavar="ID",
    default=0,
    type=click.IntRange(0, 2**63 - 1),
    help="Only higher numbers: the next page.",
)
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 1000), help="Largest number of rows.")
@on_a_database
def list_(
    *,
    origin: str | None,
    topic: str | None,
    service: str | None,
    after: int,
    limit: int,
    database: str | None,
    schema: str,
) -> None:
    """List dead letters, the oldest first, as tab-separated values."""
    with _opened(database, schema) as letters:
        page = letters.page(_selection(origin, topic, service), after=after, limit=limit)
    if not page:
        click.echo("no dead letters", err=True)
        return
    click.echo("id\twhen\torigin\tservice\ttopic\tposition\tsize\treason")
    for letter in page:
        click.echo("\t".join(_line(letter)))
    if len(page) == limit:
        click.echo(f"next page: --after {page[-1].id}", err=True)


def _line(letter: DeadLetter) -> Iterable[str]:
    yield str(letter.id)
    yield letter.created_at.isoformat(timespec="seconds")
    yield letter.origin.value
    for text in (letter.service or "-", letter.topic, letter.position or "-", str(letter.size), letter.reason):
        yield in_one_line(text)


@dead_letters.command()
@click.argument("letter", metavar="ID", type=NUMBER)
@click.option("--raw", is_flag=True, help="Write the bytes of the body to stdout, and nothing else.")
@on_a_database
def show(*, letter: int, raw: bool, database: str | None, schema: str) -> None:
    """Show a dead letter: where it comes from, its headers and its body."""
    with _opened(database, schema) as letters:
        contents = letters.read(letter)
    if contents is None:
        raise click.ClickException(f"there is no dead letter {letter}")
    if raw:
        sys.stdout.buffer.write(contents.body)
        sys.stdout.buffer.flush()
        return
    for line in _lines(contents):
        click.echo(line)


def _lines(contents: Contents) -> Iterable[str]:
    letter = contents.letter
    fields = {
        "id": str(letter.id),
        "when": letter.created_at.isoformat(timespec="seconds"),
        "origin": letter.origin.value,
        "service": letter.service or "-",
        "topic": letter.topic,
        "position": letter.position or "-",
        "reason": letter.reason,
        "message": "-" if letter.message_id is None else str(letter.message_id),
        "key": "-" if contents.key is None else contents.key,
        "content type": contents.content_type or "-",
        "size": f"{letter.size} bytes",
    }
    for name, value in fields.items():
        yield f"{name + ':':<14}{in_one_line(value)}"
    for name, value in contents.headers.items():
        yield f"{'header:':<14}{in_one_line(name)}: {in_one_line(value)}"
    yield ""
    yield from _body(contents.body)


def _body(body: bytes) -> Iterable[str]:
    """Yield a body as text if it is text, else as hexadecimal digits."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = "\0"
    if all(one.isprintable() or one in "\n\r\t" for one in text):
        yield text
        return
    for start in range(0, len(body), 16):
        row = body[start : start + 16]
        plain = re.sub(r"[^ -~]", ".", row.decode("latin-1"))
        yield f"{start:08x}  {row.hex(' '):<47}  {plain}"


@dead_letters.command()
@click.argument("ids", metavar="[ID]...", nargs=-1, type=NUMBER)
@click.option("--all", "everything", is_flag=True, help="All dead letters that match the other options.")
@_selecting
@on_a_database
def replay(
    *,
    ids: tuple[int, ...],
    everything: bool,
    origin: str | None,
    topic: str | None,
    service: str | None,
    database: str | None,
    schema: str,
) -> None:
    """Replay dead letters: put them back into the outbox, or take them in for their service.

    A message that is still defective is refused and stays; then the exit code is 1. Each replay is a transaction of its
    own: the command can be interrupted and repeated. What another home has said is taken in as if it came now; where
    control messages are signed, this needs the control keys, in the environment as workers have them.
    """
    selection = _chosen(ids, everything, _selection(origin, topic, service))
    with _opened(database, schema, hears=True) as letters:
        counts = {"replayed": 0, "refused": 0, "unknown": 0}
        for number in letters.numbers(selection) if selection is not None else ids:
            answer = letters.replay(number)
            counts[answer.status.value] += 1
            click.echo(f"{number}\t{answer.status.value}\t{in_one_line(answer.reason)}")
    click.echo(", ".join(f"{count} {what}" for what, count in counts.items()), err=True)
    if counts["refused"] or counts["unknown"]:
        sys.exit(NOT_ALL)


@dead_letters.command()
@click.argument("ids", metavar="[ID]...", nargs=-1, type=NUMBER)
@click.option("--all", "everything", is_flag=True, help="All dead letters that match the other options.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation with --all.")
@_selecting
@on_a_database
def drop(
    *,
    ids: tuple[int, ...],
    everything: bool,
    yes: bool,
    origin: str | None,
    topic: str | None,
    service: str | None,
    database: str | None,
    schema: str,
) -> None:
    """Delete dead letters for good. A parent that waits for such a message keeps waiting."""
    selection = _chosen(ids, everything, _selection(origin, topic, service))
    with _opened(database, schema) as letters:
        wanted = list(letters.numbers(selection)) if selection is not None else list(ids)
        if selection is not None and wanted and not yes:
            click.confirm(f"drop {len(wanted)} dead letters for good?", abort=True)
        dropped = letters.drop(wanted)
    for number in dropped:
        click.echo(f"{number}\tdropped")
    missing = sorted(set(wanted) - set(dropped))
    for number in missing:
        click.echo(f"{number}\tunknown\tthere is no such dead letter")
    if missing:
        sys.exit(NOT_ALL)


def _selection(origin: str | None, topic: str | None, service: str | None) -> Selection:
    from scoop_outbox.operations.dead_letters import Origin, Selection

    return Selection(None if origin is None else Origin(origin), topic, service)


def _chosen(ids: tuple[int, ...], everything: bool, selection: Selection) -> Selection | None:  # noqa: FBT001
    """Return the selection that is meant, or None when letters are named by their numbers."""
    from scoop_outbox.operations.dead_letters import Selection

    if everything and ids:
        raise click.UsageError("pass numbers of dead letters or --all, not both")
    if everything:
        return selection
    if not ids:
        raise click.UsageError("no dead letters selected: pass their numbers (see `dead-letters list`) or --all")
    if selection != Selection():
        raise click.UsageError("--origin, --topic and --service need --all: leave them out, or the numbers")
    return None


def _opened(database: str | None, schema: str, *, hears: bool = False) -> DeadLetters:
    from scoop_outbox.client.control_keys import control_keys
    from scoop_outbox.operations.dead_letters import DeadLetters

    return DeadLetters(required(database), schema=schema, control_keys=control_keys(None) if hears else None)
