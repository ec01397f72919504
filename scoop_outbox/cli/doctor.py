"""Whether homes know each other, and what keeps them from cooperating: `scoop-outbox doctor`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from scoop_outbox.cli.options import in_one_line, on_a_database, required
from scoop_outbox.cli.settings import broker_settings, settings_of

if TYPE_CHECKING:
    from scoop_outbox.core.plans.peers import Peer
    from scoop_outbox.operations.doctor import Examination

PROBLEMS = 1
"""The exit code when something is wrong."""


@click.command()
@click.option(
    "--broker",
    metavar="URL",
    envvar="SCOOP_OUTBOX_BROKER",
    help="Broker URL: looks there for the control topics of all homes [env: SCOOP_OUTBOX_BROKER].",
)
@broker_settings
@click.option("--json", "json_", is_flag=True, help="Print one JSON object, in a line.")
@on_a_database
def doctor(
    *,
    broker: str | None,
    settings: Sequence[str],
    settings_file: Path | None,
    json_: bool,
    database: str | None,
    schema: str,
) -> None:
    """Check how this home and others cooperate: names, subscriptions, open children, clocks, dead letters.

    Changes nothing. Other homes are not asked: what they have said is looked at, so check each of them. The exit code
    is 1 when there are problems.
    """
    import asyncio

    from scoop_outbox.broker import plugins
    from scoop_outbox.cli.output import as_json
    from scoop_outbox.operations.doctor import Doctor, ask_broker

    chosen = settings_of(settings, settings_file)
    with Doctor(required(database), schema=schema) as opened:
        found = opened.examine()
    if broker is not None and not plugins.is_builtin(broker):
        found = asyncio.run(ask_broker(plugins.load(broker, chosen), found))
    if json_:
        click.echo(as_json(found))
    else:
        for line in _lines(found):
            click.echo(line)
    if found.problems:
        click.echo(f"{len(found.problems)} problem{'s' if len(found.problems) > 1 else ''}", err=True)
        sys.exit(PROBLEMS)
    click.echo("no problems", err=True)


def _lines(found: Examination) -> Iterator[str]:
    if found.name is None:
        yield f"this home has no name, and cooperates with no other: id {found.id}, tables {found.tables}"
    else:
        told = f"subscriptions at revision {found.revision}" if found.revision else "no other home was told of it"
        yield f"home {in_one_line(found.name)}: id {found.id}, tables {found.tables}, {told}"
    if found.peers:
        yield "home\tid\theard\tsubscriptions\tknows ours\tlag\twaited for there\tsilent\twaited for here"
    for one in found.peers:
        yield "\t".join(
            (
                in_one_line(one.name or "(unknown)"),
                str(one.id),
                _ago(one.heard),
                _subscriptions(one),
                "yes" if one.confirmed >= found.revision else f"{one.confirmed} of {found.revision}",
                "-" if one.lag is None else f"{one.lag:.3f} s",
                str(one.children),
                _ago(one.silent),
                str(one.runs),
            )
        )
    for problem in found.problems:
        yield f"{problem.fault}: {in_one_line(problem.text)}"


def _subscriptions(one: Peer) -> str:
    if not one.revision:
        return "not told"
    return f"{one.listeners}, revision {one.revision}" + (", draining" if one.draining else "")


def _ago(seconds: float | None) -> str:
    from datetime import timedelta

    from scoop_outbox.cli.output import seconds_text

    return "-" if seconds is None else seconds_text(timedelta(seconds=seconds))
