"""Waiting for a condition: what tests do instead of sleeping for a fixed time."""

import asyncio
import inspect
import time
from collections.abc import Callable


async def until(
    condition: Callable[[], object],
    timeout: float = 10.0,  # noqa: ASYNC109 - its message names the condition
    interval: float = 0.005,
) -> None:
    """Return once the condition holds.

    Args:
        condition: called again and again; a coroutine function is awaited. It holds when its result is true.
        timeout: seconds after which to give up.
        interval: seconds between two calls.

    Raises:
        AssertionError: it still does not hold; the message shows the condition and its last result.
    """
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        if inspect.isawaitable(result):
            result = await result
        if result:
            return
        if time.monotonic() >= deadline:
            raise AssertionError(_message(condition, result, timeout))
        await asyncio.sleep(interval)


def until_blocking(condition: Callable[[], object], timeout: float = 10.0, interval: float = 0.005) -> None:
    """Return once the condition holds; the same as ``until`` for a test without an event loop.

    A coroutine function is run to its end, each time in a loop of its own.
    """

    async def once() -> object:
        result = condition()
        return await result if inspect.isawaitable(result) else result

    is_coroutine = inspect.iscoroutinefunction(condition)
    deadline = time.monotonic() + timeout
    while True:
        result = asyncio.run(once()) if is_coroutine else condition()
        if result:
            return
        if time.monotonic() >= deadline:
            raise AssertionError(_message(condition, result, timeout))
        time.sleep(interval)


def _message(condition: Callable[[], object], result: object, timeout: float) -> str:
    try:
        what = inspect.getsource(condition).strip()
    except (OSError, TypeError):
        what = repr(condition)
    return f"Still not so after {timeout} s: {what}\nIts last result was {result!r}."
