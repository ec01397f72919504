"""Q1, Q22, Q75: the other children of a step when one has failed, and the order in which they are undone."""

from typing import Any

import pytest

from scoop_outbox import DefinitionError, DistributedError, RunState, Saga
from tests.scenarios.shop import LONG, Gate, Shop, fails_when, launches, order, raises
from tests.waiting import until


@pytest.mark.everywhere
async def test_q22_the_others_give_up_when_one_has_failed(shop: Shop) -> None:
    gate = Gate()
    handled: list[Any] = []

    def handles(_: Any, __: Any, error: Any) -> None:
        handled.append(error.failure)
        raise error

    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("A", "B"), fail_fast=True, on_child_failure=handles)
    shop.saga("fails", "A", fails_when(lambda: gate.entered))
    shop.saga("other", "B", None, gate, None)

    async with shop.running():
        handle = await shop.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        await until(lambda: _is_told(shop, handle), LONG)
        gate.open = True
        with pytest.raises(DistributedError):
            await handle.wait(LONG)

    assert [entry for entry in shop.journal.entries if not entry.startswith("fails")] == [
        *("root-0", "other-0", "other-1", "other-rb0", "root-hcf0", "root-rb0"),
    ]
    (failure,) = handled
    assert [cause.type for cause in failure.causes] == ["RuntimeError", "GaveUp"]
    assert [cause.type for cause in failure.causes[1].causes] == ["SiblingFailed"]
    assert failure.causes[1].causes[0].message == "saga 'fails' failed: RuntimeError"


async def _is_told(shop: Shop, handle: Any) -> bool:
    """Whether the request of the parent has reached the sibling."""
    (other,) = await shop.runs(handle, "other")
    with_requests = await shop.ask("select target from scoop_outbox.request where target = %s", other.id)
    return bool(with_requests)


async def test_q22_a_handler_may_go_on_all_the_same(mixed: Shop) -> None:
    def handles(*_: object) -> None: ...

    root = mixed.app.saga("root", "R")
    mixed.step(root, "0", launches("A", "B"), fail_fast=True, on_child_failure=handles)
    mixed.step(root, "1")
    mixed.saga("fails", "A", raises("no"))
    mixed.saga("other", "B", None)

    handle = await mixed.run("R")

    order(mixed.journal, "root-0", "root-hcf0", "root-1")
    assert (await mixed.only(handle, "root")).state is RunState.COMMITTED


@pytest.mark.everywhere
async def test_q1_what_a_step_has_launched_is_undone_in_reverse(shop: Shop) -> None:
    def launches_all(scope: Any, _: Any) -> None:
        for number in range(4):
            scope.launch("C", number)

    def notes(_: Any, message: Any, __: Any) -> None:
        shop.journal(f"undo-{message.payload}")

    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches_all, rollback_children="reverse")
    shop.step(root, "1", raises("no"))
    child = shop.app.saga("child", "C")
    shop.step(child, "0", compensate=notes)

    await shop.fail("R")

    assert shop.journal.of("undo") == ["undo-3", "undo-2", "undo-1", "undo-0"]
    assert shop.journal.entries[-1] == "root-rb0"


async def test_q75_what_was_launched_before_one_that_is_stuck_is_left(mixed: Shop) -> None:
    def launches_all(scope: Any, _: Any) -> None:
        for number in range(3):
            scope.launch("C", number)

    def undoes(_: Any, message: Any, __: Any) -> None:
        mixed.journal(f"undo-{message.payload}")
        if message.payload == 1:
            raise RuntimeError("stuck")

    root = mixed.app.saga("root", "R")
    mixed.step(root, "0", launches_all, rollback_children="reverse")
    mixed.step(root, "1", raises("no"))
    child = mixed.app.saga("child", "C")
    mixed.step(child, "0", compensate=undoes)

    handle, _ = await mixed.fail("R")

    assert mixed.journal.of("undo") == ["undo-2", "undo-1"]
    assert sorted(run.state for run in await mixed.runs(handle, "child")) == [
        RunState.COMMITTED,
        RunState.ROLLBACK_FAILED,
        RunState.ROLLED_BACK,
    ]


def test_an_order_that_is_unknown_is_refused() -> None:
    with pytest.raises(DefinitionError, match="rollback_children='backwards' is unknown"):
        Saga("s", "t").add_step("0", lambda scope, message: None, rollback_children="backwards")  # type: ignore[arg-type]
