"""Adaptive polling: how often to look. Short while there is work, longer and longer while there is none."""

from __future__ import annotations

import asyncio
import random
import time


class AdaptivePolling:
    """Adaptive polling that can be woken.

    Args:
        shortest: seconds from one look to the next just after there was work.
        longest: seconds from one look to the next after a long idle time.
    """

    def __init__(self, shortest: float = 0.01, longest: float = 1.0) -> None:
        """Start as if there had just been work."""
        self._shortest = shortest
        self._longest = longest
        self._interval = shortest
        self._woken = asyncio.Event()
        self._looked = time.monotonic()  # when the last sleep ended

    def wake(self) -> None:
        """End the sleep at once, or the next one if nobody sleeps."""
        self._interval = self._shortest
        self._woken.set()

    def busy(self) -> None:
        """Note that there was work."""
        self._interval = self._shortest

    async def sleep(self, at_most: float | None = None) -> None:
        """Sleep until woken, or until it is time to look again. What was done since the last sleep counts.

        Args:
            at_most: seconds after which something is known to be due.
        """
        # Jitter keeps processes that were woken together from staying in step for ever.
        interval = self._interval * random.uniform(0.8, 1.0)
        self._interval = min(self._interval * 2, self._longest)
        # Beside a broker that takes ten milliseconds to answer, every second look would be left out.
        timeout = max(interval - (time.monotonic() - self._looked), 0.0)
        try:
            async with asyncio.timeout(timeout if at_most is None else min(timeout, max(at_most, 0.0005))):
                await self._woken.wait()
            self._woken.clear()
        except TimeoutError:
            return
        finally:
            self._looked = time.monotonic()
