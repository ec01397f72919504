"""Random trees of every kind of callback: cancelled, late, undone and healed at random, they keep what is promised.

What a tree is like follows from its seed alone; when a request meets it does not.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from scoop_outbox import (
    Handle,
    RunStatus,
    UnknownMessage,
)
from scoop_outbox.daemon.worker import roster
from tests.scenarios.forest import COMPENSATION, FINALISER, HANDLER, STEP, Asked, Forest, Habits, ended
from tests.scenarios.healing import COMMITTED, ROLLED_BACK
from tests.scenarios.shop import LONG
from tests.waiting import until

TREES = 12
"""How many hierarchies there are of each seed."""
FEW = settings(
    max_examples=2,
    # A smaller seed is no simpler tree: failing examples are not shrunk.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    # The examples share a database: each leaves nothing behind that concerns the next.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


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
