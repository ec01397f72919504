"""RF-09, Q6, Q20: how long a rollback may take that somebody has retried."""

from datetime import UTC, datetime
from typing import Any

from scoop_outbox import Answer, Handle, Retry, RunState
from tests.scenarios.conftest import MakeShop
from tests.scenarios.healing import Broken, ends, loses_its_connection
from tests.scenarios.rollback_helpers import fails
from tests.scenarios.shop import LONG, Shop, launches
from tests.waiting import until

BUDGET = 600.0
SLOWLY = Retry(attempts=2, backoff=BUDGET, max_backoff=BUDGET)


async def expires(shop: Shop) -> None:
    """Let the time pass in which rollbacks have to end."""
    assert await shop.ask(
        "update scoop_outbox.run set rollback_by = clock_timestamp() where rollback_by is not null returning id"
    )
    await shop.ask("update scoop_outbox.mailbox set due = clock_timestamp() returning id")


def left(by: datetime | None) -> float:
    assert by is not None
    return (by - datetime.now(UTC)).total_seconds()


async def test_rf_09_q6_a_retry_begins_a_new_budget_after_something_was_tried(mixed: Shop) -> None:
    broken = Broken()
    root = mixed.saga("root", "R", None)
    mixed.step(root, "1", compensate=broken, compensate_retry=SLOWLY)
    mixed.step(root, "2", fails)

    async with mixed.running():
        handle = await mixed.app.launch("R", None, rollback_timeout=BUDGET)
        await until(lambda: _waits_for_a_retry(mixed), LONG)
        await expires(mixed)
        run = await ends(mixed, handle, "root", RunState.ROLLBACK_FAILED)
        assert await mixed.app.retry(run.id) is Answer.ACCEPTED
        await until(lambda: _waits_for_a_retry(mixed), LONG)
        assert BUDGET / 2 < left((await mixed.only(handle, "root")).rollback_by) <= BUDGET
        await expires(mixed)
        run = await ends(mixed, handle, "root", RunState.ROLLBACK_FAILED)
        assert run.failure is not None
        assert [cause.type for cause in run.failure.causes] == ["MissedRollbackDeadline", "RuntimeError"]
        broken.mended = True
        assert await mixed.app.retry(run.id) is Answer.ACCEPTED
        await ends(mixed, handle, "root", RunState.ROLLED_BACK)

    assert mixed.journal.entries[-4:] == [*["root-rb1"] * 3, "root-rb0"]


async def _waits_for_a_retry(shop: Shop) -> Any:
    return await shop.ask(
        "select from scoop_outbox.run where not_before > clock_timestamp() and state = 'rolling_back'"
    )


async def test_rf_09_q6_a_retry_of_a_run_that_was_parked_begins_a_new_budget(
    make_shop: MakeShop, database_url: str
) -> None:
    shop, mended = make_shop("blocking"), list[bool]()
    root = shop.saga("root", "R", None)
    # Its budget is known to the database before anything is compensated.
    shop.step(root, "1", compensate=False)
    shop.step(root, "2", compensate=loses_its_connection(database_url, mended))
    shop.step(root, "3", fails)

    async with shop.running(max_interruptions=2):
        handle = await shop.app.launch("R", None, rollback_timeout=BUDGET)
        run = await ends(shop, handle, "root", RunState.PARKED)
        await expires(shop)
        mended.append(True)
        assert await shop.app.retry(run.id) is Answer.ACCEPTED
        run = await ends(shop, handle, "root", RunState.ROLLED_BACK)

    assert BUDGET / 2 < left(run.rollback_by) <= BUDGET


async def test_rf_09_q6_a_run_that_goes_on_because_a_child_was_retried_has_a_new_budget_too(mixed: Shop) -> None:
    broken = Broken()
    root = mixed.app.saga("root", "R")
    mixed.step(root, "before")
    mixed.step(root, "0", launches("C"))
    mixed.step(root, "1", fails)
    child = mixed.app.saga("child", "C")
    mixed.step(child, "before")
    mixed.step(child, "0", compensate=broken)

    async with mixed.running():
        handle: Handle = await mixed.app.launch("R", None, rollback_timeout=BUDGET)
        await ends(mixed, handle, "root", RunState.ROLLBACK_FAILED)
        await expires(mixed)
        broken.mended = True
        assert await mixed.app.retry((await mixed.only(handle, "child")).id) is Answer.ACCEPTED
        run = await ends(mixed, handle, "root", RunState.ROLLED_BACK)

    assert left(run.rollback_by) > BUDGET / 2
    assert left((await mixed.only(handle, "child")).rollback_by) > BUDGET / 2
