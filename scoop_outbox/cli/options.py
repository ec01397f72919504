"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

C = TypeVar("C", bound=Callable[..., Any])


def on_a_database(command: C) -> C:
    """Give a command the options `--database` and `--schema`."""
    command = click.option(
        "--schema", default="scoop_outbox", show_default=True, help="Postgres schema of the tables."
    )(command)
    return click.option(
        "--database",
        metavar="URL",
        envvar="SCOOP_OUTBOX_DATABASE",
        help="PostgreSQL URL [env: SCOOP_OUTBOX_DATABASE].",
    )(command)


def required(database: str | None) -> str:
    """Return the database's URL.

    Raises:
        click.UsageError: there is none.
    """
    if database is None:
        raise click.UsageError("no database: pass --database postgresql://... or set SCOOP_OUTBOX_DATABASE")
    return database


def in_one_line(text: str) -> str:
    """Return text in one line, whatever it holds: it comes from outside."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
