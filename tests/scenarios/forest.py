"""Forests: services of random sagas, with every kind of callback. All follows from a seed."""

import asyncio
import contextlib
import itertools
import random
import threading
import uuid
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg

from scoop_outbox import DistributedError, Handle, Repeat, Retry, RunStatus, Saga, Scoop, StepKind, StepStatus
from scoop_outbox.app import service_of
from scoop_outbox.saga import AfterFailure
from tests.scenarios.healing import ROLLBACK_FAILED
from tests.scenarios.shop import LONG, Body, callback
from tests.waiting import until

STEP, HANDLER, COMPENSATION, FINALISER = StepKind
TOPICS = ("tree", "shrub", "branch", "twig", "leaf", "moss")
"""Each has a saga of its name; twigs have two."""
BELOW = {"tree": ("branch", "twig"), "shrub": ("twig", "leaf"), "branch": ("leaf", "twig"), "twig": ("leaf",)}
"""What steps and handlers on a topic launch. Finalisers launch moss, which nothing but a rollback can harm."""
ROOTS = ("tree", "shrub")
Asked = set[tuple[uuid.UUID, str]]
"""The ids of what is to be undone, with the `if_active` of each request."""


@dataclass(frozen=True)
class Habits:
    """How likely things go wrong in a forest.

    Attributes:
        fails: steps and handlers, and whether finalisers do, the first time.
        undo_fails: how often a compensation fails at most.
    """

    fails: float
    undo_fails: int


class Forest:
    """A service of random sagas.

    Args:
        database: where its runs are, and what they have written.
        seed: everything but the moments follows from it.
        habits: how likely things go wrong.
    """

    def __init__(self, database: str, seed: int, habits: Habits) -> None:
        self.dice = random.Random(seed)
        self.calls: Counter[tuple[Any, ...]] = Counter()
        self._seed, self._habits = seed, habits
        self._name = f"{uuid.uuid4()}"
        self.app = Scoop(self._name, database=database)
        self._colours = itertools.cycle(("async", "blocking"))
        self._lock = threading.Lock()
        for topic in TOPICS:
            for name in ("twig a", "twig b") if topic == "twig" else (topic,):
                self._declare(topic, name)

    def _declare(self, topic: str, name: str) -> None:
        draw, calm = self.dice, topic == "moss"
        stuck: AfterFailure = draw.choice(("stop", "stop", "continue"))
        saga = self.app.saga(name, on=f"{self._name} {topic}", shield=draw.random() < 0.1, rollback_failure=stuck)
        for number in map(str, range(1 if calm else draw.randint(1, 4))):
            if calm or draw.random() < 0.8:
                self._add_step(saga, topic, number, calm=calm)
            else:
                saga.sleep(number, callback(next(self._colours), self._sleeping(topic, number, draw.uniform(0, 0.02))))

    def _add_step(self, saga: Saga, topic: str, name: str, *, calm: bool) -> None:
        draw = self.dice

        def act(kind: StepKind, likely: float) -> Any:
            given = draw.random() < likely
            body = self._body(topic, name, kind, fails=0 if calm else draw.choice((0, 0.5, 1)) * self._habits.fails)
            return callback(next(self._colours), body) if given else None

        saga.add_step(
            name,
            act(STEP, 1),
            compensate=act(COMPENSATION, 0.8),
            on_child_failure=act(HANDLER, 0.5),
            finally_=act(FINALISER, 0.7),
            retry=Retry(attempts=draw.randint(1, 3), backoff=0.002),
            # A finaliser fails once: it never gets a run stuck.
            compensate_retry=Retry(attempts=draw.randint(2, 3), backoff=0.002),
            shield=draw.random() < 0.15,
            complete_on_give_up=draw.random() < 0.15,
            fail_fast=draw.random() < 0.3,
            rollback_children=draw.choice(("together", "reverse")),
        )

    def _body(self, topic: str, step: str, kind: StepKind, fails: float) -> Body:
        """Make what every callback does: it writes that it was called, launches, fails or wants to be repeated."""

        def body(scope: Any, message: Any, *__: object) -> Generator[Any, None, Repeat | None]:
            here = f"{self._seed} {message.payload} {step} {kind} {scope.iteration}"
            call = self._count(scope.run_id, step, kind, scope.iteration)
            dice = random.Random(f"{here} {call}")
            mark = (scope.run_id, step, str(kind), scope.iteration)
            yield scope.connection.execute("insert into effect values (%s, %s, %s, %s)", mark)
            self._launch(scope, topic, kind, dice, f"{here} {call}")
            for _ in range(dice.choice((0, 0, 2, 20))):
                yield scope.connection.execute("select")
            if kind is STEP and dice.random() < 0.3:
                yield scope.checkpoint()
            if self._is_unlucky(kind, dice, here, call, fails):
                if dice.random() < 0.2:
                    yield scope.connection.execute("select nothing")
                raise RuntimeError(f"unlucky {here}")
            return Repeat() if kind is STEP and scope.iteration < 2 and dice.random() < 0.15 else None

        return body

    def _sleeping(self, topic: str, step: str, seconds: float) -> Body:
        body = self._body(topic, step, STEP, fails=0)

        def sleep(scope: Any, message: Any) -> Generator[Any, None, float]:
            yield from body(scope, message)
            return seconds

        return sleep

    def _count(self, *call: Any) -> int:
        """How often this was called before."""
        with self._lock:
            self.calls[call] += 1
            return self.calls[call] - 1

    def _is_unlucky(self, kind: StepKind, dice: random.Random, here: str, call: int, fails: float) -> bool:
        if kind is COMPENSATION:
            return call < max(0, random.Random(here).randint(-2, self._habits.undo_fails))
        return dice.random() < fails and (kind is not FINALISER or call == 0)

    def _launch(self, scope: Any, topic: str, kind: StepKind, dice: random.Random, here: str) -> None:
        if kind is COMPENSATION:
            return
        if kind is FINALISER:
            if topic != "moss" and dice.random() < 0.3:
                scope.launch(f"{self._name} moss", here)
            return
        for number, below in enumerate(BELOW.get(topic, ())):
            if dice.random() < 0.45:
                late = self._habits.fails and dice.random() < 0.1
                scope.launch(f"{self._name} {below}", f"{here} {number}", timeout=0.05 if late else None)

    async def launch(self, number: int, **options: Any) -> Handle:
        """Launch a tree."""
        return await self.app.launch(f"{self._name} {ROOTS[number % 2]}", number, **options)

    async def some_time(self, handle: Handle, calls: int) -> None:
        """Return when so many more callbacks were called, or a tree has ended."""
        calls, waiting = calls + self.calls.total(), asyncio.create_task(ended(handle))
        await until(lambda: self.calls.total() >= calls or waiting.done(), LONG, 0.001)
        waiting.cancel()

    async def is_healed(self, handle: Handle, dice: random.Random) -> bool:
        """Retry or skip what is stuck in a tree; whether nothing was, and all of it has ended."""
        status = await self.app.status(handle.id)
        stuck = [run for run in status.runs if run.state is ROLLBACK_FAILED]
        for run in stuck:
            await (self.app.skip if dice.random() < 0.25 else self.app.retry)(run.id)
        return not stuck and status.ended

    async def refused(self, asked: Asked) -> Sequence[uuid.UUID]:
        """What was to be undone later, and was refused then, for something below was stuck."""
        found = await self.ask(
            "select target from scoop_outbox.request where kind = 'rollback' and target = any(%s) "
            "group by target having bool_and(coalesce(outcome, '') like 'refused%%')",
            [target for target, _ in asked],
        )
        return [target for (target,) in found]

    async def ask(self, statement: LiteralString, *params: object) -> list[tuple[Any, ...]]:
        """Do as `Shop.ask`."""
        async with await psycopg.AsyncConnection.connect(service_of(self.app).home.url) as connection:
            return await (await connection.execute(statement, params)).fetchall()

    def declares(self, run: RunStatus, step: StepStatus, kind: StepKind) -> bool:
        """Whether the step of an execution has a compensation, or a finaliser."""
        found = self.app.sagas[run.saga].steps[int(step.step)]
        return (found.compensation if kind is COMPENSATION else found.finaliser) is not None


async def ended(handle: Handle) -> None:
    """Wait until a tree has ended, one way or the other."""
    with contextlib.suppress(DistributedError, ExceptionGroup):
        await handle.wait(2 * LONG)
