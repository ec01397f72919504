"""The cooperation context: values that flow down a hierarchy and along a run, never up."""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping
from typing import Any

from scoop_outbox.errors import PayloadError
from scoop_outbox.message import dump_json


class Context(MutableMapping[str, Any]):
    """A mapping of JSON values, parsed when first looked at.

    A step's changes are seen by the steps after it, by compensations (also those of the step that failed), and by
    the handlers of messages launched after the change. Nothing flows from a child to its parent.
    """

    __slots__ = ("_measured", "_text", "_values")

    def __init__(self, text: str | None = None) -> None:
        """Start from the stored JSON object `text`, or empty."""
        self._text = text
        self._values: dict[str, Any] | None = None
        self._measured = True

    @property
    def _parsed(self) -> dict[str, Any]:
        if self._values is None:
            self._values = {} if self._text is None else json.loads(self._text)
        return self._values

    def __getitem__(self, key: str) -> Any:
        """Return the value of `key`."""
        return self._parsed[key]

    def __setitem__(self, key: str, value: Any) -> None:
        """Set `key` to a JSON value; it is encoded when the step ends."""
        if not isinstance(key, str):
            raise PayloadError(f"a context key is text, not {type(key).__name__}: {key!r}")
        self._parsed[key] = value

    def __delitem__(self, key: str) -> None:
        """Remove `key`."""
        del self._parsed[key]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys."""
        return iter(self._parsed)

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._parsed)

    def __repr__(self) -> str:
        """Show the keys only: values are payload, and payload stays out of logs."""
        return f"Context({', '.join(sorted(self))})"

    def dumps(self, /, **more: Any) -> str | None:
        """Return the context with `more` on top as JSON text, or None when there is nothing in it.

        Raises:
            PayloadError: a value cannot be encoded as JSON.
        """
        if self._values is None and not more:
            return self._text
        merged = {**self._parsed, **more}
        return dump_json(merged, "the context") if merged else None

    def exempt(self) -> None:
        """Let it grow as it likes: compensations and failure handlers are not failed for its size."""
        self._measured = False

    def has_grown(self) -> bool:
        """Tell whether it takes more room than what it started from, written the same way, and is not exempt."""
        if not self._measured or self._values is None:
            return False
        return len(self.dumps() or "") > len(Context(self._text).rewritten())

    def rewritten(self) -> str:
        """Return it as JSON text that we have written: another program may write the same values otherwise."""
        return dump_json(self._parsed, "the context")


def merge(own: str | None, above: str | None) -> str | None:
    """Return the stored context `own` with the values of `above` on top: what a child rolls back with."""
    if own is None or above is None:
        return above if own is None else own
    return Context(own).dumps(**json.loads(above))
