"""What scenarios are written with: a service whose sagas note in a journal what they do, in any colour."""

import asyncio
import inspect
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from scoop_outbox import (
    DistributedError,
    Handle,
    Retry,
    RunState,
    RunStatus,
    Saga,
    Scoop,
    Status,
    Step,
    UnknownMessage,
)
from scoop_outbox.app import service_of
from scoop_outbox.daemon.daemons import Daemons
from tests.carriers import Carrier
from tests.scenarios.scattered import Scattered
from tests.waiting import until, until_blocking

COLOURS = ("async", "blocking", "mixed")
LONG = 20.0
"""Seconds within which whatever a test waits for has happened, also on a machine that is busy."""

Body = Callable[..., Any]


class Journal:
    """What was called, in order: `root-0` is a step, `root-rb0` its compensation, `root-hcf0` its failure handler."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[str] = []

    def __call__(self, entry: str) -> None:
        with self._lock:
            self._entries.append(entry)

    def __eq__(self, other: object) -> bool:
        return self.entries == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self.entries)

    @property
    def entries(self) -> list[str]:
        with self._lock:
            return list(self._entries)

    def of(self, *sagas: str) -> list[str]:
        """What sagas of these names did: a projection."""
        return [entry for entry in self.entries if entry.split("-")[0] in sagas]

    def count(self, entry: str) -> int:
        return self.entries.count(entry)


class Gate:
    """The body of a step that is held back until the test lets it go."""

    def __init__(self) -> None:
        self.entered = False
        self.open = False

    def __call__(self, *_: object) -> Any:
        self.entered = True
        yield lambda: self.open


def order(journal: Journal, *expected: str) -> None:
    """Assert that each of these was called exactly once, in this order; whatever else was called does not matter."""
    assert [entry for entry in journal.entries if entry in expected] == list(expected)


def callback(colour: str, body: Body) -> Body:
    """Make a callback of a colour out of a body that is the same for both.

    A body that is a generator may wait: what it yields is awaited in an `async def`; a condition (anything callable)
    is waited for; any other value is handed back, as a blocking call has its result already.
    """
    if colour == "async":

        async def asynchronous(scope: Any, message: Any, *error: BaseException) -> Any:
            result = body(scope, message, *error)
            if not inspect.isgenerator(result):
                return result
            return await _drive(result)

        return asynchronous

    def blocking(scope: Any, message: Any, *error: BaseException) -> Any:
        result = body(scope, message, *error)
        if not inspect.isgenerator(result):
            return result
        return _drive_blocking(result)

    return blocking


async def _drive(generator: Iterator[Any]) -> Any:
    send, value = generator.send, None  # type: ignore[attr-defined]
    while True:
        try:
            asked = send(value)
        except StopIteration as done:
            return done.value
        send, value = generator.send, None  # type: ignore[attr-defined]
        try:
            if inspect.isawaitable(asked):
                value = await asked
            elif callable(asked):
                await until(asked, LONG, 0.002)
            else:
                value = asked
        except BaseException as error:  # noqa: BLE001 - the body shall see it where it waits
            send, value = generator.throw, error  # type: ignore[attr-defined]


def _drive_blocking(generator: Iterator[Any]) -> Any:
    value = None
    while True:
        try:
            asked = generator.send(value)  # type: ignore[attr-defined]
        except StopIteration as done:
            return done.value
        value = None
        if callable(asked):
            until_blocking(asked, LONG, 0.002)
        else:
            value = asked


class Shop:
    """A service, and a journal of what its sagas do.

    Args:
        app: the service.
        journal: may be shared by several services.
        colour: `async`, `blocking`, or `mixed`: each callback the other colour than the one declared before.
    """

    def __init__(self, app: Scoop, journal: Journal, colour: str) -> None:
        self.app = app
        self.journal = journal
        self.colours = itertools.cycle(("async", "blocking") if colour == "mixed" else (colour,))

    @property
    def homes(self) -> Sequence[Scoop]:
        """The services of which it is made, each with a database of its own: more than one if it is scattered."""
        return self.app.homes if isinstance(self.app, Scattered) else [self.app]

    def coloured(self, body: Body) -> Body:
        """`body` as a callback of the colour whose turn it is."""
        return callback(next(self.colours), body)

    def saga(self, name: str, on: str, *bodies: Body | None) -> Saga:
        """Declare a saga whose steps are called 0, 1, ...; None is a step that only notes that it ran."""
        saga = self.app.saga(name, on=on)
        for number, body in enumerate(bodies):
            self.step(saga, str(number), body)
        return saga

    def step(
        self,
        saga: Saga,
        name: str,
        body: Body | None = None,
        *,
        compensate: Body | bool = True,
        on_child_failure: Body | bool = False,
        on_child_rollback_failure: Body | bool = False,
        finally_: Body | bool = False,
        retry: Retry | None = None,
        compensate_retry: Retry | None = None,
        **options: Any,
    ) -> Step:
        """Declare a step; every callback notes in the journal that it was called, then does what its body says.

        Args:
            saga: where to add it.
            name: of the step.
            body: `(scope, message)`; see `callback`.
            compensate: `(scope, message, error)`; True only notes, False declares none.
            on_child_failure: likewise; True notes and re-raises.
            on_child_rollback_failure: likewise; True notes and re-raises.
            finally_: `(scope, message)`; True only notes.
            retry: of the step.
            compensate_retry: of the compensation; a single attempt unless given.
            options: of `Saga.add_step`, as they are.
        """

        def noted(kind: str, given: Body | bool | None, otherwise: Body) -> Body | None:
            if given is False:
                return None
            do = given if callable(given) else otherwise

            def noting(*arguments: Any) -> Any:
                self.journal(f"{saga.name}-{kind}{name}")
                return do(*arguments)

            return self.coloured(noting)

        invoke = noted("", body, nothing)
        assert invoke is not None
        return saga.add_step(
            name,
            invoke,
            compensate=noted("rb", compensate, nothing),
            on_child_failure=noted("hcf", on_child_failure, reraises),
            on_child_rollback_failure=noted("hcrf", on_child_rollback_failure, reraises),
            finally_=noted("fin", finally_, nothing),
            retry=retry or Retry(attempts=1),
            compensate_retry=compensate_retry or Retry(attempts=1),
            **options,
        )

    @asynccontextmanager
    async def running(self, **options: Any) -> AsyncIterator[Daemons]:
        """As `Scoop.running`."""
        async with self.app.running(**options) as daemons:
            yield daemons

    async def run(self, topic: str, payload: Any = None, **options: Any) -> Handle:
        """Launch a message while the service runs just for it, and wait until it has been handled."""
        async with self.running():
            handle = await self.app.launch(topic, payload, **options)
            await handle.wait(LONG)
        return handle

    async def fail(self, topic: str, payload: Any = None, **options: Any) -> tuple[Handle, DistributedError]:
        """Do as `run` with a message whose only saga fails, and return how it did."""
        async with self.running():
            handle = await self.app.launch(topic, payload, **options)
            with pytest.raises(DistributedError) as caught:
                await handle.wait(LONG)
            # The failure is told when the root has ended: nothing below it is under way any more.
            assert (await self.app.status(handle.id)).ended
        return handle, caught.value

    async def ask(self, statement: str, *params: object) -> list[tuple[Any, ...]]:
        """Ask the service's database something; of a service that is scattered all of them, that of `app` first."""
        found: list[tuple[Any, ...]] = []
        for home in self.homes:
            async with await psycopg.AsyncConnection.connect(service_of(home).home.url) as connection:
                found += await (await connection.execute(statement, params)).fetchall()
        return found

    async def execute(self, statement: str, *values: object, **named: object) -> None:
        """Change something in the service's database, or in all of them."""
        for home in self.homes:
            async with await psycopg.AsyncConnection.connect(service_of(home).home.url) as connection:
                await connection.execute(statement.encode(), named or values)

    async def status(self, handle: Handle) -> Status:
        return await self.app.status(handle.id)

    async def runs(self, handle: Handle, saga: str | None = None) -> list[RunStatus]:
        """The runs of a hierarchy, or those of one saga."""
        return [run for run in (await self.status(handle)).runs if saga is None or run.saga == saga]

    async def only(self, handle: Handle, saga: str) -> RunStatus:
        """The one run that a saga has in a hierarchy."""
        (run,) = await self.runs(handle, saga)
        return run

    async def states(self, handle: Handle) -> dict[str, RunState | list[RunState]]:
        """The state of each saga's run; a list where a saga has several."""
        found: dict[str, list[RunState]] = {}
        for run in await self.runs(handle):
            found.setdefault(run.saga, []).append(run.state)
        return {saga: states[0] if len(states) == 1 else states for saga, states in found.items()}


async def events(app: Scoop, handle: Handle, *sagas: str) -> list[str]:
    """What was recorded of a hierarchy (or of some of its sagas), in order, each as `saga step kind state`."""
    steps = [(step, run.saga) for run in (await app.status(handle.id)).runs for step in run.steps]
    steps.sort(key=lambda pair: (pair[0].ended_at, pair[0].seq))
    return [f"{saga} {step.step} {step.kind} {step.state}" for step, saga in steps if not sagas or saga in sagas]


def nothing(*_: object) -> None:
    """The body of a callback that does nothing."""


def reraises(_: Any, __: Any, error: BaseException) -> None:
    """The body of a failure handler that does not handle."""
    raise error


def raises(text: str = "boom", kind: type[BaseException] = RuntimeError) -> Body:
    """The body of a callback that fails."""

    def body(*_: object) -> None:
        raise kind(text)

    return body


def fails_when(condition: Callable[[], object]) -> Body:
    """The body of a callback that fails once a condition holds."""

    def body(*_: object) -> Iterator[Any]:
        yield condition
        raise RuntimeError("no")

    return body


def launches(*topics: str, payload: Any = None, **options: Any) -> Body:
    """The body of a callback that launches a message on each of these topics."""

    def body(scope: Any, *_: object) -> None:
        for topic in topics:
            scope.launch(topic, payload, **options)

    return body


def seconds(duration: float | timedelta) -> float:
    """A duration in seconds."""
    return duration.total_seconds() if isinstance(duration, timedelta) else duration


async def announced(shop: Shop, **topics: str) -> Shop:
    """Declare sagas of one step, each on its topic, and announce the service: it is waited for before it ever runs."""
    for saga, topic in topics.items():
        shop.saga(saga, topic, None)
    await shop.app.announce()
    return shop


async def together(*coroutines: Any) -> list[Any]:
    """Run coroutines at the same time and return their results."""
    return list(await asyncio.gather(*coroutines))


@asynccontextmanager
async def with_a_message_on_its_way(shop: Shop, carrier: Carrier) -> AsyncIterator[Handle]:
    """Run a service whose root, on topic R, has launched a message in step 0 that nobody has taken in."""
    if carrier.url is not None:  # it is at the broker
        async with shop.running():
            handle = await shop.app.launch("R", None)
            await until(lambda: _has_committed_a_step(shop), LONG)
            yield handle
        return
    async with shop.running(worker=False):  # it is in the outbox
        handle = await shop.app.launch("R", None)
        await until(lambda: _is_taken_in(shop, handle), LONG)
    async with shop.running(relay=False):
        await until(lambda: _has_committed_a_step(shop), LONG)
        yield handle


async def _has_committed_a_step(shop: Shop) -> bool:
    """Tell what the journal cannot: it is written to by the callback, before anybody else sees what that has done."""
    return bool(await shop.ask("select from scoop_outbox.step"))


async def _is_taken_in(shop: Shop, handle: Handle) -> bool:
    try:
        return bool(await shop.runs(handle))
    except UnknownMessage:
        return False
