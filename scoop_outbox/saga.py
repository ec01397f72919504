"""Sagas: what a user declares. Named steps, each one transaction, and what undoes them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Generic, Literal, Protocol, TypeAlias, TypedDict, Unpack, get_args, overload

from scoop_outbox._deadlines import Timeouts
from scoop_outbox._generics import Params, R, T
from scoop_outbox._options import Options, StepOptions
from scoop_outbox._retention import SagaRetention
from scoop_outbox._sleep import Duration, PointInTime, sleeping_for, sleeping_until
from scoop_outbox.errors import DefinitionError
from scoop_outbox.message import Topic, checked_name, topic_name
from scoop_outbox.policy import COMPENSATION, ONCE, Retry
from scoop_outbox.step import (
    AsyncStep,
    BlockingStep,
    Callback,
    Compensation,
    FailureHandler,
    Finaliser,
    Step,
    StepCallback,
    too_late,
)
from scoop_outbox.strategy import Strategy

AfterFailure: TypeAlias = Literal["stop", "continue"]
"""What a rollback does when something cannot be undone."""


class SagaOptions(TypedDict, total=False):
    """What a saga says about its runs; each may be left out.

    Attributes:
        ordered: `"key"` begins with a message when the one of the same key before it has ended: see the guide.
        version: tells this version of the saga from others that are deployed at the same time; unless given, its
            steps in order do. A run goes on in the version in which it began, while a worker has that.
        formerly: names that the saga had before. What is subscribed, waited for and under way under them is taken
            over when the service starts; leave them there as long as something of the old name may be undone.
        shield: its runs never give up: whoever cancels them, or what is above them, waits for their end. What they
            have done is rolled back afterwards if their parent has given up.
        timeout: seconds within which a run, with all below it, has to commit, from when its message is taken in;
            or it gives up.
        rollback_timeout: seconds that a rollback of a run, with all below it, may take; or it is `rollback_failed`.
        rollback_failure: `"stop"` undoes nothing that came before what cannot be undone, for it may rely on that.
            `"continue"` rolls back all the rest, children and earlier executions; then the run is
            `rollback_failed`, with all that could not be undone.
        strategy: when its runs begin, whom they wait for, and when they give up; see `Strategy`.
        retention: how long a hierarchy is kept whose first message it handles, in seconds or as a `timedelta`, from
            when all of it has ended; until then it can be undone. Unless given, as whoever prunes says. If several
            sagas handle that message, the longest counts.
        retain_payload: likewise, how long what the hierarchy's messages, contexts and results hold is kept; after
            that it can be looked at, and not undone.
    """

    ordered: Literal["key"] | None
    version: str | None
    formerly: Iterable[str]
    shield: bool
    timeout: float | timedelta | None
    rollback_timeout: float | timedelta | None
    rollback_failure: AfterFailure
    strategy: Strategy | None
    retention: float | timedelta | None
    retain_payload: float | timedelta | None


class StepDecorator(Protocol[T]):
    """What `Saga.step` returns when it is called with a name or with options."""

    @overload
    def __call__(self, invoke: BlockingStep[T, Params, R], /) -> Step[T, Params, R]: ...
    @overload
    def __call__(self, invoke: AsyncStep[T, Params, R], /) -> Step[T, Params, R]: ...


class Saga(Generic[T]):
    """A message handler: a name, a topic, and ordered named steps.

    Made by `Scoop.saga`.
    """

    def __init__(
        self,
        name: str,
        on: str | Topic[T],
        *,
        ordered: Literal["key"] | None = None,
        version: str | None = None,
        formerly: Iterable[str] = (),
        shield: bool = False,
        timeout: float | timedelta | None = None,
        rollback_timeout: float | timedelta | None = None,
        strategy: Strategy | None = None,
        rollback_failure: AfterFailure = "stop",
        retention: float | timedelta | None = None,
        retain_payload: float | timedelta | None = None,
    ) -> None:
        """See `Scoop.saga` and `SagaOptions`."""
        self.name = checked_name("saga", name)
        self.version = None if version is None else checked_name("version", version)
        self.formerly = _formerly(name, formerly)
        if ordered not in (None, "key"):
            raise DefinitionError(
                f"saga {name!r}: ordered={ordered!r} is unknown; ordered='key' executes the messages of a key one "
                "after the other, and without it they are executed side by side"
            )
        self.ordered = ordered
        self.shield = shield
        self.timeouts = Timeouts.of(timeout, None, rollback_timeout)
        if rollback_failure not in get_args(AfterFailure):
            raise DefinitionError(
                f"saga {name!r}: rollback_failure={rollback_failure!r} is unknown; 'stop' undoes nothing that came "
                "before what cannot be undone, and 'continue' undoes the rest all the same"
            )
        self.rollback_failure = rollback_failure
        self.strategy = _checked_strategy(name, strategy)
        self.retention = SagaRetention.of(retention, retain_payload)
        self._on: Topic[T] | str = on if isinstance(on, Topic) else topic_name(on)
        self._steps: dict[str, Step[T]] = {}
        self._after: dict[str, str] | None = None

    def __repr__(self) -> str:
        """Show name, topic and steps."""
        return f"<saga {self.name!r} on {self.topic!r}: {', '.join(map(repr, self._steps)) or 'no steps'}>"

    @property
    def topic(self) -> str:
        """The name of the topic that it listens on."""
        return self._on.name if isinstance(self._on, Topic) else self._on

    @property
    def schema(self) -> Topic[T] | None:
        """The type of its messages, if its topic has one."""
        return self._on if isinstance(self._on, Topic) else None

    @property
    def sealed(self) -> bool:
        """Whether this process executes the saga as it is, so that nothing can be declared on it."""
        return any(step.sealed for step in self._steps.values())

    @sealed.setter
    def sealed(self, sealed: bool) -> None:
        for step in self._steps.values():
            step.sealed = sealed

    @property
    def steps(self) -> tuple[Step[T], ...]:
        """The steps in order."""
        return tuple(self._steps.values())

    @overload
    def step(self, name: BlockingStep[T, Params, R], /) -> Step[T, Params, R]: ...
    @overload
    def step(self, name: AsyncStep[T, Params, R], /) -> Step[T, Params, R]: ...
    @overload
    def step(
        self,
        name: str | None = None,
        /,
        *,
        retry: Retry = ONCE,
        compensate_retry: Retry = COMPENSATION,
        **options: Unpack[StepOptions],
    ) -> StepDecorator[T]: ...
    def step(
        self,
        name: str | Callback | None = None,
        /,
        *,
        retry: Retry = ONCE,
        compensate_retry: Retry = COMPENSATION,
        **options: Unpack[StepOptions],
    ) -> Step[T] | Callable[[Callback], Step[T]]:
        """Declare the next step with a decorator: bare, with a name, or with options.

        Args:
            name: the step's name; the function's own name unless given.
            retry: how often the step is tried before the run rolls back; once unless given.
            compensate_retry: how often its compensation is tried before the run is `rollback_failed`.
            options: see `StepOptions`.

        Returns:
            The step, on which `compensate`, `on_child_failure` and the like are decorators in turn.

        Raises:
            DefinitionError: the name is taken or cannot be used, or the function cannot be called with
                `(scope, message)`.
        """
        if name is not None and not isinstance(name, str):
            return self.add_step(_name_of(name), name)

        def declare(invoke: Callback) -> Step[T]:
            return self.add_step(
                _name_of(invoke) if name is None else name,
                invoke,
                retry=retry,
                compensate_retry=compensate_retry,
                **options,
            )

        return declare

    def add_step(
        self,
        name: str,
        invoke: StepCallback[T],
        *,
        compensate: Compensation[T] | None = None,
        on_child_failure: FailureHandler[T] | None = None,
        on_child_rollback_failure: Compensation[T] | None = None,
        finally_: Finaliser[T] | None = None,
        retry: Retry = ONCE,
        compensate_retry: Retry = COMPENSATION,
        **options: Unpack[StepOptions],
    ) -> Step[T]:
        """Declare the next step without decorators.

        Args:
            name: unique within the saga. It is stored with runs under way: renaming a step strands them.
            invoke: `(scope, message)`, a `def` or an `async def`; returns None, `Repeat()` or `GoTo(name)`.
            compensate: see `Step.compensate`.
            on_child_failure: see `Step.on_child_failure`.
            on_child_rollback_failure: see `Step.on_child_rollback_failure`.
            finally_: see `Step.finally_`.
            retry: how often the step is tried before the run rolls back.
            compensate_retry: how often the compensation is tried before the run is `rollback_failed`.
            options: see `StepOptions`.

        Raises:
            DefinitionError: the name is taken or cannot be used, or a callback cannot be called as it will be; or the
                saga is being executed.
        """
        checked_name("step", name)
        if self.sealed:
            raise too_late(f"step {name!r} of saga {self.name!r}")
        if name in self._steps:
            raise DefinitionError(f"saga {self.name!r} has a step {name!r} already; give each step a name of its own")
        step: Step[T] = Step(
            self.name,
            name,
            invoke,
            compensate=compensate,
            on_child_failure=on_child_failure,
            on_child_rollback_failure=on_child_rollback_failure,
            finally_=finally_,
            retry=retry,
            compensate_retry=compensate_retry,
            options=Options.of(options),
        )
        self._steps[name] = step
        self._after = None
        return step

    def sleep(self, name: str, duration: Duration[T]) -> Step[T]:
        """Declare a step that sleeps: the next one is executed when so much time has passed, by the database's clock.

        It sleeps from when this step begins. A run that sleeps holds no connection, no thread and no slot, and survives
        restarts. Whoever cancels it wakes it, and so do deadlines, and failures of what the step has launched.

        Args:
            name: of the step.
            duration: in seconds or as a `timedelta`; or a callback of a step, `(scope, message)`, that returns one. Of
                less than 0 it is 0, of more than a hundred years a hundred.

        Raises:
            DefinitionError: it is no time, or as `add_step` says.
        """
        return self.add_step(name, sleeping_for(f"step {name!r} of saga {self.name!r}", duration))

    def sleep_until(self, name: str, at: PointInTime[T]) -> Step[T]:
        """Declare a step that sleeps until a point in time, or not at all if that is over: see `sleep`.

        Args:
            name: of the step.
            at: with a time zone; or a callback of a step, `(scope, message)`, that returns one.

        Raises:
            DefinitionError: it has no time zone, or as `add_step` says.
        """
        return self.add_step(name, sleeping_until(f"step {name!r} of saga {self.name!r}", at))

    def get(self, name: str) -> Step[T] | None:
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


def _checked_strategy(name: str, strategy: object) -> Strategy | None:
    """Return the strategy of a saga, if it has one of its own: then more is read whenever its runs are looked at."""
    if strategy is None or type(strategy) is Strategy:
        return None
    if not isinstance(strategy, Strategy):
        raise DefinitionError(f"saga {name!r}: strategy={strategy!r} is no Strategy; derive its class from Strategy")
    return strategy


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
