"""RB: a failing step rolls everything back that was done, in exact reverse order."""

import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from scoop_outbox import DistributedError, Retry, RunState, StepKind, UnknownMessage
from tests.carriers import Carrier
from tests.scenarios.rollback_helpers import (
    SIMULATED,
    X0,
    X1,
    X2,
    X3,
    after,
    child_rolled_back,
    declare_n_deep,
    fails,
    parent_said_so,
    shape,
    simulated,
)
from tests.scenarios.shop import LONG, Shop, events, launches, order, raises
from tests.waiting import until

ROLLED_BACK = RunState.ROLLED_BACK


class OutOfStock(Exception):
    """A failure of the user's business."""

    class Forever(Exception):
        """One whose qualified name has two parts."""


async def test_rb_01_nothing_of_a_failing_only_step_is_left(shop: Shop) -> None:
    emitted: list[uuid.UUID] = []

    def emits_and_fails(scope: Any, message: Any) -> None:
        emitted.append(scope.launch("C", None))
        raise RuntimeError(SIMULATED)

    root = shop.app.saga("root", "R")
    shop.step(root, "0", emits_and_fails, on_child_failure=True)

    handle, error = await shop.fail("R")

    assert shop.journal == ["root-0"]
    assert await shop.states(handle) == {"root": ROLLED_BACK}
    assert shape(error.failure) == simulated("root")
    with pytest.raises(UnknownMessage):
        await shop.app.status(emitted[0])


async def test_rb_01_what_a_failing_step_emitted_starts_nothing(shop: Shop) -> None:
    def emits_and_fails(scope: Any, message: Any) -> None:
        scope.launch("C", "never")
        raise RuntimeError(SIMULATED)

    def notes(_: Any, message: Any) -> None:
        shop.journal(f"child-{message.payload}")

    shop.saga("root", "R", emits_and_fails)
    shop.saga("child", "C", notes)

    async with shop.running():
        handle = await shop.app.launch("R", None)
        with pytest.raises(DistributedError):
            await handle.wait(LONG)
        await (await shop.app.launch("C", "afterwards")).wait(LONG)

    assert shop.journal == ["root-0", "child-0", "child-afterwards"]


async def test_rb_02_only_what_was_committed_is_compensated(shop: Shop, carrier: Carrier) -> None:
    emitted: list[uuid.UUID] = []

    def emits(scope: Any, message: Any) -> None:
        emitted.append(scope.launch("C", None))

    def emits_and_fails(scope: Any, message: Any) -> None:
        emits(scope, message)
        raise RuntimeError(SIMULATED)

    shop.saga("root", "R", emits, emits_and_fails)

    handle, _ = await shop.fail("R")

    assert shop.journal == ["root-0", "root-1", "root-rb0"]
    assert await events(shop.app, handle) == [
        "root 0 step compensated",
        "root 1 step failed",
        "root 0 compensation committed",
    ]
    assert await shop.states(handle) == {"root": ROLLED_BACK}
    if carrier.url is None:  # otherwise it has gone to the broker, where nobody listens
        assert (await shop.app.message(emitted[0])).topic == "C"
    with pytest.raises(UnknownMessage):
        await shop.app.message(emitted[1])


@pytest.mark.everywhere
async def test_rb_03_a_failing_child_rolls_back_before_its_parent(shop: Shop) -> None:
    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("C"), on_child_failure=True)
    child = shop.app.saga("child", "C")
    shop.step(child, "0", on_child_failure=True)
    shop.step(child, "1", fails, on_child_failure=True)

    handle, error = await shop.fail("R")

    assert shop.journal == ["root-0", "child-0", "child-1", "child-rb0", "root-hcf0", "root-rb0"]
    assert await shop.states(handle) == {"root": ROLLED_BACK, "child": ROLLED_BACK}
    assert await events(shop.app, handle) == [
        "root 0 step compensated",
        "child 0 step compensated",
        "child 1 step failed",
        "child 0 compensation committed",
        "root 0 child_failure_handler failed",
        "root 0 compensation committed",
    ]
    assert shape(error.failure) == child_rolled_back("root", "0", simulated("child"))
    assert shape((await shop.only(handle, "child")).failure) == simulated("child")


async def test_rb_04_children_that_committed_are_rolled_back_by_their_parent(shop: Shop) -> None:
    shop.saga("root", "R", launches("C"), fails)
    shop.saga("child", "C", None, None)

    handle, error = await shop.fail("R")

    assert shop.journal == ["root-0", "child-0", "child-1", "root-1", "child-rb1", "child-rb0", "root-rb0"]
    assert await shop.states(handle) == {"root": ROLLED_BACK, "child": ROLLED_BACK}
    assert shape(error.failure) == simulated("root")
    assert shape((await shop.only(handle, "child")).failure) == parent_said_so("root", simulated("root"))


@pytest.mark.everywhere
async def test_rb_05_n_deep(shop: Shop) -> None:
    declare_n_deep(shop)

    handle, _ = await shop.fail("R")

    assert shop.journal.of("root", "c1", "gc") == [
        "root-0", "root-1", "c1-0", "c1-1", "gc-0", "gc-1", "c1-2", "root-hcf1",
        "c1-rb2", "gc-rb1", "gc-rb0", "c1-rb1", "c1-rb0", "root-rb1", "root-rb0",
    ]  # fmt: skip
    assert shop.journal.of("root", "c2") == [
        "root-0", "root-1", "c2-0", "c2-1", "c2-rb0", "root-hcf1", "root-rb1", "root-rb0",
    ]  # fmt: skip
    assert len(shop.journal.entries) == 18
    assert await shop.states(handle) == dict.fromkeys(("root", "c1", "c2", "gc"), ROLLED_BACK)


async def test_rb_17_the_reason_travels_down_and_grows_by_one_order_a_level(shop: Shop) -> None:
    declare_n_deep(shop)

    handle, error = await shop.fail("R")

    assert shape((await shop.only(handle, "c2")).failure) == X0
    assert shape((await shop.only(handle, "root")).failure) == X1
    assert shape(error.failure) == X1
    assert shape((await shop.only(handle, "c1")).failure) == X2
    assert shape((await shop.only(handle, "gc")).failure) == X3


async def test_rb_06_a_step_that_fails_is_recorded_once(shop: Shop) -> None:
    shop.saga("root", "R", fails)

    handle, _ = await shop.fail("R")

    (run,) = await shop.runs(handle)
    (step,) = run.steps
    assert (step.step, step.kind, step.state, step.attempt) == ("0", StepKind.STEP, "failed", 0)
    assert shape(step.failure) == simulated("root")
    assert run.state is ROLLED_BACK
    assert run.ended_at is not None


@pytest.mark.parametrize("kind", [OutOfStock, OutOfStock.Forever])
async def test_rb_07_the_type_of_a_custom_exception_is_its_qualified_name(mixed: Shop, kind: type[Exception]) -> None:
    mixed.saga("root", "R", raises("no bicycles", kind))

    handle, error = await mixed.fail("R")

    failure = (await mixed.only(handle, "root")).failure
    assert failure is not None
    assert failure.type == f"{__name__}.{kind.__qualname__}"
    assert failure.causes == ()
    assert f"{kind.__qualname__}: no bicycles (service 'shop', saga 'root', step '0')" in str(error)
    assert error.failure == failure


async def test_rb_08_runs_of_messages_launched_together_share_no_transaction(shop: Shop, database_url: str) -> None:
    def publishes(scope: Any, message: Any) -> None:
        scope.launch_on_global_scope("G", message.payload)
        if message.payload == "first":
            raise RuntimeError(SIMULATED)

    def notes(_: Any, message: Any) -> None:
        shop.journal(f"global-{message.payload}")

    shop.saga("root", "R", publishes)
    shop.app.saga("listener", "G").add_step("0", shop.coloured(notes))
    engine = create_async_engine(sa.make_url(database_url).set(drivername="postgresql+psycopg"))

    async with shop.running():
        async with AsyncSession(engine) as session, session.begin():
            first = await shop.app.launch("R", "first", session=session)
            second = await shop.app.launch("R", "second", session=session)
        with pytest.raises(DistributedError):
            await first.wait(LONG)
        await second.wait(LONG)
        # What would have been published earlier has been handled by the time that this has.
        await (await shop.app.launch("G", "last")).wait(LONG)
        await until(lambda: shop.journal.count("global-second"), LONG)
    await engine.dispose()

    assert sorted(shop.journal.of("global")) == ["global-last", "global-second"]


async def test_rb_09_which_step_a_rollback_names(shop: Shop) -> None:
    root = shop.saga("root", "R", None)
    shop.step(root, "1", launches("C", "D"))
    shop.step(root, "2")
    shop.saga("raised", "C", None, fails, None)
    shop.saga("ordered", "D", None, None)

    handle, _ = await shop.fail("R")

    raised = await shop.only(handle, "raised")
    assert [step.step for step in raised.steps if step.state == "failed"] == ["1"]
    # An unhandled child failure is named after the step that emitted.
    run = await shop.only(handle, "root")
    assert run.step == "1"
    assert run.failure is not None
    assert run.failure.message == "Child failure occurred while suspended in step [1]"
    # An order from above is about no step in particular.
    ordered = await shop.only(handle, "ordered")
    assert [step.step for step in ordered.steps if step.state == "failed"] == []
    assert [(step.step, step.kind, step.undoes) for step in ordered.steps] == [
        ("0", StepKind.STEP, None),
        ("1", StepKind.STEP, None),
        ("1", StepKind.COMPENSATION, 2),
        ("0", StepKind.COMPENSATION, 1),
    ]


@pytest.mark.everywhere
async def test_rb_11_children_roll_back_side_by_side_and_their_parent_waits_for_all(shop: Shop) -> None:
    children = ("c1", "c2", "c3")

    def meets(*_: object) -> Iterator[Any]:
        # Returns only if the others are at it as well.
        yield lambda: all(shop.journal.count(f"{child}-rb0") for child in children)
        shop.journal("met")

    shop.saga("root", "R", launches("C1", "C2", "C3"), fails)
    for child in children:
        shop.step(shop.app.saga(child, child.upper()), "0", compensate=meets)

    handle, _ = await shop.fail("R")

    entries = shop.journal.entries
    assert sorted(entries[5:8]) == ["c1-rb0", "c2-rb0", "c3-rb0"]
    assert entries[8:] == ["met"] * 3 + ["root-rb0"]
    assert await shop.states(handle) == dict.fromkeys(("root", *children), ROLLED_BACK)


async def test_rb_11_a_slow_child_keeps_its_parent_from_compensating(shop: Shop) -> None:
    shop.saga("root", "R", launches("C1", "C2"), fails)
    shop.step(shop.app.saga("c1", "C1"), "0", compensate=after(shop, "c2-rb0"))
    shop.step(shop.app.saga("c2", "C2"), "0")

    await shop.fail("R")

    assert shop.journal.entries[-1] == "root-rb0"
    assert shop.journal.count("c1-rb0") == shop.journal.count("c2-rb0") == 1


async def test_rb_12_q23_q46_a_compensation_whose_child_fails_has_failed(shop: Shop) -> None:
    root = shop.saga("root", "R", None)
    shop.step(root, "1", compensate=launches("C"), on_child_failure=True)
    shop.step(root, "2", fails)
    shop.saga("child", "C", None, raises("child boom"))

    handle, error = await shop.fail("R")

    # The next phase of the parent starts only after the child has ended; here there is none.
    assert shop.journal == ["root-0", "root-1", "root-2", "root-rb1", "child-0", "child-1", "child-rb0"]
    assert await shop.states(handle) == {"root": RunState.ROLLBACK_FAILED, "child": ROLLED_BACK}
    failure = shape(error.failure)
    assert failure[:3] == child_rolled_back("root", "Rollback of 1[0]")[:3]
    assert failure.causes[0] == simulated("child", "child boom")


async def test_rb_12_q46_a_compensation_whose_child_fails_is_tried_again(shop: Shop) -> None:
    attempts: list[int] = []

    def emits(scope: Any, message: Any, error: Any) -> None:
        attempts.append(scope.attempt)
        scope.launch("C", scope.attempt)
        scope.launch("D", None)

    def fails_at_first(_: Any, message: Any) -> None:
        if message.payload == 0:
            raise RuntimeError(SIMULATED)

    root = shop.saga("root", "R", None)
    shop.step(root, "1", compensate=emits, compensate_retry=Retry(attempts=2, backoff=0.01))
    shop.step(root, "2", fails)
    shop.saga("child", "C", None, fails_at_first)
    shop.saga("other", "D", None)

    handle, error = await shop.fail("R")

    assert attempts == [0, 1]
    assert shop.journal.of("root", "child") == [
        "root-0", "root-1", "root-2",
        "root-rb1", "child-0", "child-1", "child-rb0",
        "root-rb1", "child-0", "child-1",
        "root-rb0",
    ]  # fmt: skip
    # What a committed child of the first attempt did stays.
    assert shop.journal.of("other") == ["other-0", "other-0"]
    assert await shop.states(handle) == {
        "root": ROLLED_BACK,
        "child": [ROLLED_BACK, RunState.COMMITTED],
        "other": [RunState.COMMITTED, RunState.COMMITTED],
    }
    assert shape(error.failure) == simulated("root")


async def test_rb_12_q46_the_retries_of_a_compensation_whose_child_fails_end(shop: Shop) -> None:
    root = shop.saga("root", "R", None)
    shop.step(root, "1", compensate=launches("C"), compensate_retry=Retry(attempts=3, backoff=0.01))
    shop.step(root, "2", fails)
    shop.saga("child", "C", fails)

    handle, _ = await shop.fail("R")

    assert shop.journal.entries[3:] == ["root-rb1", "child-0"] * 3
    assert (await shop.only(handle, "root")).state is RunState.ROLLBACK_FAILED


@pytest.mark.everywhere
async def test_rb_12_what_a_compensation_emits_is_waited_for(shop: Shop) -> None:
    root = shop.saga("root", "R", None)
    shop.step(root, "1", compensate=launches("C"))
    shop.step(root, "2", fails)
    shop.saga("child", "C", launches("G"), None)
    shop.saga("gc", "G", None)

    handle, _ = await shop.fail("R")

    assert shop.journal.entries[3:] == ["root-rb1", "child-0", "gc-0", "child-1", "root-rb0"]
    assert await shop.states(handle) == {"root": ROLLED_BACK, "child": RunState.COMMITTED, "gc": RunState.COMMITTED}


@pytest.mark.everywhere
async def test_rb_13_no_rollback_reaches_the_global_scope(shop: Shop) -> None:
    launched: list[uuid.UUID] = []

    def emits(scope: Any, message: Any) -> None:
        launched.append(scope.launch_on_global_scope("G", "committed"))

    def emits_and_fails(scope: Any, message: Any) -> None:
        launched.append(scope.launch_on_global_scope("G", "failed"))
        raise RuntimeError(SIMULATED)

    shop.saga("root", "R", emits, emits_and_fails)
    shop.saga("other", "G", None, None)

    async with shop.running():
        handle = await shop.app.launch("R", None)
        with pytest.raises(DistributedError):
            await handle.wait(LONG)
        await shop.app.handle(launched[0]).wait(LONG)
        await (await shop.app.launch("G", "last")).wait(LONG)

    assert shop.journal.of("root") == ["root-0", "root-1", "root-rb0"]
    assert sorted(shop.journal.of("other")) == ["other-0", "other-0", "other-1", "other-1"]
    assert [run.state for run in (await shop.app.status(launched[0])).runs] == [RunState.COMMITTED]
    with pytest.raises(UnknownMessage):
        await shop.app.status(launched[1])


@pytest.mark.everywhere
async def test_rb_14_a_saga_that_launches_itself_unwinds_level_by_level(shop: Shop) -> None:
    def into(scope: Any, message: Any) -> None:
        depth = message.payload
        shop.journal(f"in{depth}")
        if depth < 2:
            scope.launch("R", depth + 1)

    def out(_: Any, message: Any) -> None:
        shop.journal(f"out{message.payload}")
        if message.payload == 1:
            raise RuntimeError(SIMULATED)

    def undo(_: Any, message: Any, __: Any) -> None:
        shop.journal(f"rb{message.payload}")

    saga = shop.app.saga("rec", "R")
    saga.add_step("0", shop.coloured(into), compensate=shop.coloured(undo))
    saga.add_step("1", shop.coloured(out))

    handle, error = await shop.fail("R", 0)

    assert shop.journal == ["in0", "in1", "in2", "out2", "out1", "rb2", "rb1", "rb0"]
    assert shape(error.failure) == child_rolled_back("rec", "0", simulated("rec"))
    assert [len(run.lineage) for run in await shop.runs(handle)] == [1, 2, 3]


async def test_rb_15_q22_siblings_of_a_failed_child_run_to_their_end(shop: Shop) -> None:
    started = time.monotonic()

    def lingers(*_: object) -> Iterator[Any]:
        # Long enough for a failure handler that does not wait to be seen.
        yield lambda: shop.journal.count("a-rb0") and time.monotonic() > started + 0.3

    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("A", "B"), on_child_failure=True)
    shop.saga("a", "A", None, fails)
    shop.saga("b", "B", None, lingers)

    handle, error = await shop.fail("R")

    assert shop.journal.of("root", "b") == ["root-0", "b-0", "b-1", "root-hcf0", "b-rb1", "b-rb0", "root-rb0"]
    order(shop.journal, "root-0", "a-0", "a-1", "a-rb0", "root-hcf0", "root-rb0")
    assert await shop.states(handle) == dict.fromkeys(("root", "a", "b"), ROLLED_BACK)
    assert shape(error.failure) == child_rolled_back("root", "0", simulated("a"))


@pytest.mark.everywhere
async def test_rb_16_cf_10_all_failures_are_delivered_at_once_in_the_order_they_happened(shop: Shop) -> None:
    delivered: list[Any] = []

    def handles(_: Any, __: Any, error: Any) -> None:
        delivered.append(error)
        raise error

    root = shop.app.saga("root", "R")
    # The one that fails second is emitted first.
    shop.step(root, "0", launches("S", "F"), on_child_failure=handles)
    shop.saga("first", "F", None, raises("first boom"))
    second = shop.app.saga("second", "S")
    shop.step(second, "0", after(shop, "first-rb0"))
    shop.step(second, "1", raises("second boom"))

    _, error = await shop.fail("R")

    expected = child_rolled_back("root", "0", simulated("first", "first boom"), simulated("second", "second boom"))
    assert [shape(one.failure) for one in delivered] == [expected]
    assert shape(error.failure) == expected
    assert shop.journal.count("root-hcf0") == 1
    assert [cause.message for cause in error.causes] == ["first boom", "second boom"]


@pytest.mark.everywhere
async def test_r4_r5_every_committed_step_is_compensated_exactly_once_newest_first(shop: Shop) -> None:
    shop.saga("root", "R", launches("C"), None, launches("C"), None, fails)
    shop.saga("child", "C", None)

    await shop.fail("R")

    assert shop.journal == [
        "root-0", "child-0", "root-1", "root-2", "child-0", "root-3", "root-4",
        "root-rb3", "child-rb0", "root-rb2", "root-rb1", "child-rb0", "root-rb0",
    ]  # fmt: skip


async def test_r5_a_step_without_a_compensation_still_has_its_children_rolled_back(shop: Shop) -> None:
    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("C"), compensate=False)
    shop.step(root, "1", fails)
    shop.saga("child", "C", None)

    handle, _ = await shop.fail("R")

    assert shop.journal == ["root-0", "child-0", "root-1", "child-rb0"]
    assert await shop.states(handle) == {"root": ROLLED_BACK, "child": ROLLED_BACK}


async def test_0_5_a_compensation_is_handed_the_failure_as_it_was_stored(shop: Shop) -> None:
    seen: list[Any] = []

    def undo(_: Any, __: Any, error: Any) -> None:
        seen.append(error)

    shop.step(shop.app.saga("root", "R"), "0", compensate=undo)
    shop.step(shop.app.sagas["root"], "1", raises("no bicycles", OutOfStock))

    handle, error = await shop.fail("R")

    (given,) = seen
    assert type(given) is DistributedError
    assert given.type == f"{__name__}.OutOfStock"
    assert given.source.startswith("root[")
    assert given.failure == (await shop.only(handle, "root")).failure == error.failure
