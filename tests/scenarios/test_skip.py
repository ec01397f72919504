"""Q6: a person says that a compensation counts as done."""

from scoop_outbox import (
    Answer,
    RunState,
)
from tests.scenarios.conftest import MakeShop
from tests.scenarios.healing import ROLLBACK_FAILED, ROLLED_BACK, ends, loses_its_connection, told
from tests.scenarios.rollback_helpers import (
    fails,
)
from tests.scenarios.shop import Shop, launches, raises


async def test_q6_a_skipped_compensation_counts_as_done_and_what_is_below_it_is_undone(shop: Shop) -> None:
    root = shop.saga("root", "R", None)
    shop.step(root, "1", compensate=raises("rb boom"))
    shop.step(root, "2", fails)

    async with shop.running():
        handle = await shop.app.launch("R", None)
        await told(handle)
        run = await shop.only(handle, "root")
        assert await shop.app.skip(run.id, note="refunded by hand", source="anna") is Answer.ACCEPTED
        run = await ends(shop, handle, "root", ROLLED_BACK)
        assert await shop.app.skip(run.id) is Answer.NOTHING_TO_DO

    assert shop.journal == ["root-0", "root-1", "root-2", "root-rb1", "root-rb0"]
    assert [(step.step, step.state) for step in run.steps if step.state == "compensated"] == [
        ("0", "compensated"),
        ("1", "compensated"),
    ]


async def test_q6_children_that_are_skipped_count_as_compensated_and_their_parent_undoes_its_own(mixed: Shop) -> None:
    root = mixed.saga("root", "R", None)
    mixed.step(root, "1", launches("C"))
    mixed.step(root, "2", fails)
    child = mixed.saga("child", "C", None)
    mixed.step(child, "1", compensate=raises("rb boom"))

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await told(handle)
        run = await mixed.only(handle, "root")
        assert await mixed.app.skip(run.id) is Answer.ACCEPTED
        await ends(mixed, handle, "root", ROLLED_BACK)
        # It is nobody's any more, and can still be undone.
        lost = await mixed.only(handle, "child")
        assert lost.state is ROLLBACK_FAILED
        assert await mixed.app.skip(lost.id) is Answer.ACCEPTED
        await ends(mixed, handle, "child", ROLLED_BACK)

    assert mixed.journal == [
        "root-0", "root-1", "child-0", "child-1", "root-2", "child-rb1", "root-rb1", "root-rb0", "child-rb0",
    ]  # fmt: skip


async def test_q6_a_compensation_that_a_run_was_parked_at_is_skipped(make_shop: MakeShop, database_url: str) -> None:
    shop = make_shop("blocking")
    root = shop.saga("root", "R", None)
    shop.step(root, "1", compensate=loses_its_connection(database_url, []))
    shop.step(root, "2", fails)

    async with shop.running(max_interruptions=2):
        handle = await shop.app.launch("R", None)
        run = await ends(shop, handle, "root", RunState.PARKED)
        assert shop.app.skip_sync(run.id, note="by hand") is Answer.ACCEPTED
        run = await ends(shop, handle, "root", ROLLED_BACK)

    assert shop.journal.entries[-1] == "root-rb0"
    assert [(action.kind, action.note, action.source, action.seq) for action in run.actions] == [
        ("skip", "by hand", "shop", 2)
    ]
