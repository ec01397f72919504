"""Q6, Q10: a person says that a run stays as it is, and that nobody waits for it any more."""

from typing import Any

from scoop_outbox import (
    Answer,
    RunState,
)
from tests.scenarios.conftest import MakeShop
from tests.scenarios.healing import ROLLBACK_FAILED, ROLLED_BACK, Broken, ends, loses_its_connection, told
from tests.scenarios.rollback_helpers import (
    fails,
)
from tests.scenarios.shop import LONG, Shop, launches, raises


async def test_q6_q10_what_is_abandoned_stays_as_it_is_and_its_parent_may_go_on(mixed: Shop) -> None:
    delivered: list[Any] = []

    def handles(_: Any, __: Any, error: Any) -> None:
        delivered.append(error)
        if len(delivered) == 1:
            raise error

    root = mixed.saga("root", "R", None)
    mixed.step(root, "1", launches("C"), on_child_rollback_failure=handles)
    mixed.step(root, "2", fails)
    mixed.step(mixed.saga("child", "C", None), "1", compensate=raises("rb boom"))

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await told(handle)
        child, run = await mixed.only(handle, "child"), await mixed.only(handle, "root")
        assert await mixed.app.abandon(child.id, note="lost") is Answer.ACCEPTED
        assert await mixed.app.abandon(child.id) is Answer.ALREADY_REQUESTED
        assert await mixed.app.retry(child.id) is Answer.ABANDONED
        assert await mixed.app.skip(child.id) is Answer.ABANDONED
        assert (await mixed.only(handle, "root")).state is ROLLBACK_FAILED
        # Nothing is left to be retried below: its own phase is, and its handler may do better now.
        assert await mixed.app.retry(run.id) is Answer.ACCEPTED
        await ends(mixed, handle, "root", ROLLED_BACK)
        assert (await mixed.only(handle, "child")).state is ROLLBACK_FAILED

    assert mixed.journal.entries[-3:] == ["root-hcrf1", "root-rb1", "root-rb0"]
    assert len(delivered) == 2


async def test_q6_a_parked_run_has_nothing_to_skip_before_it_rolls_back_and_can_be_abandoned(
    make_shop: MakeShop, database_url: str
) -> None:
    shop = make_shop("blocking")
    shop.saga("root", "R", None, launches("C"))
    shop.saga("child", "C", None, loses_its_connection(database_url, []))

    async with shop.running(max_interruptions=2):
        handle = await shop.app.launch("R", None)
        run = await ends(shop, handle, "child", RunState.PARKED)
        assert await shop.app.skip(run.id) is Answer.NOT_ROLLING_BACK
        assert await shop.app.abandon(run.id, note="lost", source="anna") is Answer.ACCEPTED
        assert await shop.app.abandon(run.id) is Answer.ALREADY_REQUESTED
        error = await told(handle)

    # To its parent it is a child that could not be rolled back; nothing of it was.
    assert "child-rb0" not in shop.journal.entries
    assert await shop.states(handle) == dict.fromkeys(("root", "child"), ROLLBACK_FAILED)
    run = await shop.only(handle, "child")
    assert run.abandoned
    assert run.failure is not None
    assert (run.failure.type, run.failure.message, run.failure.source) == ("RunAbandoned", "lost", "anna")
    assert [cause.type for cause in error.failure.causes] == ["RunAbandoned"]


async def test_q6_a_part_that_was_abandoned_counts_as_undone_when_the_whole_is(mixed: Shop) -> None:
    broken = Broken()
    mixed.saga("root", "R", launches("C"))
    mixed.step(mixed.app.saga("child", "C"), "0", compensate=broken)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await handle.wait(LONG)
        child = await mixed.only(handle, "child")
        assert (await mixed.app.rollback(child.id)).answer is Answer.ACCEPTED
        await ends(mixed, handle, "child", ROLLBACK_FAILED)
        assert (await mixed.app.rollback(handle.id)).answer is Answer.REFUSED_ROLLBACK_FAILED
        assert await mixed.app.abandon(child.id) is Answer.ACCEPTED
        assert (await mixed.app.rollback(handle.id)).answer is Answer.ACCEPTED
        await ends(mixed, handle, "root", ROLLED_BACK)

    assert mixed.journal == ["root-0", "child-0", "child-rb0", "root-rb0"]
