"""The failures that a process knows: each was written or read here once, and never changes."""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict

from scoop_outbox.failure import Failure
from scoop_outbox.message import uuid7

_ROOM = 32 * 1024 * 1024
"""Bytes that they take up together, roughly; beyond it, those go that have not been asked for the longest."""
_EACH, _FRAME = 500, 100


class KnownFailures:
    """See `scoop_outbox.core.plans.failures.Known`. Safe to be used by several threads.

    Args:
        room: how many bytes they may take up, roughly.
    """

    def __init__(self, room: int = _ROOM) -> None:
        """Know nothing yet."""
        self.keeper = uuid.uuid4()
        self._room = room
        self._lock = threading.Lock()
        self._known: OrderedDict[uuid.UUID, tuple[Failure, int]] = OrderedDict()
        self._size = 0

    def draw(self) -> uuid.UUID:
        """Return a new id."""
        return uuid7()

    def get(self, failure_id: uuid.UUID) -> Failure | None:
        """Return a failure if it is known."""
        with self._lock:
            if failure_id not in self._known:
                return None
            self._known.move_to_end(failure_id)
            return self._known[failure_id][0]

    def keep(self, failure: Failure) -> None:
        """Know a failure that is kept; forget others if there is no room."""
        assert failure.stored is not None  # noqa: S101 - or there would be nothing to know it by
        size = _size_of(failure)
        with self._lock:
            _, before = self._known.pop(failure.stored.id, (None, 0))
            self._known[failure.stored.id] = failure, size
            self._size += size - before
            while self._size > self._room:
                _, (_, gone) = self._known.popitem(last=False)
                self._size -= gone


def _size_of(failure: Failure) -> int:
    own = _EACH + len(failure.message or "") + _FRAME * len(failure.stack_trace)
    return own + sum(map(_size_of, failure.causes))
