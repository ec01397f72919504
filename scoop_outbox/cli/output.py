"""What commands print: values as JSON, and times and failures in a few words."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime, timedelta
from typing import Any

from scoop_outbox.cli.options import in_one_line
from scoop_outbox.failure import Failure


def as_json(value: object, **more: object) -> str:
    """Return a value of the operations as one JSON object in a line; times in ISO 8601, durations in seconds."""
    return json.dumps({**_plain(value), **more}, default=_plain)


def failure_line(failure: Failure) -> str:
    """Return type and message of a failure, as far as they fit into a line."""
    return told_in_one_line(failure.type, failure.message)


def told_in_one_line(kind: str, message: str | None) -> str:
    """Return the type and the first line of the message of a failure."""
    first = (message or "").strip().split("\n", 1)[0]
    return in_one_line(f"{kind}: {first}" if first else kind)


def time_text(at: datetime) -> str:
    """Return when something was, to the second."""
    return at.isoformat(timespec="seconds")


def seconds_text(duration: timedelta) -> str:
    """Return how long something took, in seconds as long as these can be read, then in larger units."""
    seconds = max(duration.total_seconds(), 0.0)
    if seconds < 100:  # noqa: PLR2004 - three digits are enough
        return f"{seconds:.3f} s"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _plain(value: object) -> Any:
    if isinstance(value, Failure):
        return {"type": value.type, "message": value.message, "source": value.source}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    return value.total_seconds() if isinstance(value, timedelta) else str(value)
