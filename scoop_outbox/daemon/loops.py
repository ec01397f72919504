"""Calling on an event loop, from wherever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


def call_on(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *args: Any) -> bool:
    """Call on an event loop: at once on the one that is running here, else soon. Answer False if it is closed.

    Not by the number of the thread: a thread may run one loop after the other, and its number may be another's later.
    """
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        running = None
    if running is loop:
        call(*args)
        return True
    try:
        loop.call_soon_threadsafe(call, *args)
    except RuntimeError:
        return False
    return True
