"""Room for what is on its way to the broker, given out in the order in which it is asked for."""

from __future__ import annotations

import asyncio
from collections import deque


class Window:
    """Places that messages take: large ones take many.

    Small and large ones wait in one line. With a line for each, messages of a key overtook each other by their size.

    Args:
        places: how many there are.
    """

    def __init__(self, places: int) -> None:
        """Take none yet."""
        self._free = places
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    async def enter(self, places: int) -> None:
        """Take so many places, when all who came before have theirs."""
        if not self._waiting and places <= self._free:
            self._free -= places
            return
        admission: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((admission, places))
        try:
            await admission
        except asyncio.CancelledError:
            # They may have been given just before.
            if admission.done() and not admission.cancelled():
                self._free += places
            self._give()
            raise

    def leave(self, places: int) -> None:
        """Give so many places to whoever is next."""
        self._free += places
        self._give()

    def _give(self) -> None:
        while self._waiting:
            admission, places = self._waiting[0]
            if not admission.done():
                if places > self._free:
                    return
                self._free -= places
                admission.set_result(None)
            self._waiting.popleft()
