"""Tasks that callbacks create: `sys.exit()` in one of them is its failure, and does not end the process.

asyncio hands `SystemExit` of any task on to whoever runs the event loop. So one message whose step gathered a call of
`sys.exit()` ended every worker that got it, one after the other.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from scoop_outbox import _inside
from scoop_outbox.errors import StepError
from scoop_outbox.scope import Scope


class _Contained(Coroutine[Any, Any, Any]):
    """A coroutine from which `SystemExit` comes as a `StepError`; everything else about it is as it was.

    No `async def` around it: when a task is cancelled before it has begun, that would leave a coroutine behind which
    was never awaited, and Python warns about those.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], scope: Scope) -> None:
        self._coroutine = coroutine
        self._scope = scope

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)

    def send(self, value: Any) -> Any:
        try:
            return self._coroutine.send(value)
        except SystemExit as error:
            raise self._failure() from error

    def throw(self, *error: Any) -> Any:
        try:
            return self._coroutine.throw(*error)
        except SystemExit as raised:
            raise self._failure() from raised

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coroutine.__await__()

    def _failure(self) -> StepError:
        return StepError(f"a task of step {self._scope.step!r} of saga {self._scope.saga!r} called sys.exit()")


class _Factory:
    """Makes the tasks of an event loop, by way of the factory that it had before."""

    def __init__(self, before: Callable[..., asyncio.Future[Any]] | None) -> None:
        self.before = before
        self.workers = 0

    def __call__(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        scope = _inside.current()
        if scope is not None and asyncio.iscoroutine(coroutine) and not isinstance(coroutine, _Contained):
            coroutine = _Contained(coroutine, scope)
        if self.before is not None:
            return self.before(loop, coroutine, **options)
        return asyncio.Task(coroutine, loop=loop, **options)


_factories: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Factory] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def contain_exits(loop: asyncio.AbstractEventLoop) -> None:
    """Contain what the tasks of callbacks do in this loop, until `let_exits_through` has been called as often."""
    with _lock:
        factory = _factories.get(loop)
        if factory is None:
            factory = _factories[loop] = _Factory(loop.get_task_factory())
            loop.set_task_factory(factory)
        factory.workers += 1


def let_exits_through(loop: asyncio.AbstractEventLoop) -> None:
    """Leave the loop as it was, unless somebody has given it another factory since."""
    with _lock:
        factory = _factories.get(loop)
        if factory is None:
            return
        factory.workers -= 1
        if factory.workers > 0:
            return
        before = factory.before
        del _factories[loop]
        if loop.get_task_factory() is factory:
            loop.set_task_factory(before)
