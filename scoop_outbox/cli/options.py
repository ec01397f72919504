"""Options that several commands have."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import click

C = TypeVar("C", bound=Callable[..., Any])


_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400}


def duration(text: str) -> timedelta:
    """Return what a number with a unit means, such as 90s, 15min, 2h or 1d; without one it is in seconds.

    Raises:
        click.BadParameter: it is none.
    """
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]+)?) *([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise click.BadParameter(f"{text!r} is no duration: write 90s, 15min, 2h or 1d")
    return timedelta(seconds=float(match[1]) * _UNITS[match[2]])


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


def with_home_name(command: C) -> C:
    """Give a command the option `--home-name`."""
    return click.option(
        "--home-name",
        metavar="NAME",
        envvar="SCOOP_OUTBOX_HOME",
        help="Name under which the database cooperates with those of other services; default: what the application "
        "declares [env: SCOOP_OUTBOX_HOME].",
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
