"""Members of the JSON objects that control messages are made of: each is read, or refused in words."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from scoop_outbox.wire.headers import id_of


class MalformedControl(ValueError):
    """A control message cannot be understood; the text says why."""


def object_of(value: object, name: str) -> Mapping[str, Any]:
    """Return a value that has to be an object."""
    if not isinstance(value, dict):
        raise MalformedControl(f"{name} is no JSON object")
    return value


def objects_of(said: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """Return a member that has to be a list of objects."""
    value = said.get(name)
    if not isinstance(value, list):
        raise MalformedControl(f"{name} is no list")
    return [object_of(one, f"an element of {name}") for one in value]


def failure_of(said: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """Return a failure as it was told; None if there is none."""
    return None if said.get(name) is None else object_of(said[name], name)


def uuid_of(said: Mapping[str, Any], name: str) -> uuid.UUID:
    """Return a member that has to be an id."""
    value = said.get(name)
    found = id_of(value) if isinstance(value, str) else None
    if found is None:
        raise MalformedControl(f"{name} is no UUID")
    return found


def text_of(said: Mapping[str, Any], name: str) -> str:
    """Return a member that has to be a text, and one that Postgres can hold."""
    value = said.get(name)
    if not is_storable(value):
        raise MalformedControl(f"{name} is no text that can be stored")
    assert isinstance(value, str)  # noqa: S101 - it is storable
    return value


def texts_of(said: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return a member that has to be a list of texts; none if there is none."""
    value = said.get(name) or []
    if not isinstance(value, list) or not all(is_storable(one) for one in value):
        raise MalformedControl(f"{name} is no list of texts")
    return tuple(value)


def is_storable(value: object) -> bool:
    """Tell whether a value is a text that Postgres can hold, and not empty."""
    try:
        return isinstance(value, str) and value != "" and "\0" not in value and value.encode() is not None
    except UnicodeEncodeError:
        return False


def json_of(value: object, name: str) -> str:
    """Return a value as JSON text; what Python reads as a number and JSON has no word for is refused."""
    try:
        return json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        raise MalformedControl(f"{name} is no JSON that can be stored") from None


def number_of(said: Mapping[str, Any], name: str, most: int = (1 << 31) - 1) -> int:
    """Return a member that has to be an integer from 0 to the most that it may be."""
    value = said.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise MalformedControl(f"{name} is no number from 0 to {most}")
    return value


def time_of(said: Mapping[str, Any], name: str) -> datetime | None:
    """Return a member that has to be a time; None if there is none."""
    if said.get(name) is None:
        return None
    try:
        found = datetime.fromisoformat(said[name])
    except (TypeError, ValueError):
        found = None
    if found is None or found.tzinfo is None:
        raise MalformedControl(f"{name} is no time of ISO 8601 with its offset from UTC")
    return found
