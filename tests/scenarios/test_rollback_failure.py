"""RF: compensations that fail, and what the runs above make of it."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from scoop_outbox import Repeat, Retry, RunState, StepKind
from tests.scenarios.rollback_helpers import (
    SIMULATED,
    X0,
    X2,
    Shape,
    after,
    child_rollback_failed,
    child_rolled_back,
    children_of,
    declare_n_deep,
    fails,
    parent_said_so,
    shape,
    simulated,
)
from tests.scenarios.shop import Shop, launches, nothing, raises

pytestmark = pytest.mark.parametrize("colour", ["async", "mixed"])

COMMITTED = RunState.COMMITTED
ROLLED_BACK = RunState.ROLLED_BACK
ROLLBACK_FAILED = RunState.ROLLBACK_FAILED


async def test_rf_01_a_failing_compensation_stops_everything_above_it(shop: Shop) -> None:
    declare_n_deep(shop, broken=True)

    handle, error = await shop.fail("R")

    # The reference calls one handler for both phases; here they are two (Q5).
    assert shop.journal.of("root", "c1", "gc") == [
        "root-0", "root-1", "c1-0", "c1-1", "gc-0", "gc-1", "c1-2", "root-hcf1",
        "c1-rb2", "gc-rb1", "gc-rb0", "c1-hcrf1", "root-hcrf1",
    ]  # fmt: skip
    assert shop.journal.of("root", "c2") == ["root-0", "root-1", "c2-0", "c2-1", "c2-rb0", "root-hcf1", "root-hcrf1"]
    assert len(shop.journal.entries) == 16
    assert await shop.states(handle) == {
        "root": ROLLBACK_FAILED,
        "c1": ROLLBACK_FAILED,
        "c2": ROLLED_BACK,
        "gc": ROLLBACK_FAILED,
    }
    y0 = simulated("gc", "Rollback failure")
    y1 = child_rollback_failed("c1", children_of("1"), y0, X2)
    assert shape((await shop.only(handle, "gc")).failure) == y0
    assert shape((await shop.only(handle, "c1")).failure) == y1
    # The root's own reason is left out: it occurs inside.
    assert shape((await shop.only(handle, "root")).failure) == child_rollback_failed("root", children_of("1"), y1)
    assert shape(error.failure) == child_rollback_failed("root", children_of("1"), y1)
    assert shape((await shop.only(handle, "c2")).failure) == X0


async def test_rf_02_the_failure_of_the_compensation_is_the_failure_of_the_run(shop: Shop) -> None:
    def emits_and_fails(scope: Any, _: Any) -> None:
        scope.launch("C", None)
        raise RuntimeError("Geronimo!")

    root = shop.app.saga("root", "R")
    shop.step(root, "0", compensate=raises("Geronimo again!", ValueError))
    shop.step(root, "1", emits_and_fails)

    handle, error = await shop.fail("R")

    assert shop.journal == ["root-0", "root-1", "root-rb0"]
    run = await shop.only(handle, "root")
    assert run.state is ROLLBACK_FAILED
    assert run.failure == error.failure
    assert shape(error.failure) == Shape("ValueError", "root", "Geronimo again!")
    assert [(step.step, step.kind, step.state, step.failure and step.failure.message) for step in run.steps] == [
        ("0", StepKind.STEP, "committed", None),
        ("1", StepKind.STEP, "failed", "Geronimo!"),
        ("0", StepKind.COMPENSATION, "failed", "Geronimo again!"),
    ]


async def test_rf_03_q5_a_failure_that_could_not_be_rolled_back_is_delivered_once(shop: Shop) -> None:
    delivered: list[Any] = []

    def handles(_: Any, __: Any, error: Any) -> None:
        delivered.append(error)
        raise error

    root = shop.saga("root", "R", None)
    shop.step(root, "emit", launches("C"), on_child_failure=handles, on_child_rollback_failure=True)
    child = shop.app.saga("child", "C")
    shop.step(child, "0", compensate=raises("rb boom"))
    shop.step(child, "1", raises("boom 1"))

    handle, error = await shop.fail("R")

    assert shop.journal == ["root-0", "root-emit", "child-0", "child-1", "child-rb0", "root-hcfemit"]
    assert await shop.states(handle) == {"root": ROLLBACK_FAILED, "child": ROLLBACK_FAILED}
    assert [one.failure for one in delivered] == [error.failure]
    failure = shape(error.failure)
    assert failure[:3] == child_rollback_failed("root", "emit")[:3]
    # What could not be rolled back comes first.
    assert failure.causes[0] == simulated("child", "rb boom")


async def test_rf_03_q5_a_replacement_is_not_followed_by_a_second_delivery(shop: Shop) -> None:
    root = shop.app.saga("root", "R")
    shop.step(
        root, "emit", launches("C"), on_child_failure=raises("replaced", ValueError), on_child_rollback_failure=True
    )
    child = shop.app.saga("child", "C")
    shop.step(child, "0", compensate=raises("rb boom"))
    shop.step(child, "1", raises("boom 1"))

    handle, error = await shop.fail("R")

    assert shop.journal == ["root-emit", "child-0", "child-1", "child-rb0", "root-hcfemit"]
    assert await shop.states(handle) == {"root": ROLLBACK_FAILED, "child": ROLLBACK_FAILED}
    failure = shape(error.failure)
    assert failure[:3] == ("ValueError", "root", "replaced")
    assert [cause[:3] for cause in failure.causes] == [child_rollback_failed("root", "emit")[:3]]


async def test_rf_03_q2_a_rollback_failure_can_be_handled_on_the_forward_path(shop: Shop) -> None:
    delivered: list[Any] = []

    def handles(_: Any, __: Any, error: Any) -> None:
        delivered.append(error)

    root = shop.app.saga("root", "R")
    shop.step(root, "emit", launches("C"), on_child_failure=handles, on_child_rollback_failure=True)
    shop.step(root, "next", raises("later"))
    child = shop.app.saga("child", "C")
    shop.step(child, "0", compensate=raises("rb boom"))
    shop.step(child, "1", raises("boom 1"))

    handle, error = await shop.fail("R")

    # Consumed is consumed: the rollback for another reason does not deliver it again.
    assert shop.journal == [
        "root-emit", "child-0", "child-1", "child-rb0", "root-hcfemit", "root-next", "root-rbemit",
    ]  # fmt: skip
    assert [one.type for one in delivered] == ["ChildRollbackFailed"]
    assert await shop.states(handle) == {"root": ROLLED_BACK, "child": ROLLBACK_FAILED}
    assert shape(error.failure) == simulated("root", "later")


async def test_rf_06_q46_a_child_of_a_compensation_that_cannot_be_rolled_back(shop: Shop) -> None:
    root = shop.saga("root", "R", None)
    shop.step(root, "1", compensate=launches("C"))
    shop.step(root, "2", fails)
    child = shop.app.saga("child", "C")
    shop.step(child, "0", compensate=raises("rb boom"))
    shop.step(child, "1", raises("boom 1"))

    handle, error = await shop.fail("R")

    # Steps before the one whose compensation failed stay as they are.
    assert shop.journal == ["root-0", "root-1", "root-2", "root-rb1", "child-0", "child-1", "child-rb0"]
    assert await shop.states(handle) == {"root": ROLLBACK_FAILED, "child": ROLLBACK_FAILED}
    failure = shape(error.failure)
    assert failure[:3] == child_rollback_failed("root", "Rollback of 1[0]")[:3]
    assert failure.causes[0] == simulated("child", "rb boom")


async def test_rf_06_q23_the_handler_of_rollback_failures_hears_of_a_compensations_child(shop: Shop) -> None:
    delivered: list[Any] = []

    def handles(_: Any, __: Any, error: Any) -> None:
        delivered.append(error)
        raise error

    root = shop.saga("root", "R", None)
    shop.step(root, "1", compensate=launches("C"), on_child_failure=True, on_child_rollback_failure=handles)
    shop.step(root, "2", fails)
    child = shop.app.saga("child", "C")
    shop.step(child, "0", compensate=raises("rb boom"))
    shop.step(child, "1", raises("boom 1"))

    handle, error = await shop.fail("R")

    assert shop.journal.of("root") == ["root-0", "root-1", "root-2", "root-rb1", "root-hcrf1"]
    assert [one.failure for one in delivered] == [error.failure]
    assert shape(error.failure)[:3] == child_rollback_failed("root", "Rollback of 1[0]")[:3]
    assert (await shop.only(handle, "root")).state is ROLLBACK_FAILED


@pytest.mark.everywhere
async def test_rb_12_q23_a_handled_failure_of_a_compensations_child_lets_the_rollback_go_on(shop: Shop) -> None:
    delivered: list[Any] = []
    attempts: list[int] = []

    def handles(scope: Any, _: Any, error: Any) -> None:
        delivered.append(error)
        attempts.append(scope.attempt)

    root = shop.saga("root", "R", None)
    shop.step(
        root,
        "1",
        compensate=launches("C"),
        on_child_failure=True,
        on_child_rollback_failure=handles,
        compensate_retry=Retry(attempts=2, backoff=0.01),
    )
    shop.step(root, "2", fails)
    shop.saga("child", "C", None, raises("child boom"))

    handle, error = await shop.fail("R")

    # First the policy, then the handler.
    assert shop.journal.entries[3:] == [
        "root-rb1", "child-0", "child-1", "child-rb0",
        "root-rb1", "child-0", "child-1", "child-rb0",
        "root-hcrf1", "root-rb0",
    ]  # fmt: skip
    swallowed = child_rolled_back("root", "Rollback of 1[0]", simulated("child", "child boom"))
    assert [shape(one.failure) for one in delivered] == [swallowed]
    assert attempts == [0]
    assert await shop.states(handle) == {"root": ROLLED_BACK, "child": [ROLLED_BACK] * 2}
    assert shape(error.failure) == simulated("root")


async def test_rf_04_what_a_handler_emits_during_a_rollback_is_waited_for(shop: Shop) -> None:
    root = shop.saga("root", "R", None)
    shop.step(root, "1", launches("C"), on_child_rollback_failure=launches("G"))
    shop.step(root, "2", fails)
    shop.step(shop.app.saga("child", "C"), "0", compensate=raises("rb boom"))
    shop.saga("gc", "G", None, None)

    handle, _ = await shop.fail("R")

    assert shop.journal == [
        "root-0", "root-1", "child-0", "root-2", "child-rb0", "root-hcrf1", "gc-0", "gc-1", "root-rb1", "root-rb0",
    ]  # fmt: skip
    assert await shop.states(handle) == {"root": ROLLED_BACK, "child": ROLLBACK_FAILED, "gc": COMMITTED}


async def test_rf_08_q7_siblings_of_a_run_that_cannot_be_rolled_back_finish_theirs(shop: Shop) -> None:
    started = time.monotonic()

    def lingers(*_: object) -> Iterator[Any]:
        yield lambda: shop.journal.count("broken-rb0") and time.monotonic() > started + 0.3

    root = shop.saga("root", "R", None)
    shop.step(root, "1", launches("C"), on_child_rollback_failure=True)
    shop.step(root, "2", fails)
    shop.step(shop.app.saga("broken", "C"), "0", compensate=raises("rb boom"))
    slow = shop.app.saga("slow", "C")
    shop.step(slow, "0")
    shop.step(slow, "1", compensate=lingers)

    handle, error = await shop.fail("R")

    assert shop.journal.of("slow", "root") == [
        "root-0", "root-1", "slow-0", "slow-1", "root-2", "slow-rb1", "slow-rb0", "root-hcrf1",
    ]  # fmt: skip
    assert await shop.states(handle) == {"root": ROLLBACK_FAILED, "broken": ROLLBACK_FAILED, "slow": ROLLED_BACK}
    expected = child_rollback_failed("root", children_of("1"), simulated("broken", "rb boom"), simulated("root"))
    assert shape(error.failure) == expected


async def test_rf_08_every_child_that_cannot_be_rolled_back_is_told_of(shop: Shop) -> None:
    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("C", "D"))
    shop.step(root, "1", fails)
    shop.step(shop.app.saga("one", "C"), "0", compensate=raises("rb one"))
    two = shop.app.saga("two", "D")
    shop.step(two, "0", compensate=raises("rb two"))
    shop.step(two, "1", compensate=after(shop, "one-rb0"))

    handle, error = await shop.fail("R")

    assert await shop.states(handle) == dict.fromkeys(("root", "one", "two"), ROLLBACK_FAILED)
    causes = shape(error.failure).causes
    assert sorted(causes[:2]) == [simulated("one", "rb one"), simulated("two", "rb two")]
    assert causes[2:] == (simulated("root"),)


async def test_q55_a_compensation_is_tried_again_before_the_rollback_has_failed(shop: Shop) -> None:
    numbers: list[int] = []
    keys: set[str] = set()

    def undo(scope: Any, *_: Any) -> None:
        numbers.append(scope.attempt)
        keys.add(scope.idempotency_key)
        raise RuntimeError(f"rb boom {scope.attempt}")

    root = shop.saga("root", "R", None)
    shop.step(root, "1", compensate=undo, compensate_retry=Retry(attempts=3, backoff=0.01))
    shop.step(root, "2", fails)

    handle, error = await shop.fail("R")

    assert numbers == [0, 1, 2]
    assert len(keys) == 1
    assert shop.journal == ["root-0", "root-1", "root-2", "root-rb1", "root-rb1", "root-rb1"]
    run = await shop.only(handle, "root")
    assert run.state is ROLLBACK_FAILED
    assert error.message == "rb boom 2"
    assert [(step.attempt, step.state) for step in run.steps if step.kind is StepKind.COMPENSATION] == [
        (0, "failed"),
        (1, "failed"),
        (2, "failed"),
    ]


async def test_q55_a_compensation_that_succeeds_in_the_end_has_compensated(shop: Shop) -> None:
    def undo(scope: Any, *_: Any) -> None:
        if scope.attempt < 2:
            raise RuntimeError("rb boom")

    root = shop.saga("root", "R", None)
    shop.step(root, "1", compensate=undo, compensate_retry=Retry(attempts=3, backoff=0.01))
    shop.step(root, "2", fails)

    handle, error = await shop.fail("R")

    assert shop.journal == ["root-0", "root-1", "root-2", "root-rb1", "root-rb1", "root-rb1", "root-rb0"]
    assert (await shop.only(handle, "root")).state is ROLLED_BACK
    assert shape(error.failure) == simulated("root")


async def test_q55_a_compensation_has_three_attempts_by_default(shop: Shop) -> None:
    step = shop.app.saga("root", "R").add_step("0", nothing)

    assert step.compensate_retry == Retry(attempts=3, backoff=1.0)
    assert step.retry.attempts == 1


async def test_q55_attempts_are_counted_for_each_instance(shop: Shop) -> None:
    numbers: list[tuple[str, int]] = []

    def undo(scope: Any, *_: Any) -> None:
        numbers.append((scope.step, scope.attempt))
        if scope.attempt == 0:
            raise RuntimeError("rb boom")

    root = shop.app.saga("root", "R")
    for name in ("0", "1"):
        shop.step(root, name, compensate=undo, compensate_retry=Retry(attempts=2, backoff=0.01))
    shop.step(root, "2", fails)

    handle, _ = await shop.fail("R")

    assert numbers == [("1", 0), ("1", 1), ("0", 0), ("0", 1)]
    assert (await shop.only(handle, "root")).state is ROLLED_BACK


async def test_rf_05_q45_a_handled_rollback_failure_lets_the_rollback_go_on(shop: Shop) -> None:
    delivered: list[Any] = []

    def handles(scope: Any, _: Any, error: Any) -> None:
        delivered.append((scope.step, scope.iteration, scope.attempt, error))

    root = shop.saga("root", "R", None)
    shop.step(root, "1", launches("C"), on_child_rollback_failure=handles)
    shop.step(root, "2", fails)
    child = shop.app.saga("child", "C")
    shop.step(child, "0")
    shop.step(child, "1", compensate=raises("rb boom"))

    handle, error = await shop.fail("R")

    assert shop.journal == [
        "root-0", "root-1", "child-0", "child-1", "root-2", "child-rb1", "root-hcrf1", "root-rb1", "root-rb0",
    ]  # fmt: skip
    assert await shop.states(handle) == {"root": ROLLED_BACK, "child": ROLLBACK_FAILED}
    assert shape(error.failure) == simulated("root")
    ((step, iteration, attempt, given),) = delivered
    assert (step, iteration, attempt) == ("1", 0, 0)
    swallowed = child_rollback_failed("root", children_of("1"), simulated("child", "rb boom"), simulated("root"))
    assert shape(given.failure) == swallowed
    # What it swallowed is on record.
    run = await shop.only(handle, "root")
    (record,) = [step for step in run.steps if step.kind is StepKind.CHILD_FAILURE_HANDLER]
    assert shape(record.failure) == swallowed


async def test_q45_a_handler_that_replaces_a_rollback_failure_keeps_it_as_cause(shop: Shop) -> None:
    root = shop.saga("root", "R", None)
    shop.step(root, "1", launches("C"), on_child_rollback_failure=raises("replaced", ValueError))
    shop.step(root, "2", fails)
    shop.step(shop.app.saga("child", "C"), "0", compensate=raises("rb boom"))

    handle, error = await shop.fail("R")

    assert shop.journal == ["root-0", "root-1", "child-0", "root-2", "child-rb0", "root-hcrf1"]
    assert (await shop.only(handle, "root")).state is ROLLBACK_FAILED
    original = child_rollback_failed("root", children_of("1"), simulated("child", "rb boom"), simulated("root"))
    assert shape(error.failure) == Shape("ValueError", "root", "replaced", (original,))


async def test_q45_one_level_that_handles_is_enough(shop: Shop) -> None:
    shop.saga("root", "R", launches("C"), fails)
    child = shop.app.saga("child", "C")
    shop.step(child, "0", launches("G"), on_child_rollback_failure=nothing)
    shop.step(shop.app.saga("gc", "G"), "0", compensate=raises("rb boom"))

    handle, _ = await shop.fail("R")

    assert shop.journal == [
        "root-0", "child-0", "gc-0", "root-1", "gc-rb0", "child-hcrf0", "child-rb0", "root-rb0",
    ]  # fmt: skip
    assert await shop.states(handle) == {"root": ROLLED_BACK, "child": ROLLED_BACK, "gc": ROLLBACK_FAILED}
    reason = parent_said_so("root", simulated("root"))
    assert shape((await shop.only(handle, "child")).failure) == reason


async def test_q7_without_a_handler_the_failure_climbs_level_by_level(shop: Shop) -> None:
    shop.saga("root", "R", launches("C"), fails)
    shop.saga("child", "C", launches("G"))
    shop.step(shop.app.saga("gc", "G"), "0", compensate=raises("rb boom"))

    handle, error = await shop.fail("R")

    assert shop.journal == ["root-0", "child-0", "gc-0", "root-1", "gc-rb0"]
    assert await shop.states(handle) == dict.fromkeys(("root", "child", "gc"), ROLLBACK_FAILED)
    reason = parent_said_so("root", simulated("root"))
    below = child_rollback_failed("child", children_of("0"), simulated("gc", "rb boom"), reason)
    assert shape(error.failure) == child_rollback_failed("root", children_of("0"), below)
    assert SIMULATED in str(error.failure.to_json())


async def test_q45_the_number_of_a_loops_iteration_is_in_the_name_of_the_phase(shop: Shop) -> None:
    def loops(scope: Any, _: Any) -> Any:
        scope.launch("C", scope.iteration)
        return Repeat() if scope.iteration == 0 else None

    def undo(_: Any, message: Any, __: Any) -> None:
        shop.journal(f"undo-{message.payload}")
        if message.payload == 1:
            raise RuntimeError("rb boom")

    iterations: list[int] = []

    def handles(scope: Any, _: Any, error: Any) -> None:
        iterations.append(scope.iteration)
        raise error

    root = shop.app.saga("root", "R")
    shop.step(root, "loop", loops, on_child_rollback_failure=handles)
    shop.step(root, "end", fails)
    shop.step(shop.app.saga("child", "C"), "0", compensate=undo)

    _, error = await shop.fail("R")

    assert iterations == [1]
    assert shop.journal.of("undo") == ["undo-1"]
    assert error.failure.message == (
        f"Child rollback failure occurred while suspended in step [{children_of('loop', 1)}]"
    )
