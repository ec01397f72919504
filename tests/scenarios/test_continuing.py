"""Q7, Q74, Q75: a rollback that goes on past what cannot be undone."""

from typing import Any

import pytest

from scoop_outbox import Answer, DefinitionError, DistributedError, Handle, RunState
from tests.scenarios.shop import LONG, Shop, launches, raises
from tests.waiting import until


class Broken:
    """Compensations that fail as long as they are broken."""

    def __init__(self) -> None:
        self.broken = True

    def __call__(self, *_: object) -> None:
        if self.broken:
            raise RuntimeError("broken")


def of(error: DistributedError) -> list[str | None]:
    """What could not be undone, in order."""
    return [cause.message for cause in error.causes]


@pytest.mark.everywhere
async def test_q74_the_rest_is_rolled_back_all_the_same(shop: Shop) -> None:
    root = shop.app.saga("root", "R", rollback_failure="continue")
    shop.step(root, "0", launches("C"))
    shop.step(root, "1", compensate=raises("first"))
    shop.step(root, "2", compensate=raises("second"))
    shop.step(root, "3", raises("no"))
    shop.saga("child", "C", None)

    handle, error = await shop.fail("R")

    assert shop.journal == [
        *("root-0", "child-0", "root-1", "root-2", "root-3"),
        *("root-rb2", "root-rb1", "child-rb0", "root-rb0"),
    ]
    assert (error.type, error.message, of(error)) == (
        "RollbackFailed",
        "several parts could not be undone",
        ["second", "first"],
    )
    run = await shop.only(handle, "root")
    assert run.state is RunState.ROLLBACK_FAILED
    assert run.rollback_reason is not None
    assert run.rollback_reason.message == "no"
    steps = [step.state for step in run.steps if step.kind == "step"]
    assert steps == ["compensated", "committed", "committed", "failed"]


async def test_q7_by_itself_a_rollback_stops(mixed: Shop) -> None:
    root = mixed.app.saga("root", "R")
    mixed.step(root, "0")
    mixed.step(root, "1", compensate=raises("first"))
    mixed.step(root, "2", raises("no"))

    _, error = await mixed.fail("R")

    assert mixed.journal == ["root-0", "root-1", "root-2", "root-rb1"]
    assert error.message == "first"


async def test_q74_a_step_whose_child_is_stuck_is_left_and_those_before_are_undone(mixed: Shop) -> None:
    root = mixed.app.saga("root", "R", rollback_failure="continue")
    mixed.step(root, "0")
    mixed.step(root, "1", launches("C", "S"))
    mixed.step(root, "2", raises("no"))
    mixed.step(mixed.app.saga("child", "C"), "0", compensate=raises("stuck"))
    mixed.saga("sibling", "S", None)

    handle, error = await mixed.fail("R")

    assert [entry for entry in mixed.journal.entries if "-rb" in entry and "root" in entry] == ["root-rb0"]
    assert mixed.journal.count("sibling-rb0") == 1
    assert error.root_cause.message == "stuck"
    assert (await mixed.only(handle, "root")).state is RunState.ROLLBACK_FAILED


async def test_q75_messages_before_the_one_that_is_stuck_are_rolled_back_too(mixed: Shop) -> None:
    def launches_all(scope: Any, _: Any) -> None:
        for number in range(3):
            scope.launch("C", number)

    def undoes(_: Any, message: Any, __: Any) -> None:
        mixed.journal(f"undo-{message.payload}")
        if message.payload == 1:
            raise RuntimeError("stuck")

    root = mixed.app.saga("root", "R", rollback_failure="continue")
    mixed.step(root, "0", launches_all, rollback_children="reverse")
    mixed.step(root, "1", raises("no"))
    mixed.step(mixed.app.saga("child", "C"), "0", compensate=undoes)

    await mixed.fail("R")

    assert mixed.journal.of("undo") == ["undo-2", "undo-1", "undo-0"]
    assert mixed.journal.of("root") == ["root-0", "root-1"]


async def test_q6_a_retry_undoes_what_was_left_and_nothing_twice(mixed: Shop) -> None:
    first, second = Broken(), Broken()
    root = mixed.app.saga("root", "R", rollback_failure="continue")
    mixed.step(root, "0")
    mixed.step(root, "1", compensate=first)
    mixed.step(root, "2")
    mixed.step(root, "3", compensate=second)
    mixed.step(root, "4", raises("no"))

    handle, _ = await mixed.fail("R")
    run = await mixed.only(handle, "root")
    first.broken = False
    async with mixed.running():
        assert await mixed.app.retry(run.id) is Answer.ACCEPTED
        with pytest.raises(DistributedError, match="broken"):
            await handle.wait(LONG)
    second.broken = False
    async with mixed.running():
        assert await mixed.app.retry(run.id) is Answer.ACCEPTED
        with pytest.raises(DistributedError, match="no"):
            await handle.wait(LONG)

    back = [entry for entry in mixed.journal.entries if "-rb" in entry]
    assert back == ["root-rb3", "root-rb2", "root-rb1", "root-rb0", "root-rb3", "root-rb1", "root-rb3"]
    assert (await mixed.only(handle, "root")).state is RunState.ROLLED_BACK


async def test_q6_what_cannot_be_undone_is_skipped_one_after_the_other(mixed: Shop) -> None:
    root = mixed.app.saga("root", "R", rollback_failure="continue")
    mixed.step(root, "0", compensate=raises("first"))
    mixed.step(root, "1", compensate=raises("second"))
    mixed.step(root, "2", raises("no"))

    handle, _ = await mixed.fail("R")
    run = await mixed.only(handle, "root")
    for message in ("first", "no"):
        async with mixed.running():
            assert await mixed.app.skip(run.id, note="by hand") is Answer.ACCEPTED
            with pytest.raises(DistributedError, match=message):
                await handle.wait(LONG)

    assert (await mixed.only(handle, "root")).state is RunState.ROLLED_BACK


async def test_q78_a_child_that_is_healed_heals_the_run_that_went_on(mixed: Shop) -> None:
    stuck = Broken()
    root = mixed.app.saga("root", "R", rollback_failure="continue")
    mixed.step(root, "0")
    mixed.step(root, "1", launches("C"))
    mixed.step(root, "2", raises("no"))
    mixed.step(mixed.app.saga("child", "C"), "0", compensate=stuck)

    handle, _ = await mixed.fail("R")
    assert [entry for entry in mixed.journal.of("root") if "-rb" in entry] == ["root-rb0"]
    stuck.broken = False
    async with mixed.running():
        assert await mixed.app.retry((await mixed.only(handle, "child")).id) is Answer.ACCEPTED
        await until(lambda: _is_rolled_back(mixed, handle), LONG)
        with pytest.raises(DistributedError, match="no"):
            await handle.wait(LONG)

    assert mixed.journal.of("root")[-1] == "root-rb1"
    assert await mixed.states(handle) == {"root": RunState.ROLLED_BACK, "child": RunState.ROLLED_BACK}


async def _is_rolled_back(shop: Shop, handle: Handle) -> bool:
    return (await shop.only(handle, "root")).state is RunState.ROLLED_BACK


async def test_q74_a_parent_is_told_of_all_that_could_not_be_undone(mixed: Shop) -> None:
    mixed.saga("root", "R", launches("C"), raises("no"))
    child = mixed.app.saga("child", "C", rollback_failure="continue")
    mixed.step(child, "0", compensate=raises("first"))
    mixed.step(child, "1", compensate=raises("second"))

    _, error = await mixed.fail("R")

    (told, *_) = error.causes
    assert [cause.message for cause in told.causes] == ["second", "first"]
    assert "root-rb0" not in mixed.journal.entries


def test_what_else_a_rollback_might_do_is_refused(mixed: Shop) -> None:
    with pytest.raises(DefinitionError, match="rollback_failure='ignore' is unknown"):
        mixed.app.saga("root", "R", rollback_failure="ignore")  # type: ignore[arg-type]
