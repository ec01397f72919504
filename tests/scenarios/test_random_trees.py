"""Random trees of every kind of callback: cancelled, late, undone and healed at random, they keep what is promised.

What a tree is like follows from its seed alone; when a request meets it does not.
"""

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
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from scoop_outbox import (
    DistributedError,
    Handle,
    Repeat,
    Retry,
    RunStatus,
    Saga,
    Scoop,
    StepKind,
    StepStatus,
    UnknownMessage,
)
from scoop_outbox.app import service_of
from scoop_outbox.daemon.worker import roster
from tests.scenarios.healing import COMMITTED, ROLLBACK_FAILED, ROLLED_BACK
from tests.scenarios.shop import LONG, Body, callback
from tests.waiting import until

STEP, HANDLER, COMPENSATION, FINALISER = StepKind
TOPICS = ("tree", "shrub", "branch", "twig", "leaf", "moss")
"""Each has a saga of its name; twigs have two."""
BELOW = {"tree": ("branch", "twig"), "shrub": ("twig", "leaf"), "branch": ("leaf", "twig"), "twig": ("leaf",)}
"""What steps and handlers on a topic launch. Finalisers launch moss, which nothing but a rollback can harm."""
ROOTS = ("tree", "shrub")
TREES = 12
"""How many hierarchies there are of each seed."""
FEW = settings(
    max_examples=2,
    # A smaller seed is no simpler tree: failing examples are not shrunk.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    # The examples share a database: each leaves nothing behind that concerns the next.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
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
        saga = self.app.saga(
            name,
            on=f"{self._name} {topic}",
            shield=draw.random() < 0.1,
            rollback_failure=draw.choice(("stop", "stop", "continue")),
        )
        for number in range(1 if calm else draw.randint(1, 3)):
            self._add_step(saga, topic, str(number), calm=calm)

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


@pytest.fixture
def database(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database with a table for what callbacks write; workers look for waiting requests more often."""
    monkeypatch.setattr(roster, "EVERY", 0.2)
    with psycopg.connect(database_url) as connection:
        connection.execute("create table effect (run uuid, step text, kind text, iteration int)")
    return database_url


@given(seed=st.integers(0, 2**32 - 1))
@FEW
async def test_promise_11_whatever_ends_a_random_tree_it_ends_with_its_finalisers(database: str, seed: int) -> None:
    forest = Forest(database, seed, Habits(fails=0.4, undo_fails=4))

    async def grow(number: int) -> Sequence[RunStatus]:
        dice = random.Random(f"{seed} {number}")
        handle = await forest.launch(number, timeout=dice.choice((None, None, 0.1, 0.3)))
        if dice.random() < 0.5:
            await forest.some_time(handle, dice.randint(0, 60))
            await forest.app.cancel(handle.id)
        await ended(handle)
        await until(lambda: forest.is_healed(handle, dice), 3 * LONG, 0.05)
        return (await forest.app.status(handle.id)).runs

    async with forest.app.running():
        trees = await asyncio.gather(*map(grow, range(TREES)))

    for runs in trees:
        check(forest, runs)
    await check_effects(forest, trees)


@given(seed=st.integers(0, 2**32 - 1))
@FEW
async def test_q6_what_is_asked_for_of_a_random_tree_is_undone_once_it_is_healed(database: str, seed: int) -> None:
    forest = Forest(database, seed, Habits(fails=0, undo_fails=4))

    async def grow(number: int) -> tuple[Sequence[RunStatus], Asked]:
        dice = random.Random(f"{seed} {number}")
        handle = await forest.launch(number)
        asked: Asked = set()
        if dice.random() < 0.6:
            await ended(handle)
        for _ in range(dice.randint(1, 2)):
            await forest.some_time(handle, dice.randint(0, 60))
            asked |= await undo(forest, handle, dice)
        await ended(handle)

        async def is_undone() -> bool:
            healed = await forest.is_healed(handle, dice)
            for target in await forest.refused(asked) if healed else ():
                await forest.app.rollback(target, if_active="wait")
            runs = (await forest.app.status(handle.id)).runs
            return healed and all(run.state is ROLLED_BACK for run in under(runs, asked))

        await until(is_undone, 3 * LONG, 0.05)
        return (await forest.app.status(handle.id)).runs, asked

    async with forest.app.running():
        trees = await asyncio.gather(*map(grow, range(TREES)))

    assert any(asked for _, asked in trees)
    for runs, asked in trees:
        check(forest, runs)
        # Who cancels a part tells the runs above that it has failed.
        if not any("cancel" in one for one in asked):
            assert {run.state for run in runs if run not in under(runs, asked)} <= {COMMITTED}
    await check_effects(forest, [runs for runs, _ in trees])


async def ended(handle: Handle) -> None:
    """Wait until a tree has ended, one way or the other."""
    with contextlib.suppress(DistributedError, ExceptionGroup):
        await handle.wait(2 * LONG)


async def undo(forest: Forest, handle: Handle, dice: random.Random) -> Asked:
    """Ask for the rollback of a tree or a part of it; what was asked for, and how, unless it was refused."""
    try:
        runs = (await forest.app.status(handle.id)).runs
    except UnknownMessage:  # it has not been taken in yet
        return set()
    target = dice.choice([handle.id, *(run.id for run in runs if run.saga != "moss")])
    if_active: Any = dice.choice(("refuse", "wait", "cancel"))
    answer = await forest.app.rollback(target, if_active=if_active)
    return {(target, if_active)} if answer.fulfils else set()


def under(runs: Sequence[RunStatus], asked: Asked) -> Sequence[RunStatus]:
    """The runs that were to be undone: what finalisers have launched stays if their run gave up."""
    targets, stays = {target for target, _ in asked}, "moss" if any("cancel" in one for one in asked) else None
    return [run for run in runs if targets & {runs[0].message_id, *run.lineage} and run.saga != stays]


def check(forest: Forest, runs: Sequence[RunStatus]) -> None:
    """A tree has ended, and each of its runs as is promised."""
    assert {run.state for run in runs} <= {COMMITTED, ROLLED_BACK}
    for run in runs:
        below = [one for one in runs if run.id in one.lineage[:-1]]
        check_finalisers(forest, run)
        check_rule(run, below)
        check_compensations(forest, run)
        if run.state is ROLLED_BACK:
            check_unwinding(run, below)


def check_finalisers(forest: Forest, run: RunStatus) -> None:
    """Each execution of a step has one committed execution of its finaliser, before whatever is behind it."""
    for place, step in enumerate(run.steps):
        if step.kind is not STEP:
            continue
        behind = run.steps[place + 1 :]
        own = [one for one in behind if (one.kind, one.undoes) == (FINALISER, step.seq) and one.state != "failed"]
        assert len(own) == forest.declares(run, step, FINALISER), story(run)
        if own:
            between = {one.kind for one in behind if one.seq < own[0].seq}
            assert between <= {HANDLER, FINALISER}, story(run)


def check_rule(run: RunStatus, below: Sequence[RunStatus]) -> None:
    """Steps, finalisers and compensations begin when all that was launched before has ended."""
    for step in run.steps:
        before = {one.seq for one in run.steps if one.seq < step.seq}
        for other in caused(run, below, before) if step.kind is not HANDLER else ():
            forward = [one for one in other.steps if one.kind is not COMPENSATION]
            assert all(one.ended_at <= step.started_at for one in forward), story(run, other)


def check_compensations(forest: Forest, run: RunStatus) -> None:
    """What has committed is compensated once, or skipped, in reverse order; nothing else is."""
    committed = [step.seq for step in run.steps if step.kind is STEP and step.state != "failed"]
    undone = [step.undoes for step in run.steps if step.kind is COMPENSATION and step.state == "committed"]
    if run.state is COMMITTED:
        assert not undone, story(run)
        return
    assert {step.state for step in run.steps if step.kind is STEP} <= {"compensated", "failed"}, story(run)
    # One that goes on past what it cannot undo comes back to it.
    if forest.app.sagas[run.saga].rollback_failure == "stop":
        assert undone == sorted(undone, reverse=True), story(run)  # type: ignore[type-var]
    compensated = {step.seq for step in run.steps if step.kind is STEP and forest.declares(run, step, COMPENSATION)}
    expected = compensated.intersection(committed)
    skipped = {action.seq for action in run.actions if action.kind == "skip"}
    assert set(undone) <= expected, story(run)
    assert len(undone) == len(set(undone)), story(run)
    assert expected - set(undone) <= skipped, story(run)


def check_unwinding(run: RunStatus, below: Sequence[RunStatus]) -> None:
    """What steps have launched is undone, and before them."""
    launching = {step.seq for step in run.steps if step.kind in (STEP, HANDLER)}
    states = {one.state for one in below if one.parent == run.id and one.launched_by in launching}
    assert states <= {ROLLED_BACK}, story(run, *below)
    tree = [run, *below]
    if any(action.kind == "skip" for one in tree for action in one.actions):
        return  # Children that count as compensated are healed when their parents are gone.
    handled = any(step.kind is HANDLER and step.state != "failed" for one in tree for step in one.steps)
    if handled and any(one.actions for one in below):
        return  # Likewise children that got stuck on the way forward, which a handler took note of (Q5).
    for step in run.steps:
        for other in caused(run, below, {step.undoes}) if step.kind is COMPENSATION else ():
            assert all(one.ended_at <= step.started_at for one in other.steps), story(run, other)


def caused(run: RunStatus, below: Sequence[RunStatus], launched_by: set[Any]) -> Sequence[RunStatus]:
    """Every run below executions of a run."""
    children = {one.id for one in below if one.parent == run.id and one.launched_by in launched_by}
    return [one for one in below if children.intersection(one.lineage)]


def story(*runs: RunStatus) -> str:
    """What runs have done, for whoever reads that they should not have."""
    lines = []
    for run in runs:
        lines.append(f"{run.saga} {run.id} below {run.parent}, {run.launched_by}: {run.state}, {run.rollback_reason}")
        for step in run.steps:
            times = f"{step.started_at:%M:%S.%f} to {step.ended_at:%M:%S.%f}"
            lines.append(f"  {step.seq} {step.kind} {step.step} {step.state} of {step.undoes}, {times}")
        lines += [f"  {action.kind} {action.seq}" for action in run.actions]
    return "\n".join(lines)


async def check_effects(forest: Forest, trees: Sequence[Sequence[RunStatus]]) -> None:
    """What callbacks have written is there if and only if their execution has committed."""
    runs = [run for runs in trees for run in runs]
    recorded = Counter(
        (run.id, step.step, str(step.kind), step.iteration)
        for run in runs
        for step in run.steps
        if step.state != "failed"
    )
    assert recorded == Counter(await forest.ask("select * from effect where run = any(%s)", [run.id for run in runs]))
