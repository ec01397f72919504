"""Which hierarchies are due, by what their sagas and whoever prunes say."""

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from scoop_outbox import DefinitionError
from scoop_outbox._retention import LONGEST, Retention, SagaRetention
from scoop_outbox.core.plans.prune import (
    RUNS_AT_ONCE,
    SHORTEST,
    Part,
    Periods,
    SagaName,
    Tree,
    some,
)

NOW = datetime(2026, 1, 31, tzinfo=UTC)
A, B = ("shop", "a"), ("shop", "b")
WHOLE, PAYLOAD = Part.WHOLE, Part.PAYLOAD


def days(count: float | None) -> timedelta | None:
    return None if count is None else timedelta(days=count)


def tree(ended: float | None, *sagas: SagaName, final: bool = True, erased: bool = False, runs: int = 1) -> Tree:
    ended_at = None if ended is None else NOW - timedelta(days=ended)
    return Tree(uuid.uuid4(), [uuid.uuid4()] * runs, final, ended_at, sagas, erased)


@pytest.mark.parametrize(
    "default, least, own, expected",
    [
        (None, None, None, None),
        (30, None, None, 30),
        (30, None, 10, 10),
        (30, None, 90, 90),
        (None, None, 10, 10),
        (None, 20, None, 20),
        (None, 20, 10, 20),
        (None, 20, 30, 30),
        (None, 0, None, SHORTEST / timedelta(days=1)),
    ],
)
def test_how_long_the_hierarchies_of_a_saga_are_kept(
    default: float | None, least: float | None, own: float | None, expected: float | None
) -> None:
    retention = Retention(days(default), None, days(least))
    periods = Periods(retention, {A: SagaRetention(days(own), None)}, NOW)
    assert periods.of(A, WHOLE) == days(expected)
    assert periods.of(A, PAYLOAD) is None


@pytest.mark.parametrize("default, own, expected", [(None, None, None), (7, None, 7), (7, 3, 3), (7, 9, 9)])
def test_how_long_the_payload_is_kept(default: float | None, own: float | None, expected: float | None) -> None:
    periods = Periods(Retention(None, days(default), days(1)), {A: SagaRetention(None, days(own))}, NOW)
    assert periods.of(A, PAYLOAD) == days(expected)


OWN = {A: SagaRetention(days(10), days(5)), B: SagaRetention(days(30), None)}


@pytest.mark.parametrize(
    "one, part, due",
    [
        (tree(10, A), WHOLE, True),
        (tree(9.9, A), WHOLE, False),
        (tree(10, A, final=False), WHOLE, False),
        (tree(None, A), WHOLE, False),
        (tree(29, A, B), WHOLE, False),
        (tree(30, A, B), WHOLE, True),
        (tree(1000, A, ("shop", "says nothing")), WHOLE, False),
        (tree(1000), WHOLE, False),
        (tree(5, A), PAYLOAD, True),
        (tree(5, A, erased=True), PAYLOAD, False),
        (tree(10, A, erased=True), WHOLE, True),
        (tree(1000, A, B), PAYLOAD, False),
    ],
)
def test_a_hierarchy_is_due_when_all_sagas_at_its_top_say_so(one: Tree, part: Part, due: bool) -> None:
    assert Periods(Retention(), OWN, NOW).is_due(one, part) is due


@pytest.mark.parametrize(
    "sizes, together",
    [
        ([], 0),
        ([1, 1, 1], 3),
        ([RUNS_AT_ONCE + 1, 1], 1),
        ([1, RUNS_AT_ONCE, 1], 1),
        ([1, RUNS_AT_ONCE - 1, 1], 2),
    ],
)
def test_so_many_go_together_and_one_at_least(sizes: list[int], together: int) -> None:
    trees = [tree(1, A, runs=size) for size in sizes]
    assert some(trees) == (trees[:together], trees[together:])


def test_periods_that_cannot_be_calculated_with_are_cut_or_refused() -> None:
    assert Retention(timedelta.max, timedelta.max).checked().hierarchies == LONGEST
    for wrong in (Retention(days(-1)), Retention(None, days(-1)), Retention(None, None, days(-1))):
        with pytest.raises(DefinitionError, match="negative"):
            wrong.checked()
    with pytest.raises(DefinitionError, match="7 days"):
        Retention(remembered=timedelta(days=6.9)).checked()
