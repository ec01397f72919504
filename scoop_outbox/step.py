"""Steps: a callback of a saga, what undoes it, and what handles the failures below it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, overload

from scoop_outbox._generics import A_co, P, Params, R, R_co, T, T_contra
from scoop_outbox._options import DEFAULT_OPTIONS, Options
from scoop_outbox.errors import DefinitionError
from scoop_outbox.failure import DistributedError
from scoop_outbox.message import Message, checked_name
from scoop_outbox.policy import COMPENSATION, ONCE, Retry
from scoop_outbox.scope import AsyncScope, BlockingScope

Callback = Callable[..., Any]


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


Next: TypeAlias = Repeat | GoTo | None
"""What a step may return, and what handles the failure of its children."""

StepCallback: TypeAlias = (
    Callable[[BlockingScope, Message[T]], Next] | Callable[[AsyncScope, Message[T]], Coroutine[Any, Any, Next]]
)
Compensation: TypeAlias = (
    Callable[[BlockingScope, Message[T], DistributedError], None]
    | Callable[[AsyncScope, Message[T], DistributedError], Coroutine[Any, Any, None]]
)
Finaliser: TypeAlias = (
    Callable[[BlockingScope, Message[T]], None] | Callable[[AsyncScope, Message[T]], Coroutine[Any, Any, None]]
)
FailureHandler: TypeAlias = (
    Callable[[BlockingScope, Message[T], DistributedError], Next]
    | Callable[[AsyncScope, Message[T], DistributedError], Coroutine[Any, Any, Next]]
)

# What decorators take. The first signature is how the callback is called, which it has to allow; the second is its own,
# which it keeps. One protocol for each colour, for mypy infers nothing through a union of them.


class BlockingStep(Protocol[T_contra, Params, R_co]):
    """A `def` that is a step on a topic with payloads of type T."""

    @overload
    def __call__(self, scope: BlockingScope, message: Message[T_contra], /) -> Next: ...
    @overload
    def __call__(self, *args: Params.args, **kwargs: Params.kwargs) -> R_co: ...


class AsyncStep(Protocol[T_contra, Params, R_co]):
    """An `async def` that is a step on a topic with payloads of type T."""

    @overload
    def __call__(self, scope: AsyncScope, message: Message[T_contra], /) -> Coroutine[Any, Any, Next]: ...
    @overload
    def __call__(self, *args: Params.args, **kwargs: Params.kwargs) -> R_co: ...


class BlockingHandler(Protocol[T_contra, A_co, Params, R_co]):
    """A `def` that is called for a failure, and answers with A."""

    @overload
    def __call__(self, scope: BlockingScope, message: Message[T_contra], error: DistributedError, /) -> A_co: ...
    @overload
    def __call__(self, *args: Params.args, **kwargs: Params.kwargs) -> R_co: ...


class AsyncHandler(Protocol[T_contra, A_co, Params, R_co]):
    """An `async def` that is called for a failure, and answers with A."""

    @overload
    def __call__(
        self, scope: AsyncScope, message: Message[T_contra], error: DistributedError, /
    ) -> Coroutine[Any, Any, A_co]: ...
    @overload
    def __call__(self, *args: Params.args, **kwargs: Params.kwargs) -> R_co: ...


class BlockingFinaliser(Protocol[T_contra, Params, R_co]):
    """A `def` that is called when a step has been left."""

    @overload
    def __call__(self, scope: BlockingScope, message: Message[T_contra], /) -> None: ...
    @overload
    def __call__(self, *args: Params.args, **kwargs: Params.kwargs) -> R_co: ...


class AsyncFinaliser(Protocol[T_contra, Params, R_co]):
    """An `async def` that is called when a step has been left."""

    @overload
    def __call__(self, scope: AsyncScope, message: Message[T_contra], /) -> Coroutine[Any, Any, None]: ...
    @overload
    def __call__(self, *args: Params.args, **kwargs: Params.kwargs) -> R_co: ...


def is_async(callback: Callback) -> bool:
    """Tell whether calling `callback` gives a coroutine; looks through `partial` and callable objects."""
    while isinstance(callback, functools.partial):
        callback = callback.func
    return inspect.iscoroutinefunction(callback) or inspect.iscoroutinefunction(type(callback).__call__)


def checked_callback(callback: object, what: str, arguments: Sequence[str]) -> Callback:
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


STEP_ARGUMENTS = ("scope", "message")
"""How steps are called, and their finalisers."""
_FAILED = ("scope", "message", "error")


class Step(Generic[T, P, R_co]):
    """One step of a saga: a callback, and what belongs to it.

    Made by `Saga.step` and `Saga.add_step`. Calling it calls the callback, which is handy in tests.
    """

    if not TYPE_CHECKING:  # type variables have no defaults here, and annotations are evaluated

        def __class_getitem__(cls, given: object) -> Any:
            """Do for `Step[Order]` what checkers do: what is not said may be anything."""
            given = given if isinstance(given, tuple) else (given,)
            return super().__class_getitem__((*given, *(..., Any)[len(given) - 1 :]))

    def __init__(
        self,
        saga: str,
        name: str,
        invoke: Callback,
        *,
        compensate: Callback | None = None,
        on_child_failure: Callback | None = None,
        on_child_rollback_failure: Callback | None = None,
        finally_: Callback | None = None,
        retry: Retry = ONCE,
        compensate_retry: Retry = COMPENSATION,
        options: Options = DEFAULT_OPTIONS,
    ) -> None:
        """See `Saga.add_step`."""
        self._of = f"step {name!r} of saga {saga!r}"
        self.sealed = False
        self.name = checked_name("step", name)
        self.invoke = checked_callback(invoke, self._of, STEP_ARGUMENTS)
        self.compensation: Callback | None = None
        self.child_failure_handler: Callback | None = None
        self.child_rollback_failure_handler: Callback | None = None
        self.finaliser: Callback | None = None
        self.retry = _checked_retry(self._of, "retry", retry)
        self.compensate_retry = _checked_retry(self._of, "compensate_retry", compensate_retry)
        self.options = options
        self._check_interrupt()
        if compensate is not None:
            self.compensate(compensate)
        if on_child_failure is not None:
            self.on_child_failure(on_child_failure)
        if on_child_rollback_failure is not None:
            self.on_child_rollback_failure(on_child_rollback_failure)
        if finally_ is not None:
            self.finally_(finally_)

    def _check_interrupt(self) -> None:
        options = self.options
        if options.interrupt and not is_async(self.invoke):
            raise DefinitionError(f"{self._of}: interrupt=True cancels an async def; a def asks scope.checkpoint()")
        if options.interrupt and (options.shield or options.complete_on_give_up):
            raise DefinitionError(f"{self._of}: interrupt=True contradicts shield=True and complete_on_give_up=True")

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the step's callback."""
        result: R_co = self.invoke(*args, **kwargs)
        return result

    def __repr__(self) -> str:
        """Name the step."""
        return f"<{self._of}>"

    @overload
    def compensate(self, callback: BlockingHandler[T, None, Params, R], /) -> Callable[Params, R]: ...
    @overload
    def compensate(self, callback: AsyncHandler[T, None, Params, R], /) -> Callable[Params, R]: ...
    def compensate(self, callback: Callback) -> Callback:
        """Declare what undoes this step once it has committed: `(scope, message, error)`.

        It is called for each committed execution of the step when the run rolls back, in exact reverse order, after
        everything that the execution launched has been rolled back. `error` is what the run rolls back for.

        Raises:
            DefinitionError: there is one already, or it cannot be called with three arguments.
        """
        what = f"the compensation of {self._of}"
        self.compensation = self._set(self.compensation, checked_callback(callback, what, _FAILED), what)
        return callback

    @overload
    def on_child_failure(self, callback: BlockingHandler[T, Next, Params, R], /) -> Callable[Params, R]: ...
    @overload
    def on_child_failure(self, callback: AsyncHandler[T, Next, Params, R], /) -> Callable[Params, R]: ...
    def on_child_failure(self, callback: Callback) -> Callback:
        """Declare what handles failures of messages launched by this step: `(scope, message, error)`.

        It is called once, after all children of the execution have ended, with every failure in `error.causes`.
        Returning normally means handled: the run goes on (after the children of whatever was launched here).
        Raising rolls the run back, beginning with this step; that is also what happens without a handler.

        Raises:
            DefinitionError: there is one already, or it cannot be called with three arguments.
        """
        what = f"the child-failure handler of {self._of}"
        handler = checked_callback(callback, what, _FAILED)
        self.child_failure_handler = self._set(self.child_failure_handler, handler, what)
        return callback

    @overload
    def on_child_rollback_failure(self, callback: BlockingHandler[T, None, Params, R], /) -> Callable[Params, R]: ...
    @overload
    def on_child_rollback_failure(self, callback: AsyncHandler[T, None, Params, R], /) -> Callable[Params, R]: ...
    def on_child_rollback_failure(self, callback: Callback) -> Callback:
        """Declare what handles a child that could not be rolled back: `(scope, message, error)`.

        Returning normally counts the child as compensated, and the rollback goes on. Raising, which is also what
        happens without a handler, makes this run `rollback_failed`.

        Raises:
            DefinitionError: there is one already, or it cannot be called with three arguments.
        """
        what = f"the child-rollback-failure handler of {self._of}"
        handler = checked_callback(callback, what, _FAILED)
        self.child_rollback_failure_handler = self._set(self.child_rollback_failure_handler, handler, what)
        return callback

    @overload
    def finally_(self, callback: BlockingFinaliser[T, Params, R], /) -> Callable[Params, R]: ...
    @overload
    def finally_(self, callback: AsyncFinaliser[T, Params, R], /) -> Callable[Params, R]: ...
    def finally_(self, callback: Callback) -> Callback:
        """Declare what is called however this step is left, its finaliser: `(scope, message)`.

        Each execution of the step that commits, fails or is discarded has exactly one committed execution of it: after
        everything that the execution launched has ended and its failures were handled, before the next step, the next
        attempt, and anything is compensated. What it launches is waited for, and neither cancelled nor late.

        When it raises, the step has failed, and may be tried again as `retry` says. Once the run rolls back, it is
        called before anything else, and tried as often as `compensate_retry` says.

        Raises:
            DefinitionError: there is one already, it cannot be called with two arguments, or it is to share the
                transaction of a step of the other colour.
        """
        what = f"the finaliser of {self._of}"
        checked = checked_callback(callback, what, STEP_ARGUMENTS)
        if self.options.finally_transaction == "step" and is_async(checked) is not is_async(self.invoke):
            raise DefinitionError(
                f"{what} is called in the transaction of the step: make both a def, or both an async def; or leave "
                "finally_transaction='step' out"
            )
        self.finaliser = self._set(self.finaliser, checked, what)
        return callback

    def _set(self, present: Callback | None, callback: Callback, what: str) -> Callback:
        if self.sealed:
            raise too_late(what)
        if present is not None:
            raise DefinitionError(f"{what} is declared twice: {present!r} and {callback!r}; keep one")
        return callback

    @property
    def callbacks(self) -> tuple[Callback, ...]:
        """Every callback declared on the step."""
        handlers = (self.child_failure_handler, self.child_rollback_failure_handler)
        optional = (self.compensation, *handlers, self.finaliser)
        return (self.invoke, *(callback for callback in optional if callback is not None))


def _checked_retry(of: str, name: str, retry: object) -> Retry:
    if not isinstance(retry, Retry):
        raise DefinitionError(f"{of}: {name}={retry!r} is no policy; write Retry(attempts=...)")
    return retry


def too_late(what: str) -> DefinitionError:
    """Return what is wrong with declaring `what` while this process executes its saga."""
    return DefinitionError(
        f"{what} is declared too late: this process executes the saga already, and runs under way would not know "
        "of it. Declare everything before app.running() begins, where the module is imported"
    )
