"""Q63: a step without a limit that takes long is told of while it lasts, and nothing is done to it."""

import asyncio
import json
import logging
import uuid
from typing import Any

import pytest
from click.testing import CliRunner

from scoop_outbox import DefinitionError, DistributedError
from scoop_outbox.cli import main
from scoop_outbox.operations.explanation import Cause
from scoop_outbox.operations.runs import AsyncRuns
from tests.scenarios.conftest import MakeShop
from tests.scenarios.shop import COLOURS, LONG, Gate, Shop, launches, raises
from tests.waiting import until

SLOW = "run: step is slow (%s: its %s is being executed for more than %.0f s, and goes on)"
each_colour = pytest.mark.parametrize("colour", COLOURS[:2], indirect=True)


def warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.msg == SLOW]


@each_colour
async def test_q63_a_slow_step_is_told_of_while_it_is_executed(
    shop: Shop, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    shop.saga("root", "R", None, gate)

    async with shop.app.running(slow_step_after=0.2) as running:
        handle = await shop.app.launch("R", None, key="A-1")
        await until(lambda: warnings(caplog), LONG)
        root = await shop.only(handle, "root")
        metrics = await running.metrics()
        async with AsyncRuns(database_url) as runs:
            shown, explained = await runs.show(handle.id), await runs.explain(handle.id)
        printed = await asyncio.to_thread(
            CliRunner().invoke, main, ["show", str(handle.id), "--database", database_url]
        )
        gate.open = True
        assert await handle.wait(LONG) is None

        async def is_over() -> bool:
            return "scoop_outbox_worker_slow_slots 0.0" in await running.metrics()

        await until(is_over, LONG)
        after = await running.metrics()

    (record,) = warnings(caplog)
    told = {name: getattr(record, name) for name in ("service", "saga", "run_id", "message_id", "key", "step")}
    assert told == {
        "service": "shop",
        "saga": "root",
        "run_id": root.id,
        "message_id": handle.id,
        "key": "A-1",
        "step": "1",
    }
    assert (record.levelname, record.seconds >= 0.2) == ("WARNING", True)  # type: ignore[attr-defined]
    assert f"run {root.id}, message {handle.id}, key A-1, step 1: its body is being executed" in record.getMessage()
    counted = 'scoop_outbox_worker_slow_steps_total{saga="root",step="1"} 1.0'
    assert "scoop_outbox_worker_slow_slots 1.0" in metrics
    assert counted in metrics
    assert counted in after
    (executing,) = shown.executing
    assert executing.run_id == root.id
    assert executing.since is not None
    assert executing.since <= shown.at
    assert f"being executed since {executing.since.isoformat(timespec='seconds')}" in printed.output
    (waiting,) = explained.waiting
    (reason,) = waiting.reasons
    assert (reason.cause, waiting.next) == (Cause.EXECUTING, "step '1' is executed")
    assert reason.at == executing.since
    assert shop.journal == ["root-0", "root-1"]


@each_colour
async def test_q63_a_slow_compensation_is_told_of_too(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    root = shop.app.saga("root", "R")
    shop.step(root, "0", compensate=gate, timeout=60.0)
    shop.step(root, "1", raises("boom"))

    async with shop.running(slow_step_after=0.2):
        handle = await shop.app.launch("R", None)
        await until(lambda: warnings(caplog), LONG)
        gate.open = True
        with pytest.raises(DistributedError):
            await handle.wait(LONG)

    (record,) = warnings(caplog)
    assert "step 0: its compensation is being executed" in record.getMessage()


async def test_q63_what_waits_or_has_a_limit_of_its_own_is_not_slow(
    mixed: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that waits for its child, which has a timeout, executes nothing."""
    gate = Gate()
    mixed.saga("root", "R", launches("C"), None)
    child = mixed.app.saga("child", "C")
    mixed.step(child, "0", gate, timeout=60.0)
    slow = Gate()
    mixed.saga("slow", "S", slow)

    async with mixed.running(slow_step_after=0.1):
        handle = await mixed.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        # Begun afterwards, and told of: the others have been there for longer.
        other = await mixed.app.launch("S", None)
        await until(lambda: warnings(caplog), LONG)
        gate.open = slow.open = True
        await handle.wait(LONG)
        await other.wait(LONG)

    assert [record.saga for record in warnings(caplog)] == ["slow"]  # type: ignore[attr-defined]


async def test_nothing_is_shown_as_executed_that_is_not(mixed: Shop, database_url: str) -> None:
    mixed.saga("root", "R", launches("nobody"), None)
    handle = await mixed.run("R")
    async with AsyncRuns(database_url) as runs:
        assert (await runs.show(handle.id)).executing == ()
    printed = CliRunner().invoke(main, ["show", str(handle.id), "--json", "--database", database_url])
    assert json.loads(printed.output)["executing"] == []


@pytest.mark.parametrize("wrong", [0, -1.0, float("inf"), float("nan")])
async def test_a_threshold_that_is_none_is_refused(make_shop: MakeShop, wrong: Any) -> None:
    shop = make_shop()
    shop.saga(f"root {uuid.uuid4()}", "R", None)
    with pytest.raises(DefinitionError, match="slow_step_after"):
        async with shop.running(slow_step_after=wrong):
            pass
