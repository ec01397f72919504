"""What is said about the work of external participants: `scoop-outbox complete` and `scoop-outbox fail`."""

from __future__ import annotations

import json
import uuid
from typing import Any

import click

from scoop_outbox.answers import Answer
from scoop_outbox.cli.options import on_a_database, required
from scoop_outbox.cli.requests import NOT_ALL, user

_target = click.argument("target", metavar="ID")
_name = click.argument("name", metavar="NAME")
_service = click.option("--service", metavar="NAME", help="The service that declares it, if several have one so named.")
_source = click.option("--source", metavar="NAME", help="Who says so; default: the name of the user at the command.")


def _json(_context: click.Context, _option: click.Parameter, text: str | None) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"it is no JSON: {error}; text is written as '\"text\"'") from None


@click.command()
@_target
@_name
@click.option("--result", metavar="JSON", callback=_json, help="What the work leaves to whoever waits for it.")
@_service
@_source
@on_a_database
def complete(
    *,
    target: str,
    name: str,
    result: Any,
    service: str | None,
    source: str | None,
    database: str | None,
    schema: str,
) -> None:
    """Say that the work of an external participant is done.

    ID is the message that is the work, or the run that handles it; the first 6 hexadecimal digits or more are enough,
    if they fit nothing else. NAME is what it was declared as with app.external.
    """
    from scoop_outbox.operations.runs import Runs

    with Runs(required(database), schema=schema) as runs:
        found = runs.find_target(target)
        _answered(found, runs.complete(found, name, result=result, service=service, source=source or user()))


@click.command()
@_target
@_name
@click.option("--reason", metavar="TEXT", help="Why, in words: part of the failure.")
@_service
@_source
@on_a_database
def fail(
    *,
    target: str,
    name: str,
    reason: str | None,
    service: str | None,
    source: str | None,
    database: str | None,
    schema: str,
) -> None:
    """Say that the work of an external participant has failed: whoever waits for it is told of the failure of a child.

    ID is the message that is the work, or the run that handles it; the first 6 hexadecimal digits or more are enough,
    if they fit nothing else. NAME is what it was declared as with app.external.
    """
    from scoop_outbox.operations.runs import Runs

    with Runs(required(database), schema=schema) as runs:
        found = runs.find_target(target)
        _answered(found, runs.fail(found, name, reason=reason, service=service, source=source or user()))


def _answered(target: uuid.UUID, answer: Answer) -> None:
    click.echo(f"{target}\t{answer}")
    if not answer.fulfils:
        raise SystemExit(NOT_ALL)
