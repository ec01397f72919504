"""Random trees whose sagas live in homes of their own keep what is promised of those in one home."""

from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scoop_outbox import RunState
from tests.carriers import Carrier
from tests.scenarios.conftest import MATRIX
from tests.scenarios.scattered import Scattered, World
from tests.scenarios.test_properties import (
    Forest,
    Node,
    check_ends,
    check_rule,
    check_unwinding,
    failing_trees,
    trees,
)

# The examples share homes that run all the time: each leaves nothing behind that concerns the next.
SOME = settings(
    max_examples=12 if MATRIX else 4,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest_asyncio.fixture
async def forest(database_url: str, make_database: Callable[[], str], carrier: Carrier) -> AsyncIterator[Forest]:
    """A service of sagas each in a home of its own, for as long as the examples of a test last."""
    made = Forest(Scattered(World(database_url, make_database, carrier), "forest"))
    async with made.app.running():
        yield made
    await made.app.close()


@given(root=trees())
@SOME
async def test_promise_2_a_step_starts_when_everything_caused_before_has_finished(forest: Forest, root: Node) -> None:
    runs = await forest.grow(root)

    assert {run.state for run in runs} == {RunState.COMMITTED}
    assert len(runs) == root.runs
    check_rule(forest.entries, root)
    executed = Counter((entry.path, entry.step) for entry in forest.entries if entry.what == "end")
    assert executed == root.executed()


@given(root=failing_trees())
@SOME
async def test_promise_2_a_failure_undoes_everything_in_reverse(forest: Forest, root: Node) -> None:
    runs = await forest.grow(root)

    check_rule(forest.entries, root)
    failed = {run.lineage[0] for run in runs if run.state is RunState.ROLLED_BACK}
    check_unwinding([entry for entry in forest.entries if entry.lineage[0] in failed])
    for run in runs:
        assert run.state is (RunState.ROLLED_BACK if run.lineage[0] in failed else RunState.COMMITTED)
    assert not [entry for entry in forest.entries if entry.what == "undo" and entry.lineage[0] not in failed]


@given(root=trees() | failing_trees(), entries=st.integers(0, 40))
@SOME
async def test_promise_36_whenever_a_hierarchy_is_cancelled_everything_is_undone_in_reverse(
    forest: Forest, root: Node, entries: int
) -> None:
    check_ends(await forest.grow(root, cancel_after=entries))


@given(root=trees() | failing_trees(), within=st.floats(0.001, 0.5))
@SOME
async def test_promise_37_whenever_a_hierarchy_is_late_everything_is_undone_in_reverse(
    forest: Forest, root: Node, within: float
) -> None:
    check_ends(await forest.grow(root, timeout=within))
