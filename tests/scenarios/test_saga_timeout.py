"""Q20, Q65: the timeout that a saga has, also of runs that are parked, and who is shown it."""

from datetime import timedelta
from typing import Any

import pytest

from scoop_outbox import GaveUp, RunState
from tests.scenarios.conftest import MakeShop
from tests.scenarios.healing import ends, loses_its_connection, told
from tests.scenarios.shop import LONG, Gate, Shop, launches
from tests.waiting import until

TIMEOUT = 600.0
LATER = timedelta(seconds=TIMEOUT)


async def test_q65_dl_01_a_run_that_was_parked_gives_up_when_its_saga_is_late(
    make_shop: MakeShop, database_url: str
) -> None:
    shop = make_shop("blocking")
    root = shop.app.saga("root", "R", timeout=TIMEOUT)
    shop.step(root, "0", loses_its_connection(database_url, []))

    async with shop.running(max_interruptions=2):
        handle = await shop.app.launch("R", None)
        await ends(shop, handle, "root", RunState.PARKED)
        # Time passes.
        await shop.ask("update scoop_outbox.run set created_at = created_at - %s returning id", LATER)
        assert await shop.ask("update scoop_outbox.mailbox set due = due - %s returning id", LATER)
        error = await told(handle)

    assert isinstance(error, GaveUp)
    assert [(cause.type, cause.source) for cause in error.causes] == [("MissedHappyPathDeadline", "root")]
    assert (await shop.only(handle, "root")).state is RunState.ROLLED_BACK


@pytest.mark.parametrize("sets", [None, 60.0, 6000.0])
async def test_q20_the_timeout_of_a_saga_is_shown_as_soon_as_a_run_of_it_has_executed_something(
    mixed: Shop, sets: float | None
) -> None:
    gate = Gate()

    def body(scope: Any, message: Any) -> None:
        launches("C")(scope, message)
        if sets is not None:
            scope.set_deadline(timeout=sets)

    root = mixed.app.saga("root", "R", timeout=TIMEOUT)
    mixed.step(root, "0", body)
    mixed.saga("child", "C", gate)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        run = await mixed.only(handle, "root")
        gate.open = True
        await handle.wait(LONG)

    assert run.deadline is not None
    found = [one.source.partition("[")[0] for one in (run.deadline, *run.deadline.trace)]
    assert found == ["root"] * (1 if sets is None else 2)
    assert (run.deadline.source == "root") is (sets != 60.0)
    late = run.deadline if sets != 60.0 else run.deadline.trace[0]
    assert (late.at - run.created_at).total_seconds() == TIMEOUT
