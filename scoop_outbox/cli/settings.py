"""Settings for the broker's client, from the command line and from a file that keeps secrets out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTION = "--broker-setting"


def broker_settings(command: Command) -> Command:
    """Give a command the options `--broker-setting` and `--broker-settings`, to be passed to `settings_of`."""
    for decorate in (
        click.option(
            "--broker-settings",
            "settings_file",
            metavar="FILE",
            envvar="SCOOP_OUTBOX_BROKER_SETTINGS",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="A file of such settings, one a line; # begins a comment [env: SCOOP_OUTBOX_BROKER_SETTINGS].",
        ),
        click.option(
            "--broker-setting",
            "settings",
            metavar="NAME=VALUE",
            multiple=True,
            help="A setting for the broker's client; may be repeated. Secrets belong into a file.",
        ),
    ):
        command = decorate(command)
    return command


def settings_of(settings: Sequence[str], file: Path | None) -> dict[str, str]:
    """Return the settings by name; what is on the command line wins over the file.

    Args:
        settings: from the command line.
        file: where there are more.

    Raises:
        click.UsageError: one of them is no setting. Its value is not shown: it may be a password.
        click.ClickException: the file cannot be read.
    """
    found = {} if file is None else _parsed(_lines(file))
    return found | _parsed((_OPTION, text) for text in settings)


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise click.ClickException(f"{file} is no text in UTF-8") from None
    except OSError as error:
        raise click.ClickException(f"{file} cannot be read: {error.strerror}") from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield f"{file}, line {number}", line


def _parsed(texts: Iterable[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for where, text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not name or not equals:
            is_option = where == _OPTION
            raise click.UsageError(
                f"{where} is {'' if is_option else 'not '}NAME=VALUE, as in {f'{_OPTION} ' if is_option else ''}"
                "sasl.mechanism=PLAIN"
            )
        if name in found:
            raise click.UsageError(f"{where} sets {name} once more")
        found[name] = value
    return found
