"""The run queue: runs that a worker may execute now. Sagas take turns, and each saga's runs are taken oldest first.

One saga whose runs all wait for another system, a second each, kept a service from everything else for minutes.
"""

from __future__ import annotations

import uuid
from collections import deque


class RunQueue:
    """Runs by saga, in the order in which they are to be executed."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._runs: dict[str, deque[uuid.UUID]] = {}  # the saga whose turn it is comes first
        self._known: set[uuid.UUID] = set()

    def __len__(self) -> int:
        """Return how many runs there are."""
        return len(self._known)

    def has(self, saga: str) -> bool:
        """Tell whether there is a run of a saga."""
        return saga in self._runs

    def put(self, run_id: uuid.UUID, saga: str) -> None:
        """Add a run behind those of its saga, if it is not there."""
        if run_id not in self._known:
            self._known.add(run_id)
            self._runs.setdefault(saga, deque()).append(run_id)

    def next_saga(self) -> str | None:
        """Return whose turn it is; None when there is nothing."""
        return next(iter(self._runs), None)

    def take(self) -> tuple[uuid.UUID, str]:
        """Take the next run, and return it with its saga.

        Raises:
            StopIteration: there is none.
        """
        saga = next(iter(self._runs))
        runs = self._runs.pop(saga)
        run_id = runs.popleft()
        self._known.discard(run_id)
        if runs:
            self._runs[saga] = runs  # behind the others
        return run_id, saga

    def clear(self) -> None:
        """Forget all of them: they are read anew."""
        self._runs.clear()
        self._known.clear()
