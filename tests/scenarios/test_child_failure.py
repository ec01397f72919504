"""CF: what a run does when messages that one of its steps launched have failed."""

import uuid
from typing import Any

import pytest

from scoop_outbox import GoTo, Repeat, RunState, StepKind, UnknownMessage
from tests.scenarios.rollback_helpers import (
    SIMULATED,
    Shape,
    child_rolled_back,
    fails,
    parent_said_so,
    shape,
    simulated,
)
from tests.scenarios.shop import Shop, launches, nothing, raises

pytestmark = pytest.mark.parametrize("colour", ["blocking", "mixed"])

COMMITTED = RunState.COMMITTED
ROLLED_BACK = RunState.ROLLED_BACK


class OutOfStock(Exception):
    """A failure of the user's business."""


def fails_for(*payloads: object) -> Any:
    """The body of a step that fails when its message has one of these payloads."""

    def body(_: Any, message: Any) -> None:
        if message.payload in payloads:
            raise RuntimeError(SIMULATED)

    return body


@pytest.mark.everywhere
async def test_cf_01_cf_12_a_handler_may_retry_by_emitting_again(shop: Shop) -> None:
    def handles(scope: Any, _: Any, error: Any) -> None:
        if "marker" in scope.context:
            raise error
        scope.context["marker"] = True
        scope.launch("C", "retry")

    def noting(entry: str, then: Any = nothing) -> Any:
        def body(scope: Any, message: Any, *error: Any) -> None:
            shop.journal(f"{entry}-{message.payload}")
            then(scope, message, *error)

        return shop.coloured(body)

    seen: list[dict[str, Any]] = []

    def undo(scope: Any, _: Any, __: Any) -> None:
        seen.append(dict(scope.context))

    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("C", payload="original"), compensate=undo, on_child_failure=handles)
    shop.app.saga("c1", "C").add_step(
        "0", noting("c1", fails), compensate=noting("c1-rb"), on_child_failure=noting("c1-hcf")
    )
    shop.app.saga("c2", "C").add_step("0", noting("c2"), compensate=noting("c2-rb"), on_child_failure=noting("c2-hcf"))

    handle, error = await shop.fail("R")

    assert shop.journal.of("root", "c1") == ["root-0", "c1-original", "root-hcf0", "c1-retry", "root-hcf0", "root-rb0"]
    # The handler's emissions are undone before those of the step (Q1).
    assert shop.journal.of("root", "c2") == [
        "root-0", "c2-original", "root-hcf0", "c2-retry", "root-hcf0", "c2-rb-retry", "c2-rb-original", "root-rb0",
    ]  # fmt: skip
    assert await shop.states(handle) == {"root": ROLLED_BACK, "c1": [ROLLED_BACK] * 2, "c2": [ROLLED_BACK] * 2}
    assert seen == [{"marker": True}]
    assert shape(error.failure) == child_rolled_back("root", "0", simulated("c1"))


async def test_cf_02_q44_a_handler_is_told_how_often_it_was_called(shop: Shop) -> None:
    numbers: list[tuple[str, int, int]] = []

    def handles(scope: Any, _: Any, error: Any) -> None:
        numbers.append(("hcf", scope.iteration, scope.attempt))
        if scope.attempt == 1:
            raise error
        scope.launch("C", None)

    def undo(scope: Any, *_: Any) -> None:
        numbers.append(("rb", scope.iteration, scope.attempt))

    root = shop.app.saga("root", "R")
    shop.step(root, "s", launches("C"), compensate=undo, on_child_failure=handles)
    shop.saga("child", "C", fails)

    handle, _ = await shop.fail("R")

    assert numbers == [("hcf", 0, 0), ("hcf", 0, 1), ("rb", 0, 0)]
    assert shop.journal == ["root-s", "child-0", "root-hcfs", "child-0", "root-hcfs", "root-rbs"]
    run = await shop.only(handle, "root")
    assert [(step.kind, step.state, step.attempt) for step in run.steps] == [
        (StepKind.STEP, "compensated", 0),
        (StepKind.CHILD_FAILURE_HANDLER, "compensated", 0),
        (StepKind.CHILD_FAILURE_HANDLER, "failed", 1),
        (StepKind.COMPENSATION, "committed", 0),
    ]


async def test_cf_03_q4_a_handler_may_choose_the_next_step_by_name(shop: Shop) -> None:
    def handles(scope: Any, _: Any, error: Any) -> Any:
        if scope.attempt == 1:
            raise error
        scope.launch("C", None)
        return GoTo("s")

    root = shop.app.saga("root", "R")
    shop.step(root, "s", launches("C"), on_child_failure=handles)
    shop.step(root, "following")
    shop.saga("child", "C", fails)

    handle, _ = await shop.fail("R")

    assert shop.journal == ["root-s", "child-0", "root-hcfs", "child-0", "root-hcfs", "root-rbs"]
    assert await shop.states(handle) == {"root": ROLLED_BACK, "child": [ROLLED_BACK] * 2}


@pytest.mark.parametrize("choice", [GoTo("s"), Repeat()])
async def test_cf_03_q4_a_handler_may_have_its_step_executed_again(shop: Shop, choice: object) -> None:
    iterations: list[int] = []

    def emits(scope: Any, _: Any) -> None:
        iterations.append(scope.iteration)
        scope.launch("C", scope.iteration)

    root = shop.app.saga("root", "R")
    shop.step(root, "s", emits, on_child_failure=lambda *_: choice)
    shop.step(root, "following")
    shop.saga("child", "C", fails_for(0))

    handle = await shop.run("R")

    assert iterations == [0, 1]
    assert shop.journal == ["root-s", "child-0", "root-hcfs", "root-s", "child-0", "root-following"]
    assert await shop.states(handle) == {"root": COMMITTED, "child": [ROLLED_BACK, COMMITTED]}


async def test_cf_03_q4_a_handler_may_skip_steps(shop: Shop) -> None:
    root = shop.app.saga("root", "R")
    shop.step(root, "s", launches("C"), on_child_failure=lambda *_: GoTo("last"))
    shop.step(root, "skipped")
    shop.step(root, "last")
    shop.saga("child", "C", fails)

    await shop.run("R")

    assert shop.journal == ["root-s", "child-0", "root-hcfs", "root-last"]


async def test_cf_04_cf_13_a_handler_that_returns_nothing_keeps_the_choice_of_its_step(shop: Shop) -> None:
    attempts: list[int] = []

    def chooses(scope: Any, _: Any) -> Any:
        scope.launch("C", None)
        return GoTo("2")

    def handles(scope: Any, *_: Any) -> None:
        attempts.append(scope.attempt)

    root = shop.app.saga("root", "R")
    shop.step(root, "0", chooses, on_child_failure=handles)
    shop.step(root, "1")
    shop.step(root, "2")
    shop.saga("child", "C", fails)

    await shop.run("R")

    assert shop.journal == ["root-0", "child-0", "root-hcf0", "root-2"]
    assert attempts == [0]


@pytest.mark.everywhere
async def test_cf_05_a_handler_that_returns_has_handled_the_failure(shop: Shop) -> None:
    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("C"), on_child_failure=nothing)
    shop.step(root, "1")
    shop.saga("child", "C", fails)

    handle = await shop.run("R")

    assert shop.journal == ["root-0", "child-0", "root-hcf0", "root-1"]
    run = await shop.only(handle, "root")
    assert run.state is COMMITTED
    assert run.failure is None
    assert [(step.step, step.kind) for step in run.steps] == [
        ("0", StepKind.STEP),
        ("0", StepKind.CHILD_FAILURE_HANDLER),
        ("1", StepKind.STEP),
    ]
    assert (await shop.only(handle, "child")).state is ROLLED_BACK


async def test_cf_05_a_failure_of_the_last_step_can_be_handled_too(shop: Shop) -> None:
    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("C"), on_child_failure=nothing)
    shop.saga("child", "C", fails)

    handle = await shop.run("R")

    assert shop.journal == ["root-0", "child-0", "root-hcf0"]
    assert await shop.states(handle) == {"root": COMMITTED, "child": ROLLED_BACK}


async def test_cf_06_a_retry_that_succeeds_lets_the_saga_go_on(shop: Shop) -> None:
    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("C", payload="first"), on_child_failure=launches("C", payload="retry"))
    shop.step(root, "1")
    shop.saga("child", "C", fails_for("first"))

    handle = await shop.run("R")

    assert shop.journal == ["root-0", "child-0", "root-hcf0", "child-0", "root-1"]
    assert await shop.states(handle) == {"root": COMMITTED, "child": [ROLLED_BACK, COMMITTED]}


@pytest.mark.everywhere
async def test_cf_07_q5_a_replacement_keeps_the_original_as_its_cause(shop: Shop) -> None:
    seen: list[Any] = []

    def handles(*_: Any) -> None:
        raise OutOfStock("replaced")

    def undo(_: Any, __: Any, error: Any) -> None:
        seen.append(error)

    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("C"), compensate=undo, on_child_failure=handles)
    shop.saga("child", "C", fails)

    handle, error = await shop.fail("R")

    original = child_rolled_back("root", "0", simulated("child"))
    expected = Shape(f"{__name__}.OutOfStock", "root", "replaced", (original,))
    assert shape(error.failure) == expected
    assert [shape(one.failure) for one in seen] == [expected]
    assert shape((await shop.only(handle, "root")).failure) == expected
    assert shop.journal == ["root-0", "child-0", "root-hcf0", "root-rb0"]


async def test_cf_07_q5_a_replacement_may_name_its_cause(shop: Shop) -> None:
    def handles(_: Any, __: Any, error: Any) -> None:
        raise OutOfStock("replaced") from error

    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("C"), on_child_failure=handles)
    shop.saga("child", "C", fails)

    _, error = await shop.fail("R")

    original = child_rolled_back("root", "0", simulated("child"))
    assert shape(error.failure) == Shape(f"{__name__}.OutOfStock", "root", "replaced", (original,))


async def test_cf_07_q5_a_replacement_with_a_cause_of_its_own_keeps_the_original_below_it(shop: Shop) -> None:
    def handles(_: Any, message: Any, __: Any) -> None:
        try:
            message.payload["alternative"]
        except KeyError as missing:
            raise OutOfStock("replaced") from missing

    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("C"), on_child_failure=handles)
    shop.saga("child", "C", fails)

    _, error = await shop.fail("R", {})

    original = child_rolled_back("root", "0", simulated("child"))
    lookup = Shape("KeyError", "root", "'alternative'", (original,))
    assert shape(error.failure) == Shape(f"{__name__}.OutOfStock", "root", "replaced", (lookup,))


async def test_cf_08_what_a_raising_handler_emitted_is_not_published(shop: Shop) -> None:
    emitted: list[uuid.UUID] = []

    def handles(scope: Any, _: Any, error: Any) -> None:
        emitted.append(scope.launch("D", None))
        raise error

    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("C"), on_child_failure=handles)
    shop.saga("child", "C", fails)
    shop.saga("other", "D", None)

    await shop.fail("R")

    assert shop.journal == ["root-0", "child-0", "root-hcf0", "root-rb0"]
    with pytest.raises(UnknownMessage):
        await shop.app.status(emitted[0])


@pytest.mark.everywhere
async def test_cf_09_without_a_handler_a_child_failure_rolls_back(shop: Shop) -> None:
    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("C"))
    shop.step(root, "1")
    shop.saga("child", "C", fails)

    handle, error = await shop.fail("R")

    assert shop.journal == ["root-0", "child-0", "root-rb0"]
    assert shape(error.failure) == child_rolled_back("root", "0", simulated("child"))
    assert await shop.states(handle) == {"root": ROLLED_BACK, "child": ROLLED_BACK}


@pytest.mark.everywhere
async def test_cf_10_a_handler_is_called_once_for_an_instance_after_all_its_children(shop: Shop) -> None:
    def declares(name: str, body: Any) -> None:
        shop.saga(name, "C", None, body)

    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("C"), on_child_failure=True)
    for name in ("a", "b", "c"):
        declares(name, fails)
    declares("d", None)

    _, error = await shop.fail("R")

    assert shop.journal.of("root") == ["root-0", "root-hcf0", "root-rb0"]
    at = shop.journal.entries.index("root-hcf0")
    assert sorted(shop.journal.entries[1:at]) == [
        "a-0", "a-1", "a-rb0", "b-0", "b-1", "b-rb0", "c-0", "c-1", "c-rb0", "d-0", "d-1",
    ]  # fmt: skip
    assert sorted(shape(cause.failure) for cause in error.causes) == [simulated(name) for name in ("a", "b", "c")]


async def test_cf_12_q26_context_written_by_a_handler_stays(shop: Shop) -> None:
    seen: list[tuple[str, object]] = []

    def handles(scope: Any, *_: Any) -> None:
        seen.append(("hcf", scope.context.get("calls")))
        scope.context["calls"] = scope.attempt + 1
        if scope.attempt == 1:
            raise RuntimeError(SIMULATED)
        scope.launch("C", None)

    def undo(scope: Any, *_: Any) -> None:
        seen.append(("rb", scope.context.get("calls")))

    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("C"), compensate=undo, on_child_failure=handles)
    shop.saga("child", "C", fails)

    await shop.fail("R")

    assert seen == [("hcf", None), ("hcf", 1), ("rb", 2)]


async def test_cf_14_q44_a_handler_is_told_the_iteration_whose_children_failed(shop: Shop) -> None:
    numbers: list[tuple[str, int, int]] = []

    def loops(scope: Any, _: Any) -> Any:
        numbers.append(("step", scope.iteration, scope.attempt))
        scope.launch("C", scope.iteration)
        return Repeat() if scope.iteration < 2 else None

    def handles(scope: Any, *_: Any) -> None:
        numbers.append(("hcf", scope.iteration, scope.attempt))

    def undo(scope: Any, *_: Any) -> None:
        numbers.append(("rb", scope.iteration, scope.attempt))

    root = shop.app.saga("root", "R")
    shop.step(root, "loop", loops, compensate=undo, on_child_failure=handles)
    shop.step(root, "end", fails)
    shop.saga("child", "C", fails_for(1, 2))

    await shop.fail("R")

    assert numbers == [
        ("step", 0, 0),
        ("step", 1, 0),
        ("hcf", 1, 0),
        ("step", 2, 0),
        ("hcf", 2, 0),
        ("rb", 2, 0),
        ("rb", 1, 0),
        ("rb", 0, 0),
    ]


async def test_q2_a_handled_failure_does_not_come_back(shop: Shop) -> None:
    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("C"), on_child_failure=nothing)
    shop.step(root, "1", launches("D"), on_child_failure=True)
    shop.step(root, "2", raises("later"), on_child_failure=True)
    shop.saga("child", "C", fails)
    shop.saga("other", "D", None)

    _, error = await shop.fail("R")

    assert shop.journal == [
        "root-0", "child-0", "root-hcf0", "root-1", "other-0", "root-2", "other-rb0", "root-rb1", "root-rb0",
    ]  # fmt: skip
    assert shape(error.failure) == simulated("root", "later")


@pytest.mark.everywhere
async def test_q2_only_failures_of_what_the_handler_emitted_call_it_again(shop: Shop) -> None:
    delivered: list[tuple[str, ...]] = []

    def handles(scope: Any, _: Any, error: Any) -> None:
        delivered.append(tuple(cause.message for cause in error.causes))
        if scope.attempt == 0:
            scope.launch("D", None)

    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("C"), on_child_failure=handles)
    shop.step(root, "1")
    shop.saga("child", "C", raises("original"))
    shop.saga("other", "D", raises("of the handler"))

    await shop.run("R")

    assert delivered == [("original",), ("of the handler",)]
    assert shop.journal.of("root") == ["root-0", "root-hcf0", "root-hcf0", "root-1"]


async def test_q3_after_a_handled_failure_only_what_succeeded_is_rolled_back(shop: Shop) -> None:
    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("C"), on_child_failure=launches("D"))
    shop.step(root, "1", fails)
    shop.saga("failed", "C", None, fails)
    shop.saga("fine", "C", None)
    shop.saga("emitted", "D", None)

    handle, _ = await shop.fail("R")

    assert shop.journal.of("root", "fine", "emitted") == [
        "root-0", "fine-0", "root-hcf0", "emitted-0", "root-1", "emitted-rb0", "fine-rb0", "root-rb0",
    ]  # fmt: skip
    assert shop.journal.of("failed") == ["failed-0", "failed-1", "failed-rb0"]
    assert shape((await shop.only(handle, "failed")).failure) == simulated("failed")
    assert shape((await shop.only(handle, "fine")).failure) == parent_said_so("root", simulated("root"))


@pytest.mark.everywhere
async def test_r6_a_handled_failure_stops_where_it_is_handled(shop: Shop) -> None:
    shop.saga("root", "R", launches("C"), None)
    child = shop.app.saga("child", "C")
    shop.step(child, "0", launches("G"), on_child_failure=nothing)
    shop.saga("gc", "G", fails)

    handle = await shop.run("R")

    assert shop.journal == ["root-0", "child-0", "gc-0", "child-hcf0", "root-1"]
    assert await shop.states(handle) == {"root": COMMITTED, "child": COMMITTED, "gc": ROLLED_BACK}
