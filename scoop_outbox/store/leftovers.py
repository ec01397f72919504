"""What a callback may have left on its connection that is rare, and dear to look for.

To ask the server for held cursors, channels and statements prepared by name costs as much as a short statement, behind
each step. A callback sends what leaves them through psycopg's cursors, so it is seen here, and only then asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from psycopg._preparing import Prepare, PrepareManager
from psycopg._queries import PostgresQuery

# A word too many costs a question; `on conflict do nothing` is no block, and common.
_WORDS = (b"listen", b"prepare", b"declare", b"call", b"execute", b"do")
_SUSPECT = re.compile(rb"\b(?:(?:listen|prepare|declare|call|execute)\b|do\s*(?:language|/|-|\$|[eu&]*'))")
_LONGEST = 20_000
"""Bytes of a statement that are looked through: to ask the server is quicker than to read more."""
_EXECUTE = frozenset({"_execute_gen", "_executemany_gen_no_pipeline", "_executemany_gen_pipeline"})
"""The generators of psycopg that send a statement of the callback's, which is shown to `get`; not by all cursors."""
_OWN = frozenset({"_enter_gen", "_exit_gen"})
"""Those that send only what psycopg itself has written."""


class Watching(PrepareManager):
    """Sees the statements of a callback, in place of psycopg's memory of what it has prepared, which is nothing.

    Attributes:
        suspects: whether something may be left that has to be asked for.
    """

    def __init__(self) -> None:
        """Suspect nothing yet."""
        super().__init__()
        self.prepare_threshold = None
        self.suspects = False
        self._unseen = False
        self._last = b""

    def get(self, query: PostgresQuery, prepare: bool | None = None) -> tuple[Prepare, bytes]:  # noqa: FBT001
        """Look at a statement that is about to be sent."""
        self._unseen = False
        if not self.suspects and query.query is not self._last:  # the same one for all rows of an `executemany`
            self._last = query.query
            self.suspects = _is_suspect(query.query)
        return super().get(query, prepare)

    def begins(self, sending: Iterator[Any]) -> None:
        """Look at what is about to be driven on the connection."""
        name = getattr(sending, "__name__", "")
        self._unseen = name in _EXECUTE
        if not (self._unseen or name in _OWN):
            self.suspects = True

    def ends(self) -> None:
        """Suspect what has been driven without being shown, as a `ClientCursor` does."""
        if self._unseen:
            self.suspects = True


def _is_suspect(statement: bytes) -> bool:
    if len(statement) > _LONGEST:
        return True
    lowered = statement.lower()
    return any(word in lowered for word in _WORDS) and _SUSPECT.search(lowered) is not None
