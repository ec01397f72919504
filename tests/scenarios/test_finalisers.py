"""TF: what is called however a step is left, exactly once for each execution that has committed or failed."""

from typing import Any

import pytest

from scoop_outbox import Answer, DefinitionError, DistributedError, Handle, Repeat, Retry, RunState, Saga
from tests.scenarios.cancelling import FEELZ, cancelled_at
from tests.scenarios.shop import COLOURS, LONG, Gate, Shop, launches, order, raises
from tests.waiting import until

each_colour = pytest.mark.parametrize("colour", COLOURS[:2], indirect=True)
ENOUGH = 3.0
"""Seconds in which a step begins, however busy the machine is, and after which what is executed is late."""
TWICE = Retry(attempts=2, backoff=0.01)


@pytest.mark.everywhere
async def test_tf_01_it_is_called_behind_the_children_and_before_the_next_step(shop: Shop) -> None:
    root = shop.app.saga("root", "R")
    shop.step(root, "try", launches("C"), finally_=launches("F"))
    shop.step(root, "end")
    shop.saga("child", "C", None)
    shop.saga("finally", "F", None)

    handle = await shop.run("R")

    assert shop.journal == ["root-try", "child-0", "root-fintry", "finally-0", "root-end"]
    run = await shop.only(handle, "root")
    assert [(step.kind, step.undoes) for step in run.steps] == [("step", None), ("finaliser", 1), ("step", None)]


@each_colour
async def test_tf_02_in_the_transaction_of_a_step_that_fails_it_is_undone_with_it(shop: Shop) -> None:
    root = shop.app.saga("root", "R")
    shop.step(root, "try", raises("no"), finally_=launches("F"), finally_transaction="step")
    shop.saga("finally", "F", None)

    handle, error = await shop.fail("R")

    assert shop.journal == ["root-try", "root-fintry"]
    assert await shop.runs(handle, "finally") == []
    assert error.message == "no"


@each_colour
async def test_tf_02_what_it_raises_there_has_the_failure_of_the_step_as_its_cause(shop: Shop) -> None:
    root = shop.app.saga("root", "R")
    shop.step(root, "try", raises("no"), finally_=raises("worse"), finally_transaction="step")

    _, error = await shop.fail("R")

    assert error.message == "worse"
    assert [cause.message for cause in error.causes] == ["no"]


@pytest.mark.one_home("it looks at a table of its own in one database")
@pytest.mark.everywhere
async def test_q51_what_it_does_for_a_step_that_has_failed_stays(shop: Shop) -> None:
    def writes(scope: Any, _: Any) -> Any:
        yield scope.connection.execute("create table written ()")
        scope.launch("F", None)

    root = shop.app.saga("root", "R")
    shop.step(root, "before")
    shop.step(root, "try", raises("no"), finally_=writes)
    shop.saga("finally", "F", None)

    handle, error = await shop.fail("R")

    assert shop.journal == ["root-before", "root-try", "root-fintry", "finally-0", "root-rbbefore"]
    assert error.message == "no"
    assert await shop.ask("select count(*) from written") == [(0,)]
    assert (await shop.only(handle, "finally")).state is RunState.COMMITTED


@pytest.mark.everywhere
async def test_tf_03_when_a_child_fails_it_is_called_before_anything_is_undone(shop: Shop) -> None:
    root = shop.app.saga("root", "R")
    shop.step(root, "try", launches("C", "S"), finally_=launches("F"))
    shop.step(root, "end")
    shop.saga("child", "C", raises("no"))
    shop.saga("sibling", "S", None)
    shop.saga("finally", "F", None)

    handle, error = await shop.fail("R")

    order(shop.journal, "root-try", "child-0", "root-fintry", "finally-0", "sibling-rb0", "root-rbtry")
    assert "root-end" not in shop.journal.entries
    assert error.root_cause.message == "no"
    assert (await shop.only(handle, "finally")).state is RunState.COMMITTED


async def test_tf_03_a_failure_that_was_handled_comes_before_it(mixed: Shop) -> None:
    root = mixed.app.saga("root", "R")
    mixed.step(root, "try", launches("C"), on_child_failure=launches("H"), finally_=True)
    mixed.step(root, "end")
    mixed.saga("child", "C", raises("no"))
    mixed.saga("handler", "H", None)

    await mixed.run("R")

    assert mixed.journal == ["root-try", "child-0", "root-hcftry", "handler-0", "root-fintry", "root-end"]


async def test_tf_04_a_later_failure_does_not_call_it_again_and_undoes_what_it_launched(shop: Shop) -> None:
    root = shop.app.saga("root", "R")
    shop.step(root, "start")
    shop.step(root, "try", finally_=launches("F"))
    shop.step(root, "end", raises("no"))
    shop.saga("finally", "F", None)

    await shop.fail("R")

    assert shop.journal == [
        *("root-start", "root-try", "root-fintry", "finally-0", "root-end"),
        *("finally-rb0", "root-rbtry", "root-rbstart"),
    ]


@pytest.mark.everywhere
async def test_tf_05_when_its_own_child_fails_it_is_not_called_again(shop: Shop) -> None:
    root = shop.app.saga("root", "R")
    shop.step(root, "start")
    shop.step(root, "try", finally_=launches("F"), on_child_failure=True)
    shop.saga("finally", "F", raises("no"))

    _, error = await shop.fail("R")

    assert shop.journal == ["root-start", "root-try", "root-fintry", "finally-0", "root-rbtry", "root-rbstart"]
    assert error.root_cause.message == "no"


async def test_tf_06_one_that_fails_is_called_again_before_anything_is_undone(shop: Shop) -> None:
    root = shop.app.saga("root", "R")
    calls: list[bool] = []

    def fails_once(*_: object) -> None:
        calls.append(True)
        if len(calls) == 1:
            raise RuntimeError("not yet")

    shop.step(root, "start")
    shop.step(root, "try", finally_=fails_once)
    shop.step(root, "end")

    handle, error = await shop.fail("R")

    assert shop.journal == ["root-start", "root-try", "root-fintry", "root-fintry", "root-rbtry", "root-rbstart"]
    assert error.message == "not yet"
    run = await shop.only(handle, "root")
    assert [step.state for step in run.steps if step.kind == "finaliser"] == ["failed", "committed"]


async def test_tf_06_one_that_fails_is_tried_again_as_its_step_is(shop: Shop) -> None:
    calls: list[bool] = []

    def fails_once(*_: object) -> None:
        calls.append(True)
        if len(calls) == 1:
            raise RuntimeError("not yet")

    root = shop.app.saga("root", "R")
    shop.step(root, "try", finally_=fails_once, retry=TWICE)
    shop.step(root, "end")

    await shop.run("R")

    assert shop.journal == ["root-try", "root-fintry", "root-fintry", "root-end"]


async def test_q27_each_failed_attempt_of_a_step_has_its_own(shop: Shop) -> None:
    attempts: list[tuple[int, str]] = []

    def fails_once(scope: Any, _: Any) -> None:
        attempts.append((scope.attempt, scope.idempotency_key))
        if scope.attempt == 0:
            raise RuntimeError("not yet")

    root = shop.app.saga("root", "R")
    shop.step(root, "try", fails_once, finally_=launches("F"), retry=TWICE)
    shop.step(root, "end")
    shop.saga("finally", "F", None)

    handle = await shop.run("R")

    assert shop.journal == [
        *("root-try", "root-fintry", "finally-0"),
        *("root-try", "root-fintry", "finally-0", "root-end"),
    ]
    assert [attempt for attempt, _ in attempts] == [0, 1]
    assert len({key for _, key in attempts}) == 1  # it is one execution to the world outside
    run = await shop.only(handle, "root")
    assert [(step.step, step.kind, step.state) for step in run.steps] == [
        ("try", "step", "failed"),
        ("try", "finaliser", "committed"),
        ("try", "step", "committed"),
        ("try", "finaliser", "committed"),
        ("end", "step", "committed"),
    ]


async def test_q27_failures_of_a_step_and_of_its_finaliser_count_together(shop: Shop) -> None:
    root = shop.app.saga("root", "R")
    shop.step(
        *(root, "try", raises("body")),
        finally_=raises("finaliser"),
        retry=Retry(attempts=3, backoff=0.01),
        compensate_retry=TWICE,
    )

    handle, error = await shop.fail("R")

    # Two failures of the three that it has are the finaliser's; then it is tried twice while the run rolls back.
    assert shop.journal == ["root-try", *["root-fintry"] * 4]
    assert error.message == "finaliser"
    assert (await shop.only(handle, "root")).state is RunState.ROLLBACK_FAILED


async def test_tf_07_a_child_has_its_own(mixed: Shop) -> None:
    root = mixed.app.saga("root", "R")
    mixed.step(root, "0", finally_=True)
    mixed.step(root, "1", launches("C"))
    child = mixed.app.saga("child", "C")
    mixed.step(child, "0", finally_=True)

    await mixed.run("R")

    assert mixed.journal == ["root-0", "root-fin0", "root-1", "child-0", "child-fin0"]


async def test_tf_08_each_pass_of_a_loop_has_its_own(mixed: Shop) -> None:
    def repeats(scope: Any, _: Any) -> Any:
        return Repeat() if scope.iteration == 0 else None

    root = mixed.app.saga("root", "R")
    mixed.step(root, "0", repeats, finally_=True)

    await mixed.run("R")

    assert mixed.journal == ["root-0", "root-fin0", "root-0", "root-fin0"]


async def test_tf_09_it_is_not_called_again_when_the_parent_fails_behind_its_own(mixed: Shop) -> None:
    root = mixed.app.saga("root", "R")
    mixed.step(root, "0", launches("C"))
    mixed.step(root, "1", raises("no"), finally_=True)
    child = mixed.app.saga("child", "C")
    mixed.step(child, "0", finally_=True)

    await mixed.fail("R")

    assert mixed.journal == ["root-0", "child-0", "child-fin0", "root-1", "root-fin1", "child-rb0", "root-rb0"]


@each_colour
async def test_tf_10_what_it_wrote_in_the_transaction_of_the_step_is_gone(shop: Shop) -> None:
    def writes(scope: Any, _: Any) -> Any:
        yield scope.connection.execute("create table written ()")

    root = shop.app.saga("root", "R")
    shop.step(root, "try", raises("no"), finally_=writes, finally_transaction="step")

    await shop.fail("R")

    assert shop.journal == ["root-try", "root-fintry"]
    assert await shop.ask("select to_regclass('written')") == [(None,)]


@pytest.mark.everywhere
async def test_q27_a_step_that_is_discarded_by_a_cancellation_has_its_own(shop: Shop) -> None:
    gate = Gate()
    root = shop.app.saga("root", "R")
    shop.step(root, "start")
    shop.step(root, "try", gate, finally_=launches("F"))
    shop.saga("finally", "F", None)

    handle, _ = await cancelled_at(gate, shop)

    assert shop.journal == ["root-start", "root-try", "root-fintry", "finally-0", "root-rbstart"]
    run = await shop.only(handle, "root")
    assert [(step.kind, step.state) for step in run.steps] == [
        ("step", "compensated"),
        ("step", "failed"),
        ("finaliser", "committed"),
        ("compensation", "committed"),
    ]


async def test_q27_what_it_launched_is_not_cancelled(shop: Shop) -> None:
    gate = Gate()
    root = shop.app.saga("root", "R")
    shop.step(root, "try", finally_=launches("F"))
    shop.step(root, "end")
    shop.saga("finally", "F", gate, None)

    await cancelled_at(gate, shop)

    assert shop.journal == [
        "root-try",
        "root-fintry",
        "finally-0",
        "finally-1",
        "finally-rb1",
        "finally-rb0",
        "root-rbtry",
    ]


async def test_q27_one_that_waits_for_a_child_is_left_to_the_cancellation(shop: Shop) -> None:
    gate = Gate()
    root = shop.app.saga("root", "R")
    shop.step(root, "try", launches("C"), finally_=True)
    shop.saga("child", "C", gate)

    await cancelled_at(gate, shop)

    assert shop.journal.of("root") == ["root-try", "root-fintry", "root-rbtry"]


@pytest.mark.parametrize("verb", ["retry", "skip"])
async def test_q6_a_run_whose_finaliser_fails_is_stuck_until_somebody_decides(mixed: Shop, verb: str) -> None:
    broken = True

    def fails(*_: object) -> None:
        if broken:
            raise RuntimeError("broken")

    root = mixed.app.saga("root", "R")
    mixed.step(root, "start")
    mixed.step(root, "try", raises("no"), finally_=fails)

    handle, error = await mixed.fail("R")
    assert error.message == "broken"
    stuck = await mixed.only(handle, "root")
    assert stuck.state is RunState.ROLLBACK_FAILED
    broken = False
    async with mixed.running():
        if verb == "retry":
            assert await mixed.app.retry(stuck.id) is Answer.ACCEPTED
        else:
            assert await mixed.app.skip(stuck.id, note="cleaned up by hand") is Answer.ACCEPTED
        with pytest.raises(DistributedError, match="no"):
            await handle.wait(LONG)

    again = ["root-fintry"] if verb == "retry" else []
    assert mixed.journal == ["root-start", "root-try", "root-fintry", *again, "root-rbstart"]


@pytest.mark.parametrize("verb", ["retry", "skip"])
async def test_q78_what_it_launched_while_rolling_back_is_healed(mixed: Shop, verb: str) -> None:
    broken = True

    def fails(*_: object) -> None:
        if broken:
            raise RuntimeError("broken")

    root = mixed.app.saga("root", "R")
    mixed.step(root, "start")
    mixed.step(root, "try", raises("no"), finally_=launches("F"))
    mixed.saga("finally", "F", fails)

    handle, error = await mixed.fail("R")
    assert error.root_cause.message == "broken"
    stuck = await mixed.only(handle, "root")
    assert stuck.state is RunState.ROLLBACK_FAILED
    broken = False
    async with mixed.running():
        if verb == "retry":
            assert await mixed.app.retry(stuck.id) is Answer.ACCEPTED
        else:
            assert await mixed.app.skip(stuck.id, note="cleaned up by hand") is Answer.ACCEPTED
        with pytest.raises(DistributedError, match="no"):
            await handle.wait(LONG)

    again = ["root-fintry", "finally-0"] if verb == "retry" else []
    assert mixed.journal == ["root-start", "root-try", "root-fintry", "finally-0", *again, "root-rbstart"]


async def _cancels(shop: Shop, handle: Handle, gate: Gate) -> None:
    await until(lambda: gate.entered, LONG)
    assert await shop.app.cancel(handle.id, **FEELZ) is Answer.ACCEPTED
    gate.open = True


@pytest.mark.parametrize("left", ["committed", "raised", "below", "cancelled", "cancelled below", "late"])
async def test_promise_11_it_is_called_once_however_its_step_is_left(mixed: Shop, left: str) -> None:
    gate = Gate()

    def waits(scope: Any, _: Any) -> Any:
        if left in ("below", "cancelled below"):
            scope.launch("C", None)
        elif left == "raised":
            raise RuntimeError("no")
        elif left in ("cancelled", "late"):
            yield from gate()

    root = mixed.app.saga("root", "R")
    mixed.step(root, "try", waits, finally_=True)
    mixed.saga("child", "C", gate if left == "cancelled below" else raises("no"))

    async with mixed.running():
        handle = await mixed.app.launch("R", None, timeout=ENOUGH if left == "late" else None)
        if left.startswith("cancelled"):
            await _cancels(mixed, handle, gate)
        elif left == "late":
            await until(lambda: gate.entered, LONG)
            await until(lambda: _is_over(mixed, handle), LONG)
            gate.open = True
        if left == "committed":
            await handle.wait(LONG)
        else:
            with pytest.raises(DistributedError):
                await handle.wait(LONG)

    assert mixed.journal.count("root-fintry") == 1


@pytest.mark.parametrize("finaliser", ["quiet", "launching"])
async def test_q52_the_next_step_finds_the_results_of_the_children_and_not_of_the_finaliser(
    shop: Shop, finaliser: str
) -> None:
    seen: list[list[Any]] = []

    def sees(scope: Any, _: Any) -> None:
        seen.append([one.value for one in scope.results])
        if scope.attempt == 0:
            raise RuntimeError("once more")

    def leaves(scope: Any, message: Any) -> None:
        scope.set_result(message.topic)

    clean_up = launches("F") if finaliser == "launching" else True
    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("C"), finally_=clean_up)
    shop.step(root, "1", sees, finally_=clean_up, retry=TWICE)
    shop.saga("child", "C", leaves)
    shop.saga("finally", "F", leaves)

    await shop.run("R")

    assert seen == [["C"], ["C"]]


def _refused_at_the_commit(scope: Any, _: Any) -> Any:
    yield scope.connection.execute("create table once (a int unique deferrable initially deferred)")
    yield scope.connection.execute("insert into once values (1), (1)")


def _takes_too_long(scope: Any, _: Any) -> Any:
    yield scope.connection.execute("select pg_sleep(60)")


@each_colour
@pytest.mark.parametrize("transaction", ["separate", "step"])
@pytest.mark.parametrize("body", [_refused_at_the_commit, _takes_too_long])
async def test_q27_a_step_whose_transaction_is_gone_has_its_own(shop: Shop, transaction: str, body: Any) -> None:
    root = shop.app.saga("root", "R")
    shop.step(root, "try", body, finally_=True, finally_transaction=transaction, timeout=0.5)

    await shop.fail("R")

    assert shop.journal == ["root-try", "root-fintry"]


async def test_q51_what_was_launched_for_a_failed_attempt_stays(mixed: Shop) -> None:
    root = mixed.app.saga("root", "R")
    mixed.step(root, "try", raises("no"), finally_=launches("F"), retry=TWICE)
    mixed.saga("finally", "F", None)

    await mixed.fail("R")

    assert mixed.journal == [*["root-try", "root-fintry", "finally-0"] * 2]


async def test_q27_what_it_launched_is_not_late(shop: Shop) -> None:
    gate = Gate()
    root = shop.app.saga("root", "R")
    shop.step(root, "try", finally_=launches("F"))
    shop.saga("finally", "F", gate, None)

    async with shop.running():
        handle = await shop.app.launch("R", None, timeout=ENOUGH)
        await until(lambda: gate.entered, LONG)
        await until(lambda: _is_over(shop, handle), LONG)
        gate.open = True
        with pytest.raises(DistributedError):
            await handle.wait(LONG)

    assert shop.journal.entries[:4] == ["root-try", "root-fintry", "finally-0", "finally-1"]


async def _is_over(shop: Shop, handle: Handle) -> bool:
    late = "select from scoop_outbox.run where message_id = %s and created_at < clock_timestamp() - interval '3.5 s'"
    return bool(await shop.ask(late, handle.id))


async def test_q27_a_finaliser_that_went_from_the_code_is_not_missed(mixed: Shop) -> None:
    gate = Gate()
    root = mixed.app.saga("root", "R")
    step = mixed.step(root, "try", launches("C"), finally_=True)
    mixed.step(root, "end")
    mixed.saga("child", "C", gate)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        step.finaliser = None
        gate.open = True
        await handle.wait(LONG)

    assert mixed.journal == ["root-try", "child-0", "root-end"]


def test_what_it_cannot_be_is_refused() -> None:
    saga = Saga("s", "t")
    with pytest.raises(DefinitionError, match="finally_transaction='own' is unknown"):
        saga.add_step("0", lambda scope, message: None, finally_transaction="own")  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match=r"finaliser of step '1'.* is called with \(scope, message\)"):
        saga.add_step("1", lambda scope, message: None, finally_=lambda scope: None)  # type: ignore[arg-type]

    async def finaliser(scope: Any, message: Any) -> None: ...

    with pytest.raises(DefinitionError, match="make both a def, or both an async def"):
        saga.add_step("2", lambda scope, message: None, finally_=finaliser, finally_transaction="step")
