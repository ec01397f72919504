"""Settings for the broker's client, from the command line and from a file that keeps secrets out of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

HIDDEN = "..."
"""Stands where a secret was."""

_OPTION = "--broker-setting"
# As the adapters' settings are called that hold one, and a few more: it is better to hide too much.
_SECRET = re.compile(r"pass|secret|token|credential|pem$|key$|jaas|userinfo", re.IGNORECASE)


def broker_settings(command: Command) -> Command:
    """Give a command the options `--broker-setting` and `--broker-settings`, to be passed to `settings_of`."""
    for decorate in (
        click.option(
            "--broker-settings",
            "settings_file",
            metavar="FILE",
            envvar="SCOOP_OUTBOX_BROKER_SETTINGS",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="File of such settings, one a line; # begins a comment [env: SCOOP_OUTBOX_BROKER_SETTINGS].",
        ),
        click.option(
            "--broker-setting",
            "settings",
            metavar="NAME=VALUE",
            multiple=True,
            help="Setting of the broker client; repeatable. Put secrets into a file.",
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


def without_secret(setting: str) -> str:
    """Return a setting as it was given; without its value if its name says that this is a secret."""
    name, equals, _ = setting.partition("=")
    return f"{name}{equals}{HIDDEN}" if _SECRET.search(name.strip()) else setting


def without_secrets(url: str) -> str:
    """Return a broker's URL as it was given, without the password and without settings that are secret."""
    address, mark, query = _without_password(url).partition("?")
    return address + mark + "&".join(map(without_secret, query.split("&")))


def _without_password(url: str) -> str:
    """Cut the password out, also of a URL in which it holds what it may not hold without being quoted."""
    scheme, slashes, rest = url.partition("//")
    users, at, host = rest.rpartition("@")
    user, colon, _ = users.partition(":")
    return f"{scheme}{slashes}{user}{colon}{colon and HIDDEN}{at}{host}"


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise click.ClickException(f"{file} is not UTF-8 text") from None
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
            raise click.UsageError(f"{where} sets {name} a second time")
        found[name] = value
    return found
