"""Q6, Q65: who wants to know is told of runs that get stuck."""

import threading

import pytest

from scoop_outbox import (
    DefinitionError,
    RunState,
    StuckRun,
)
from tests.scenarios.conftest import MakeShop
from tests.scenarios.healing import ROLLBACK_FAILED, loses_its_connection, told
from tests.scenarios.rollback_helpers import (
    fails,
)
from tests.scenarios.shop import LONG, Shop, launches, raises
from tests.waiting import until


async def test_q6_who_wants_to_know_is_told_of_each_run_that_gets_stuck(
    mixed: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    alerts: list[StuckRun] = []
    blocking: list[tuple[str, bool]] = []

    @mixed.app.on_stuck
    async def note(run: StuckRun) -> None:
        alerts.append(run)
        # No transaction is open, and what is launched here belongs to nobody's step.
        await mixed.app.launch("alerts", run.saga)

    @mixed.app.on_stuck
    def fails_itself(run: StuckRun) -> None:
        blocking.append((run.saga, threading.current_thread() is threading.main_thread()))
        raise RuntimeError("no pager")

    mixed.saga("root", "R", launches("C"), fails)
    mixed.step(mixed.app.saga("child", "C"), "0", compensate=raises("rb boom"))
    mixed.saga("pager", "alerts", None)

    async with mixed.running() as running:
        handle = await mixed.app.launch("R", None)
        await told(handle)
        await until(lambda: mixed.journal.count("pager-0") == len(blocking) == 2, LONG)
        worker = running.worker
        assert worker is not None
        await until(lambda: worker.alerts.counts == {"returned": 2, "failed": 2}, LONG)

    child, root = await mixed.only(handle, "child"), await mixed.only(handle, "root")
    assert [(one.run_id, one.saga, one.step, one.state) for one in alerts] == [
        (child.id, "child", "0", ROLLBACK_FAILED),
        (root.id, "root", "0", ROLLBACK_FAILED),
    ]
    assert alerts[0].failure == child.failure
    assert alerts[0].reason.startswith("RuntimeError: rb boom; it was to be rolled back for: RuntimeError")
    assert sorted(blocking) == [("child", False), ("root", False)]
    assert "run: alert failed (service shop, saga child, run" in caplog.text


async def test_q65_who_wants_to_know_is_told_of_a_run_that_is_parked(make_shop: MakeShop, database_url: str) -> None:
    shop = make_shop("blocking")
    alerts: list[StuckRun] = []
    shop.app.on_stuck(alerts.append)
    shop.saga("root", "R", loses_its_connection(database_url, []))

    async with shop.running(max_interruptions=2):
        handle = await shop.app.launch("R", None)
        await until(lambda: len(alerts) == 1, LONG)

    (alert,) = alerts
    assert (alert.message_id, alert.state, alert.failure) == (handle.id, RunState.PARKED, None)
    assert alert.reason.startswith("interrupted 2 times in a row without progress")


def test_q6_what_cannot_be_called_is_refused(mixed: Shop) -> None:
    with pytest.raises(DefinitionError, match="on_stuck takes a function of one argument; 'pager' cannot be called"):
        mixed.app.on_stuck("pager")  # type: ignore[arg-type]
