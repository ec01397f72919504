"""The rule itself, on random trees: whatever the shape, a step sees the end of everything caused before it."""

import asyncio
import contextlib
import itertools
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql
from sqlalchemy import make_url

from scoop_outbox import DistributedError, RunState, RunStatus, Scoop, StepKind
from scoop_outbox.app import service_of
from tests.scenarios.shop import LONG, callback
from tests.waiting import until

STEPS = 3
KINDS = ("async", "blocking", "mixed", "twins")
MOST_RUNS = 40


@dataclass
class Node:
    """A message, and how the sagas on its topic are to handle it.

    Attributes:
        path: for each level below the root, the step that launches the message, and the number among its siblings.
        children: what each step launches.
        fails_at: the step that raises.
    """

    kind: str
    path: tuple[tuple[int, int], ...]
    children: list[list["Node"]] = field(default_factory=list)
    fails_at: int | None = None

    @property
    def steps(self) -> int:
        return len(self.children)

    @property
    def runs(self) -> int:
        """How many runs there are of this message and all below it."""
        below = sum(child.runs for children in self.children for child in children)
        return (2 if self.kind == "twins" else 1) * (1 + below)

    def payload(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "fails_at": self.fails_at,
            "children": [[(child.kind, child.payload()) for child in children] for children in self.children],
        }

    def executed(self) -> Counter[tuple[Any, int]]:
        """Every step that is executed for this message and below it, as path and number, if nothing fails."""
        own: Counter[tuple[Any, int]] = Counter({(self.path, number): 1 for number in range(self.steps)})
        for number in range(self.steps):
            own += self.executed_below(number)
        return own + own if self.kind == "twins" else own

    def executed_below(self, step: int) -> Counter[tuple[Any, int]]:
        """Every step that is executed below a step of this message, by each saga that handles it."""
        return sum((child.executed() for child in self.children[step]), Counter[tuple[Any, int]]())

    def find(self, path: tuple[tuple[int, int], ...]) -> "Node":
        node = self
        for step, number in path[len(self.path) :]:
            node = node.children[step][number]
        return node


@st.composite
def trees(draw: st.DrawFn) -> Node:
    """Trees of at most four levels, of steps that launch at most three messages each."""

    def node(path: tuple[tuple[int, int], ...]) -> Node:
        return Node(draw(st.sampled_from(KINDS)), path, [[] for _ in range(draw(st.integers(1, STEPS)))])

    root = node(())
    nodes = [root]
    for _ in range(draw(st.integers(0, 11))):
        parent = draw(st.sampled_from([one for one in nodes if len(one.path) < 3]))
        step = draw(st.integers(0, parent.steps - 1))
        siblings = parent.children[step]
        if len(siblings) == 3:
            continue
        siblings.append(node((*parent.path, (step, len(siblings)))))
        if root.runs > MOST_RUNS:
            siblings.pop()
            continue
        nodes.append(siblings[-1])
    return root


@st.composite
def failing_trees(draw: st.DrawFn) -> Node:
    root = draw(trees())
    nodes = [root]
    for node in nodes:
        nodes.extend(itertools.chain.from_iterable(node.children))
    unlucky = draw(st.sampled_from(nodes))
    unlucky.fails_at = draw(st.integers(0, unlucky.steps - 1))
    return root


@dataclass(frozen=True)
class Entry:
    """A mark in the journal: `start` and `end` of a step, `undo` and `undone` of its compensation."""

    what: str
    run: uuid.UUID
    lineage: tuple[uuid.UUID, ...]
    path: tuple[tuple[int, int], ...]
    step: int


class Forest:
    """A service that handles any tree: what a step does stands in the message.

    Args:
        app: the service, without a saga.
    """

    def __init__(self, app: Scoop) -> None:
        self.app = app
        self.entries: list[Entry] = []
        self._lock = threading.Lock()
        colours = itertools.cycle(("async", "blocking"))
        for kind in KINDS:
            for name in ("twins a", "twins b") if kind == "twins" else (kind,):
                saga = self.app.saga(name, on=kind)
                for number in range(STEPS):
                    colour = kind if kind in ("async", "blocking") else next(colours)
                    saga.add_step(
                        str(number),
                        callback(colour, self._body(number, may_fail=name != "twins b")),
                        compensate=callback(colour, self._undo(number)),
                    )

    def _mark(self, what: str, scope: Any, message: Any, step: int) -> None:
        path = tuple((launching, number) for launching, number in message.payload["path"])
        with self._lock:
            self.entries.append(Entry(what, scope.run_id, scope.lineage, path, step))

    def _body(self, number: int, *, may_fail: bool) -> Any:
        def body(scope: Any, message: Any) -> Iterator[Any]:
            payload = message.payload
            if number >= len(payload["children"]):
                return
            self._mark("start", scope, message, number)
            for kind, child in payload["children"][number]:
                scope.launch(kind, child)
            yield scope.connection.execute("select")
            if may_fail and payload["fails_at"] == number:
                raise RuntimeError("unlucky")
            self._mark("end", scope, message, number)

        return body

    def _undo(self, number: int) -> Any:
        def undo(scope: Any, message: Any, _: Any) -> Iterator[Any]:
            if number >= len(message.payload["children"]):
                return
            self._mark("undo", scope, message, number)
            yield scope.connection.execute("select")
            self._mark("undone", scope, message, number)

        return undo

    async def run(self, root: Node, **options: Any) -> tuple[RunStatus, ...]:
        """Handle a tree while the service runs just for it, and return its runs; `options` as of `grow`."""
        async with self.app.running():
            runs = await self.grow(root, **options)
        assert await self._left() == 0
        return runs

    async def grow(self, root: Node, *, cancel_after: int | None = None, **options: Any) -> tuple[RunStatus, ...]:
        """Handle a tree, and return its runs.

        Args:
            root: the tree.
            cancel_after: cancel it as soon as the journal has so many entries, if it ever has.
            options: of the launch.
        """
        self.entries.clear()
        handle = await self.app.launch(root.kind, root.payload(), **options)
        waiting = asyncio.create_task(handle.wait(LONG))
        if cancel_after is not None:
            await until(lambda: len(self.entries) >= cancel_after or waiting.done(), LONG, 0.001)
            await self.app.cancel(handle.id)
        with contextlib.suppress(DistributedError, ExceptionGroup):
            await waiting
        return (await self.app.status(handle.id)).runs

    async def _left(self) -> int:
        """How much mail is left when everything has ended."""

        def count() -> int:
            with psycopg.connect(service_of(self.app).home.url) as connection:
                row = connection.execute("select count(*) from scoop_outbox.mailbox").fetchone()
            assert row is not None
            return int(row[0])

        return await asyncio.to_thread(count)


@pytest.fixture(scope="module")
def database(postgres_url: str, template_database: str) -> Iterator[str]:
    """One database for all examples: each leaves nothing behind that concerns the next."""
    name = f"scoop_outbox_test_{uuid.uuid4().hex[:16]}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(template_database))
        )
        yield make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@given(root=trees())
@settings(max_examples=12)
async def test_promise_2_a_step_starts_when_everything_caused_before_has_finished(database: str, root: Node) -> None:
    forest = Forest(Scoop("forest", database=database))

    runs = await forest.run(root)

    assert {run.state for run in runs} == {RunState.COMMITTED}
    assert len(runs) == root.runs
    check_rule(forest.entries, root)
    executed = Counter((entry.path, entry.step) for entry in forest.entries if entry.what == "end")
    assert executed == root.executed()
    assert {entry.what for entry in forest.entries} == {"start", "end"}


@given(root=failing_trees())
@settings(max_examples=12)
async def test_promise_2_a_failure_undoes_everything_in_reverse(database: str, root: Node) -> None:
    forest = Forest(Scoop("forest", database=database))

    runs = await forest.run(root)

    check_rule(forest.entries, root)
    failed = {run.lineage[0] for run in runs if run.state is RunState.ROLLED_BACK}
    # Only one of twins fails; but if something below them does, it does so below both.
    assert len(failed) == (2 if root.kind == "twins" and root.fails_at is None else 1)
    check_unwinding([entry for entry in forest.entries if entry.lineage[0] in failed])
    for run in runs:
        assert run.state is (RunState.ROLLED_BACK if run.lineage[0] in failed else RunState.COMMITTED)
    assert not [entry for entry in forest.entries if entry.what == "undo" and entry.lineage[0] not in failed]


@given(root=trees() | failing_trees(), entries=st.integers(0, 40))
@settings(max_examples=20)
async def test_promise_36_whenever_a_hierarchy_is_cancelled_everything_is_undone_in_reverse(
    database: str, root: Node, entries: int
) -> None:
    forest = Forest(Scoop("forest", database=database))

    runs = await forest.run(root, cancel_after=entries)

    check_ends(runs)


@given(root=trees() | failing_trees(), within=st.floats(0.001, 0.2))
@settings(max_examples=20)
async def test_promise_37_whenever_a_hierarchy_is_late_everything_is_undone_in_reverse(
    database: str, root: Node, within: float
) -> None:
    forest = Forest(Scoop("forest", database=database))

    runs = await forest.run(root, timeout=within)

    check_ends(runs)


def check_ends(runs: Sequence[RunStatus]) -> None:
    """A hierarchy has committed, or all that it had committed is undone: once, in reverse, children first."""
    for root in {run.lineage[0] for run in runs}:
        tree = {run.id: run for run in runs if run.lineage[0] == root}
        ended = tree[root].state
        assert ended in (RunState.COMMITTED, RunState.ROLLED_BACK)
        assert {run.state for run in tree.values()} == {ended}
        for run in tree.values() if ended is RunState.ROLLED_BACK else ():
            check_compensations(run, [child for child in tree.values() if child.parent == run.id])


def check_compensations(run: RunStatus, children: Sequence[RunStatus]) -> None:
    undone = [step for step in run.steps if step.kind is StepKind.COMPENSATION]
    steps = [step for step in run.steps if step.kind is StepKind.STEP]
    assert {step.state for step in steps} <= {"compensated", "failed"}
    assert [step.undoes for step in undone] == [step.seq for step in steps if step.state == "compensated"][::-1]
    for child in children:
        (after,) = [step for step in undone if step.undoes == child.launched_by]
        assert all(step.ended_at <= after.started_at for step in child.steps)


def check_rule(entries: list[Entry], root: Node) -> None:
    """When a step starts, what earlier steps of its run have caused has finished, and nothing else has begun."""
    for position, entry in enumerate(entries):
        if entry.what != "start":
            continue
        before = [one for one in entries[:position] if entry.run in one.lineage[:-1]]
        node = root.find(entry.path)
        expected = sum((node.executed_below(step) for step in range(entry.step)), Counter[tuple[Any, int]]())
        for what in ("start", "end"):
            assert Counter((one.path, one.step) for one in before if one.what == what) == expected


def check_unwinding(entries: list[Entry]) -> None:
    """Every committed step is undone exactly once: in reverse within a run, children before what launched them."""
    committed = [(entry.run, entry.step) for entry in entries if entry.what == "end"]
    undone = [(entry.run, entry.step) for entry in entries if entry.what == "undone"]
    assert Counter(undone) == Counter(committed)
    assert Counter((entry.run, entry.step) for entry in entries if entry.what == "undo") == Counter(committed)
    for run in {run for run, _ in committed}:
        assert [step for one, step in undone if one == run] == [step for one, step in committed if one == run][::-1]
    for position, entry in enumerate(entries):
        if entry.what != "undo":
            continue
        for other_position, other in enumerate(entries):
            if entry.run not in other.lineage[:-1] or other.what not in ("undo", "undone"):
                continue
            # The step of `entry`'s run from which the other one descends.
            launched_by = other.path[len(entry.path)][0]
            assert (other_position < position) == (launched_by >= entry.step)
