"""Broker topology of a service: `scoop-outbox topology print | apply`."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from scoop_outbox.cli.options import with_home_name
from scoop_outbox.cli.settings import HIDDEN, broker_settings, settings_of, without_secret, without_secrets

if TYPE_CHECKING:
    from scoop_outbox.app import Scoop
    from scoop_outbox.broker.protocol import Resource

MISSING = 3
"""The exit code of `print` when something is missing. 1 and 2 are errors."""

_TOLD = {True: "exists", False: "missing", None: "unknown"}
_DONE = {True: "exists", False: "created", None: "ensured"}


@click.group()
def topology() -> None:
    """Print or create the broker topology of a service and its home: topics, exchanges, queues, bindings.

    No other command and no running service creates any of these.
    """


def _of_an_application(command: Callable[..., None]) -> click.Command:
    """Make a command of a function that is given an application and the topics that it publishes on."""
    for decorate in (
        broker_settings,
        with_home_name,
        click.option(
            "--broker",
            metavar="URL",
            envvar="SCOOP_OUTBOX_BROKER",
            help="Broker URL; default: what the application declares [env: SCOOP_OUTBOX_BROKER].",
        ),
        click.option(
            "--group",
            metavar="NAME",
            help="Consumer group or queue of the service; default: what the application declares.",
        ),
        click.option(
            "--topic",
            "topics",
            metavar="NAME",
            multiple=True,
            help="Topic that the service publishes on; repeatable. Topics of its sagas are included.",
        ),
        click.argument("app", metavar="MODULE:APP"),
    ):
        command = decorate(command)
    return topology.command(command.__name__.rstrip("_"))(command)


@_of_an_application
def print_(
    *,
    app: str,
    topics: Sequence[str],
    group: str | None,
    broker: str | None,
    home_name: str | None,
    settings: Sequence[str],
    settings_file: Path | None,
) -> None:
    """Print the topology, and which parts exist. Creates nothing.

    The exit code is 0 when nothing is missing, and 3 when something is. Bindings of RabbitMQ, which cannot be queried,
    are shown as unknown and do not count as missing.
    """
    import asyncio

    scoop = _load(app, group, broker, home_name, settings_of(settings, settings_file))
    items = asyncio.run(scoop.topology(*topics))
    _show(scoop, items, _TOLD)
    missing = sum(item.exists is False for item in items)
    if missing:
        given = shlex.join([app, *_again(broker, group, home_name, settings, settings_file, topics)])
        hidden = f", with what {HIDDEN} stands for" if HIDDEN in given else ""
        click.echo(f"{missing} missing; to create{hidden}: scoop-outbox topology apply {given}", err=True)
        sys.exit(MISSING)


@_of_an_application
def apply(
    *,
    app: str,
    topics: Sequence[str],
    group: str | None,
    broker: str | None,
    home_name: str | None,
    settings: Sequence[str],
    settings_file: Path | None,
) -> None:
    """Create the missing parts of the topology. Existing parts are left as they are, so this can be repeated.

    Bindings of RabbitMQ, which cannot be queried, are always created.
    """
    import asyncio

    scoop = _load(app, group, broker, home_name, settings_of(settings, settings_file))
    _show(scoop, asyncio.run(scoop.apply_topology(*topics)), _DONE)


def _again(
    broker: str | None,
    group: str | None,
    home_name: str | None,
    settings: Sequence[str],
    file: Path | None,
    topics: Sequence[str],
) -> Iterator[str]:
    """Yield the options that were given, so that what was looked at is what will be created; no secret."""
    if broker is not None and _was_typed("broker"):
        yield from ("--broker", without_secrets(broker))
    if group is not None:
        yield from ("--group", group)
    if home_name is not None and _was_typed("home_name"):
        yield from ("--home-name", home_name)
    for setting in settings:
        yield from ("--broker-setting", without_secret(setting))
    if file is not None and _was_typed("settings_file"):
        yield from ("--broker-settings", str(file))
    for topic in topics:
        yield from ("--topic", topic)


def _was_typed(option: str) -> bool:
    """Tell whether an option is on the command line: what the environment says, it says to the next command, too."""
    source = click.get_current_context().get_parameter_source(option)
    return source is click.core.ParameterSource.COMMANDLINE


def _load(
    path: str, group: str | None, broker: str | None, home_name: str | None, settings: Mapping[str, object]
) -> Scoop:
    from scoop_outbox.cli.processes import load_app

    # What a broker's client has to say is in the error, once.
    logging.getLogger().addHandler(logging.NullHandler())
    scoop = load_app(path)
    scoop.configure(broker=broker, broker_settings=settings, group=group, home=home_name)
    return scoop


def _show(scoop: Scoop, items: Sequence[Resource], words: dict[bool | None, str]) -> None:
    from scoop_outbox.app import service_of

    for item in items:
        click.echo(f"{words[item.exists]:<7}  {item.text}")
    if service_of(scoop).broker is None:
        click.echo("there is nothing to create: the built-in broker needs only the database")
    elif not items:
        click.echo(f"there is nothing to create: service {scoop.service!r} has no sagas, and no --topic is given")
