"""The log of a command: on stderr, a line each, for people or as JSON.

The library itself only calls `logging`: its lines are `component: event (detail)`, and their fields are attributes of
the record (`extra=`), which any formatter can use. docs/operations.md lists both.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from types import TracebackType
from typing import Any, TypeVar

import click

from scoop_outbox._log import get_logger

log = get_logger(__name__)

Command = TypeVar("Command", bound=Callable[..., Any])

OURS = "scoop_outbox"
"""What the names of our loggers begin with, those of adapters too."""
_OF_EVERY_RECORD = frozenset([*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"])
"""Attributes that records have without being given them; `taskName` since Python 3.12."""


class LogFormat(StrEnum):
    """How a line of the log is written."""

    CONSOLE = "console"
    JSON = "json"


class ConsoleFormatter(logging.Formatter):
    """Time in UTC, level, text; before the text the logger's name, unless it is ours: ours begin with a component."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - as logging calls it
        """Return the line, without the exception."""
        source = "" if is_ours(record) else f"{record.name}: "
        return f"{time_of(record)} {record.levelname:<8} {source}{record.message}"


class JsonFormatter(logging.Formatter):
    """One JSON object in one line.

    It holds `time` (ISO 8601, UTC), `level`, `logger`, `event`, `detail` if the text ends with one in parentheses, the
    fields of the record (see docs/operations.md; those of other programs' records, too), and `exception`, with its
    traceback.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return _as_json({**self._known(record), **_exception(self, record)})

    def _known(self, record: logging.LogRecord) -> dict[str, object]:
        event, detail = split(record.getMessage()) if is_ours(record) else (record.getMessage(), None)
        known = {
            "time": time_of(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": event,
            "detail": detail,
        }
        fields = {name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD | known.keys()}
        return {name: value for name, value in (known | fields).items() if value is not None}


def is_ours(record: logging.LogRecord) -> bool:
    """Tell whether the library has logged this."""
    return record.name.startswith(OURS)


def split(text: str) -> tuple[str, str | None]:
    """Return `component: event`, which is the same for all lines of a kind, and the detail behind it in parentheses."""
    event, opened, detail = text.partition(" (")
    return (event, detail.removesuffix(")")) if opened else (text, None)


def time_of(record: logging.LogRecord) -> str:
    """Return when something was logged, as `2026-11-30T08:37:40.123Z`."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def with_log_format(command: Command) -> Command:
    """Give a command the option `--log-format`, to be passed to `write_log`."""
    return click.option(
        "--log-format",
        default=LogFormat.CONSOLE.value,
        show_default=True,
        type=click.Choice([one.value for one in LogFormat], case_sensitive=False),
        help="Lines of the log: for people, or JSON objects.",
    )(command)


def with_log_level(command: Command) -> Command:
    """Give a command the option `--log-level`, to be passed to `write_log`."""
    return click.option(
        "--log-level",
        default="info",
        show_default=True,
        type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
        help="Lowest level of lines to log.",
    )(command)


def write_log(level: str, chosen: str) -> None:
    """Write the log to stderr, from this level on.

    As JSON, whatever else Python says there is a line of the log, too: warnings, and exceptions that nobody catches.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if chosen == LogFormat.JSON else ConsoleFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    if chosen == LogFormat.JSON:
        logging.captureWarnings(capture=True)
        sys.excepthook = _log_exception
        threading.excepthook = _log_exception_of_thread
        sys.unraisablehook = _log_unraisable


def is_json() -> bool:
    """Tell whether `write_log` was asked for JSON: then an error of the command is a line of the log, too."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)


def _log_exception(kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None) -> None:
    log.critical("process: exception not caught (%s)", kind.__name__, exc_info=(kind, error or kind(), traceback))


def _log_exception_of_thread(one: threading.ExceptHookArgs) -> None:
    if one.exc_type is not SystemExit:  # a thread may end like that, and Python says nothing of it
        _log_exception(one.exc_type, one.exc_value, one.exc_traceback)


def _log_unraisable(one: sys.UnraisableHookArgs) -> None:
    """Log what was raised where nobody can catch it: in a finaliser, say. The object itself is not shown."""
    error = one.exc_value or one.exc_type()
    log.error(
        "process: exception ignored (%s)", one.exc_type.__name__, exc_info=(one.exc_type, error, one.exc_traceback)
    )


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, object]:
    told = {
        "exception": formatter.formatException(record.exc_info) if record.exc_info else record.exc_text,
        "stack": formatter.formatStack(record.stack_info) if record.stack_info else None,
    }
    return {name: text for name, text in told.items() if text}


def _as_json(line: Mapping[str, object]) -> str:
    try:
        return json.dumps(line, allow_nan=False, default=_as_text)
    except Exception:  # noqa: BLE001 - what another program has added: keys that are no text, NaN, a cycle
        return json.dumps({_as_text(name): _as_text(value) for name, value in line.items()})


def _as_text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - it is another program's, and the line is not lost for it
        return f"<{type(value).__name__}>"
