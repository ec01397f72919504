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
_SUSPECT = re.compile(rb"(?i)\b(?:(?:listen|prepare|declare|call|execute)\b|do\s*(?:language|/|-|\$|[eu&]*'))")
# The generators of psycopg that send what passes by `get`, or only what psycopg itself has written.
_KNOWN = frozenset(
    {"_execute_gen", "_executemany_gen_no_pipeline", "_executemany_gen_pipeline", "_enter_gen", "_exit_gen"}
)


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

    def get(self, query: PostgresQuery, prepare: bool | None = None) -> tuple[Prepare, bytes]:  # noqa: FBT001
        """Look at a statement that is about to be sent."""
        if not self.suspects and _SUSPECT.search(query.query):
            self.suspects = True
        return super().get(query, prepare)

    def note(self, sending: Iterator[Any]) -> None:
        """Look at what is about to be driven on the connection."""
        if not self.suspects and getattr(sending, "__name__", "") not in _KNOWN:
            self.suspects = True
