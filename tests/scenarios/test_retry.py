"""Retries of steps: how often, when, and from which context (behaviour Q34, Q47)."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from scoop_outbox import DistributedError, Retry
from tests.scenarios.rollback_helpers import (
    SIMULATED,
    Shape,
    fails,
    shape,
    simulated,
)
from tests.scenarios.shop import Shop, reraises

pytestmark = pytest.mark.parametrize("colour", ["blocking", "mixed"])


class OutOfStock(Exception):
    """A failure of the user's business."""


async def test_q34_a_step_is_tried_as_often_as_its_policy_says(shop: Shop) -> None:
    numbers: list[tuple[int, int]] = []
    keys: list[str] = []

    def fails_twice(scope: Any, _: Any) -> None:
        numbers.append((scope.iteration, scope.attempt))
        keys.append(scope.idempotency_key)
        scope.launch("C", scope.attempt)
        if scope.attempt < 2:
            raise RuntimeError(SIMULATED)

    root = shop.app.saga("root", "R")
    shop.step(root, "0", fails_twice, retry=Retry(attempts=3, backoff=0.01))
    shop.step(root, "1")
    shop.saga("child", "C", None)

    handle = await shop.run("R")

    assert numbers == [(0, 0), (0, 1), (0, 2)]
    assert len(set(keys)) == 1
    # What the failed attempts emitted does not exist.
    assert shop.journal == ["root-0", "root-0", "root-0", "child-0", "root-1"]
    run = await shop.only(handle, "root")
    assert [(step.step, step.state, step.attempt) for step in run.steps] == [
        ("0", "failed", 0),
        ("0", "failed", 1),
        ("0", "committed", 2),
        ("1", "committed", 0),
    ]


async def test_q34_the_wait_before_a_retry_begins_when_the_attempt_has_failed(shop: Shop) -> None:
    def fails_slowly(scope: Any, _: Any) -> Iterator[Any]:
        yield scope.connection.execute("select pg_sleep(0.3)")
        if scope.attempt == 0:
            raise RuntimeError(SIMULATED)

    root = shop.app.saga("root", "R")
    shop.step(root, "0", fails_slowly, retry=Retry(attempts=2, backoff=0.2, jitter=0))

    handle = await shop.run("R")

    failed, committed = (await shop.only(handle, "root")).steps
    assert committed.started_at - failed.ended_at >= timedelta(seconds=0.19)  # the failure is recorded a moment later


async def test_q34_a_step_that_never_succeeds_rolls_back_after_its_last_attempt(shop: Shop) -> None:
    def boom(scope: Any, _: Any) -> None:
        raise RuntimeError(f"boom {scope.attempt}")

    root = shop.saga("root", "R", None)
    shop.step(root, "1", boom, retry=Retry(attempts=2, backoff=0.01))

    handle, error = await shop.fail("R")

    assert shop.journal == ["root-0", "root-1", "root-1", "root-rb0"]
    assert shape(error.failure) == simulated("root", "boom 1")
    run = await shop.only(handle, "root")
    assert [shape(step.failure).message for step in run.steps if step.failure is not None] == ["boom 0", "boom 1"]


async def test_q34_only_the_exceptions_of_the_policy_are_tried_again(shop: Shop) -> None:
    def boom(scope: Any, _: Any) -> None:
        raise OutOfStock("again") if scope.attempt == 0 else LookupError("final")

    root = shop.app.saga("root", "R")
    shop.step(root, "0", boom, retry=Retry(attempts=5, backoff=0.01, on=(OutOfStock,)))

    _, error = await shop.fail("R")

    assert shop.journal == ["root-0", "root-0"]
    assert shape(error.failure) == Shape("LookupError", "root", "final")


async def test_q34_if_02_a_step_has_one_attempt_unless_told_otherwise(shop: Shop) -> None:
    calls: list[int] = []

    def boom(scope: Any, _: Any) -> None:
        calls.append(scope.attempt)
        raise RuntimeError(SIMULATED)

    shop.app.saga("root", "R").add_step("0", shop.coloured(boom))

    with pytest.raises(DistributedError):
        await shop.run("R")

    assert calls == [0]


async def test_q47_a_retry_starts_from_the_context_before_the_failed_attempt(shop: Shop) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []

    def sets(scope: Any, _: Any) -> None:
        scope.context["n"] = 1

    def boom(scope: Any, _: Any) -> None:
        seen.append(("step", dict(scope.context)))
        scope.context["n"] += 1
        scope.context["attempt"] = scope.attempt
        raise RuntimeError(SIMULATED)

    def undo(scope: Any, *_: Any) -> None:
        seen.append(("rb", dict(scope.context)))

    root = shop.app.saga("root", "R")
    shop.step(root, "0", sets, compensate=undo)
    shop.step(root, "1", boom, retry=Retry(attempts=3, backoff=0.01))

    await shop.fail("R")

    # Compensations see what the last attempt wrote, the one that started the rollback.
    assert seen == [("step", {"n": 1})] * 3 + [("rb", {"n": 2, "attempt": 2})]


async def test_q47_a_compensation_tried_again_starts_from_the_context_before(shop: Shop) -> None:
    seen: list[tuple[int, dict[str, Any]]] = []

    def undo(scope: Any, *_: Any) -> None:
        seen.append((scope.attempt, dict(scope.context)))
        scope.context["undone"] = scope.attempt
        if scope.attempt == 0:
            raise RuntimeError(SIMULATED)

    root = shop.app.saga("root", "R")
    shop.step(root, "0", compensate=lambda scope, *_: seen.append((-1, dict(scope.context))))
    shop.step(root, "1", compensate=undo, compensate_retry=Retry(attempts=2, backoff=0.01))
    shop.step(root, "2", fails)

    await shop.fail("R")

    assert seen == [(0, {}), (1, {}), (-1, {"undone": 1})]


async def test_q34_a_retried_step_may_fail_its_children_too(shop: Shop) -> None:
    """A retry is about the step; what its children do is for the failure handler."""

    def emits(scope: Any, _: Any) -> None:
        if scope.attempt == 0:
            raise RuntimeError(SIMULATED)
        scope.launch("C", None)

    root = shop.app.saga("root", "R")
    shop.step(root, "0", emits, retry=Retry(attempts=3, backoff=0.01), on_child_failure=reraises)
    shop.saga("child", "C", fails)

    await shop.fail("R")

    assert shop.journal == ["root-0", "root-0", "child-0", "root-hcf0", "root-rb0"]
