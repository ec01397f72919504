"""Sagas: what a user declares. Named steps, each one transaction, and what undoes them."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, overload

from scoop_outbox.errors import DefinitionError
from scoop_outbox.message import Topic, checked_name, topic_name
from scoop_outbox.policy import COMPENSATION, ONCE, Retry

Callback = Callable[..., Any]
C = TypeVar("C", bound=Callback)


@dataclass(frozen=True, slots=True)
class Repeat:
    """Returned by a step: execute this step once more, after the children of this execution have ended."""


@dataclass(frozen=True, slots=True)
class GoTo:
    """Returned by a step: go on with the step of this name instead of the next one in order.

    Args:
        step: the step, or its name.
    """

    step: str | Step

    @property
    def name(self) -> str:
        """The name of the step to go to."""
        return self.step.name if isinstance(self.step, Step) else self.step


def is_async(callback: Callback) -> bool:
    """Tell whether calling `callback` gives a coroutine; looks through `partial` and callable objects."""
    while isinstance(callback, functools.partial):
        callback = callback.func
    return inspect.iscoroutinefunction(callback) or inspect.iscoroutinefunction(type(callback).__call__)


def _checked(callback: object, what: str, arguments: Sequence[str]) -> Callback:
    """Return `callback` if it can be called with `arguments`."""
    call = f"({', '.join(arguments)})"
    if not callable(callback):
        raise DefinitionError(f"{what} is called with {call}; {callback!r} cannot be called")
    if inspect.isgeneratorfunction(callback) or inspect.isasyncgenfunction(callback):
        raise DefinitionError(f"{what} is a generator function: it would never run; use a plain def or async def")
    try:
        signature = inspect.signature(callback)
    except (TypeError, ValueError):  # some builtins do not tell
        return callback
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise DefinitionError(f"{what} is called with {call}, but takes {signature}: {error}") from None
    return callback


_STEP = ("scope", "message")
_FAILED = ("scope", "message", "error")


class Step:
    """One step of a saga: a callback, and what belongs to it.

    Made by `Saga.step` and `Saga.add_step`. Calling it calls the callback, which is handy in tests.
    """

    def __init__(
        self,
        saga: str,
        name: str,
        invoke: Callback,
        *,
        compensate: Callback | None = None,
        on_child_failure: Callback | None = None,
        on_child_rollback_failure: Callback | None = None,
        retry: Retry = ONCE,
        compensate_retry: Retry = COMPENSATION,
    ) -> None:
        """See `Saga.add_step`."""
        self._of = f"step {name!r} of saga {saga!r}"
        self.sealed = False
        self.name = checked_name("step", name)
        self.invoke = _checked(invoke, self._of, _STEP)
        self.compensation: Callback | None = None
        self.child_failure_handler: Callback | None = None
        self.child_rollback_failure_handler: Callback | None = None
        self.retry = retry
        self.compensate_retry = compensate_retry
        if compensate is not None:
            self.compensate(compensate)
        if on_child_failure is not None:
            self.on_child_failure(on_child_failure)
        if on_child_rollback_failure is not None:
            self.on_child_rollback_failure(on_child_rollback_failure)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the step's callback."""
        return self.invoke(*args, **kwargs)

    def __repr__(self) -> str:
        """Name the step."""
        return f"<{self._of}>"

    def compensate(self, callback: C) -> C:
        """Declare what undoes this step once it has committed: `(scope, message, error)`.

        It is called for each committed execution of the step when the run rolls back, in exact reverse order, after
        everything that the execution launched has been rolled back. `error` is what the run rolls back for.

        Raises:
            DefinitionError: there is one already, or it cannot be called with three arguments.
        """
        what = f"the compensation of {self._of}"
        self.compensation = self._set(self.compensation, _checked(callback, what, _FAILED), what)
        return callback

    def on_child_failure(self, callback: C) -> C:
        """Declare what handles failures of messages launched by this step: `(scope, message, error)`.

        It is called once, after all children of the execution have ended, with every failure in `error.causes`.
        Returning normally means handled: the run goes on (after the children of whatever was launched here).
        Raising rolls the run back, beginning with this step; that is also what happens without a handler.

        Raises:
            DefinitionError: there is one already, or it cannot be called with three arguments.
        """
        what = f"the child-failure handler of {self._of}"
        self.child_failure_handler = self._set(self.child_failure_handler, _checked(callback, what, _FAILED), what)
        return callback

    def on_child_rollback_failure(self, callback: C) -> C:
        """Declare what handles a child that could not be rolled back: `(scope, message, error)`.

        Returning normally counts the child as compensated, and the rollback goes on. Raising, which is also what
        happens without a handler, makes this run `rollback_failed`.

        Raises:
            DefinitionError: there is one already, or it cannot be called with three arguments.
        """
        what = f"the child-rollback-failure handler of {self._of}"
        handler = _checked(callback, what, _FAILED)
        self.child_rollback_failure_handler = self._set(self.child_rollback_failure_handler, handler, what)
        return callback

    def _set(self, present: Callback | None, callback: Callback, what: str) -> Callback:
        if self.sealed:
            raise _too_late(what)
        if present is not None:
            raise DefinitionError(f"{what} is declared twice: {present!r} and {callback!r}; keep one")
        return callback

    @property
    def callbacks(self) -> tuple[Callback, ...]:
        """Every callback declared on the step."""
        optional = (self.compensation, self.child_failure_handler, self.child_rollback_failure_handler)
        return (self.invoke, *(callback for callback in optional if callback is not None))


class Saga:
    """A message handler: a name, a topic, and ordered named steps.

    Made by `Scoop.saga`.
    """

    def __init__(
        self,
        name: str,
        on: str | Topic[Any],
        *,
        ordered: Literal["key"] | None = None,
        version: str | None = None,
        formerly: Iterable[str] = (),
    ) -> None:
        """See `Scoop.saga`."""
        self.name = checked_name("saga", name)
        self.version = None if version is None else checked_name("version", version)
        self.formerly = _formerly(name, formerly)
        if ordered not in (None, "key"):
            raise DefinitionError(
                f"saga {name!r}: ordered={ordered!r} is unknown; ordered='key' executes the messages of a key one "
                "after the other, and without it they are executed side by side"
            )
        self.ordered = ordered
        self.topic = topic_name(on)
        self.schema = on if isinstance(on, Topic) else None
        self._steps: dict[str, Step] = {}
        self._sealed = False
        self._after: dict[str, str] | None = None

    def __repr__(self) -> str:
        """Show name, topic and steps."""
        return f"<saga {self.name!r} on {self.topic!r}: {', '.join(map(repr, self._steps)) or 'no steps'}>"

    @property
    def sealed(self) -> bool:
        """Whether this process executes the saga as it is, so that nothing can be declared on it."""
        return self._sealed

    @sealed.setter
    def sealed(self, sealed: bool) -> None:
        self._sealed = sealed
        for step in self._steps.values():
            step.sealed = sealed

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps in order."""
        return tuple(self._steps.values())

    @overload
    def step(self, name: Callback, /) -> Step: ...
    @overload
    def step(
        self, name: str | None = None, /, *, retry: Retry = ONCE, compensate_retry: Retry = COMPENSATION
    ) -> Callable[[Callback], Step]: ...
    def step(
        self,
        name: str | Callback | None = None,
        /,
        *,
        retry: Retry = ONCE,
        compensate_retry: Retry = COMPENSATION,
    ) -> Step | Callable[[Callback], Step]:
        """Declare the next step with a decorator: bare, with a name, or with options.

        Args:
            name: the step's name; the function's own name unless given.
            retry: how often the step is tried before the run rolls back; once unless given.
            compensate_retry: how often its compensation is tried before the run is `rollback_failed`.

        Returns:
            The step, on which `compensate`, `on_child_failure` and the like are decorators in turn.

        Raises:
            DefinitionError: the name is taken or cannot be used, or the function cannot be called with
                `(scope, message)`.
        """
        if name is not None and not isinstance(name, str):
            return self.add_step(_name_of(name), name)

        def declare(invoke: Callback) -> Step:
            return self.add_step(
                _name_of(invoke) if name is None else name,
                invoke,
                retry=retry,
                compensate_retry=compensate_retry,
            )

        return declare

    def add_step(
        self,
        name: str,
        invoke: Callback,
        *,
        compensate: Callback | None = None,
        on_child_failure: Callback | None = None,
        on_child_rollback_failure: Callback | None = None,
        retry: Retry = ONCE,
        compensate_retry: Retry = COMPENSATION,
    ) -> Step:
        """Declare the next step without decorators.

        Args:
            name: unique within the saga. It is stored with runs under way: renaming a step strands them.
            invoke: `(scope, message)`, a `def` or an `async def`; returns None, `Repeat()` or `GoTo(name)`.
            compensate: see `Step.compensate`.
            on_child_failure: see `Step.on_child_failure`.
            on_child_rollback_failure: see `Step.on_child_rollback_failure`.
            retry: how often the step is tried before the run rolls back.
            compensate_retry: how often the compensation is tried before the run is `rollback_failed`.

        Raises:
            DefinitionError: the name is taken or cannot be used, or a callback cannot be called as it will be; or the
                saga is being executed.
        """
        checked_name("step", name)
        if self._sealed:
            raise _too_late(f"step {name!r} of saga {self.name!r}")
        if name in self._steps:
            raise DefinitionError(f"saga {self.name!r} has a step {name!r} already; give each step a name of its own")
        step = Step(
            self.name,
            name,
            invoke,
            compensate=compensate,
            on_child_failure=on_child_failure,
            on_child_rollback_failure=on_child_rollback_failure,
            retry=retry,
            compensate_retry=compensate_retry,
        )
        self._steps[name] = step
        self._after = None
        return step

    def get(self, name: str) -> Step | None:
        """Return the step of this name, if the saga has it."""
        return self._steps.get(name)

    def after(self, name: str) -> str | None:
        """Return the name of the step that follows `name` in order, None after the last one."""
        if self._after is None:
            names = list(self._steps)
            self._after = dict(itertools.pairwise(names))
        return self._after.get(name)

    @property
    def first(self) -> str:
        """The name of the first step."""
        return next(iter(self._steps))

    def check(self) -> None:
        """Refuse a saga that cannot run.

        Raises:
            DefinitionError: it has no steps.
        """
        if not self._steps:
            raise DefinitionError(f"saga {self.name!r} has no steps: declare one with @{self.name}.step or add_step()")


def _too_late(what: str) -> DefinitionError:
    return DefinitionError(
        f"{what} is declared too late: this process executes the saga already, and runs under way would not know "
        "of it. Declare everything before app.running() begins, where the module is imported"
    )


def _formerly(name: str, formerly: Iterable[str]) -> tuple[str, ...]:
    if isinstance(formerly, str):
        raise DefinitionError(f"saga {name!r}: formerly={formerly!r} is one name: write formerly=[{formerly!r}]")
    names = tuple(dict.fromkeys(checked_name("saga", former) for former in formerly))
    if name in names:
        raise DefinitionError(f"saga {name!r} was not called {name!r} formerly: leave its own name out")
    return names


def _name_of(callback: Callback) -> str:
    while isinstance(callback, functools.partial):
        callback = callback.func
    name = getattr(callback, "__name__", None)
    if name is None or name == "<lambda>":
        raise DefinitionError(f"{callback!r} has no name of its own: give the step one, as in @saga.step('name')")
    return str(name)
