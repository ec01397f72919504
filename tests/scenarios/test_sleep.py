"""SL: runs that sleep between two steps."""

import asyncio
import functools
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from click.testing import CliRunner

from scoop_outbox import Answer, DefinitionError, GaveUp, Handle, RunState, RunStatus, UnknownMessage
from scoop_outbox.app import service_of
from scoop_outbox.cli import main
from scoop_outbox.operations.runs import AsyncRuns
from tests.scenarios.cancelling import FEELZ, gave_up
from tests.scenarios.shop import LONG, Gate, Shop, launches, order, raises
from tests.waiting import until

HOUR = 3600.0
SHORT = timedelta(seconds=0.3)


async def is_asleep(shop: Shop, handle: Handle, saga: str = "root") -> bool:
    """Tell whether the run of a saga sleeps."""
    try:
        (run,) = await shop.runs(handle, saga)
    except (UnknownMessage, ValueError):
        return False  # it has not been taken in
    return bool(await shop.ask("select from scoop_outbox.run where id = %s and not_before > clock_timestamp()", run.id))


def times(run: RunStatus) -> dict[str, datetime]:
    """When each step of a run has begun, by the database's clock."""
    return {step.step: step.started_at for step in run.steps}


@pytest.mark.everywhere
async def test_sl_01_a_saga_sleeps_between_two_steps(shop: Shop) -> None:
    root = shop.saga("root", "R", None)
    root.sleep("sleep", SHORT)
    shop.step(root, "2")

    handle = await shop.run("R")

    assert shop.journal == ["root-0", "root-2"]
    run = await shop.only(handle, "root")
    assert [(step.step, step.state) for step in run.steps] == [
        ("0", "committed"),
        ("sleep", "committed"),
        ("2", "committed"),
    ]
    assert times(run)["2"] - times(run)["sleep"] >= SHORT


async def test_sl_02_a_step_that_is_scheduled_is_executed_after_its_time(mixed: Shop) -> None:
    ((now,),) = await mixed.ask("select clock_timestamp()")
    at = (now + timedelta(seconds=0.7)).astimezone(timezone(timedelta(hours=9)))
    root = mixed.saga("root", "R", None)
    root.sleep_until("until then", at)
    mixed.step(root, "2")

    handle = await mixed.run("R")

    assert times(await mixed.only(handle, "root"))["2"] >= at


@pytest.mark.everywhere
async def test_sl_07_each_wakes_at_its_own_time_whoever_else_sleeps(shop: Shop) -> None:
    root = shop.app.saga("root", "R")
    root.sleep("sleep", shop.coloured(lambda _, message: message.payload))
    shop.step(root, "1")

    async with shop.running():
        long = await shop.app.launch("R", HOUR)
        await until(lambda: is_asleep(shop, long), LONG)
        await (await shop.app.launch("R", 0.2)).wait(LONG)
        assert shop.journal == ["root-1"]
        assert await is_asleep(shop, long)


@pytest.mark.everywhere
async def test_sl_08_a_rollback_passes_a_sleep(shop: Shop) -> None:
    root = shop.saga("root", "R", launches("C"))
    root.sleep("sleep", 0.1)
    shop.step(root, "2", raises())
    shop.saga("child", "C", None)

    handle, _ = await shop.fail("R")

    order(shop.journal, "root-0", "child-0", "root-2", "child-rb0", "root-rb0")
    assert await shop.states(handle) == {"root": RunState.ROLLED_BACK, "child": RunState.ROLLED_BACK}


@pytest.mark.parametrize("duration", [0, -5.0, timedelta(days=-1)])
async def test_sl_09_a_sleep_of_no_time_goes_on_at_once(duration: Any, mixed: Shop) -> None:
    root = mixed.app.saga("root", "R")
    root.sleep("sleep", duration)
    root.sleep_until("long ago", datetime(1, 1, 1, tzinfo=UTC))
    mixed.step(root, "2")

    await mixed.run("R")

    assert mixed.journal == ["root-2"]


@pytest.mark.everywhere
async def test_sl_11_a_saga_begins_with_a_sleep_and_its_parent_waits(shop: Shop) -> None:
    shop.saga("root", "R", launches("C"), None)
    survey = shop.app.saga("survey", "C")
    survey.sleep("two days later", SHORT)
    shop.step(survey, "1")

    await shop.run("R")

    assert shop.journal == ["root-0", "survey-1", "root-1"]


@pytest.mark.everywhere
async def test_ca_07_a_sleeping_saga_is_cancelled_at_once(shop: Shop) -> None:
    root = shop.saga("root", "R", None)
    root.sleep("sleep", HOUR)
    shop.step(root, "2")

    async with shop.running():
        handle = await shop.app.launch("R", None)
        await until(lambda: is_asleep(shop, handle), LONG)
        assert await shop.app.cancel(handle.id, **FEELZ) is Answer.ACCEPTED
        with pytest.raises(GaveUp) as caught:
            await handle.wait(LONG)

    assert gave_up(caught.value.failure, "root")
    assert shop.journal == ["root-0", "root-rb0"]


@pytest.mark.everywhere
async def test_ca_07_a_hierarchy_is_cancelled_whose_child_sleeps(shop: Shop) -> None:
    shop.saga("root", "R", launches("C"))
    child = shop.saga("child", "C", None)
    child.sleep("sleep", HOUR)

    async with shop.running():
        handle = await shop.app.launch("R", None)
        await until(lambda: is_asleep(shop, handle, "child"), LONG)
        assert await shop.app.cancel(handle.id, **FEELZ) is Answer.ACCEPTED
        with pytest.raises(GaveUp):
            await handle.wait(LONG)

    assert shop.journal == ["root-0", "child-0", "child-rb0", "root-rb0"]


@pytest.mark.everywhere
async def test_dl_09_a_sleeping_saga_wakes_at_its_deadline_and_gives_up(shop: Shop) -> None:
    root = shop.saga("root", "R", None)
    root.sleep("sleep", HOUR)

    _, error = await shop.fail("R", timeout=0.5)

    assert error.failure.type == GaveUp.__name__
    assert shop.journal == ["root-0", "root-rb0"]


async def test_a_shielded_saga_sleeps_on_though_it_was_cancelled(mixed: Shop) -> None:
    root = mixed.app.saga("root", "R", shield=True)
    root.sleep("sleep", 1.0)
    mixed.step(root, "1")

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: is_asleep(mixed, handle), LONG)
        await mixed.app.cancel(handle.id, **FEELZ)
        await until(lambda: mixed.journal.count("root-1"), LONG)


async def test_a_run_that_sleeps_outlasts_its_process(mixed: Shop) -> None:
    root = mixed.app.saga("root", "R")
    root.sleep("sleep", 1.0)
    mixed.step(root, "1")

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: is_asleep(mixed, handle), LONG)
    assert mixed.journal == []
    async with mixed.running():
        await handle.wait(LONG)
    run = await mixed.only(handle, "root")
    assert times(run)["1"] - times(run)["sleep"] >= timedelta(seconds=1)


async def test_runs_that_sleep_take_no_slot(mixed: Shop) -> None:
    root = mixed.app.saga("root", "R")
    root.sleep("sleep", HOUR)
    mixed.saga("other", "O", None)

    async with mixed.running(slots=1):
        sleeping = [await mixed.app.launch("R", None) for _ in range(3)]
        for one in sleeping:
            await until(functools.partial(is_asleep, mixed, one), LONG)
        await (await mixed.app.launch("O", None)).wait(LONG)


async def test_a_saga_may_end_with_a_sleep(mixed: Shop) -> None:
    root = mixed.saga("root", "R", None)
    root.sleep("sleep", SHORT)

    handle = await mixed.run("R")

    run = await mixed.only(handle, "root")
    assert run.ended_at is not None
    assert run.ended_at - times(run)["sleep"] >= SHORT


async def test_a_sleep_may_launch_and_waits_for_both(mixed: Shop) -> None:
    gate = Gate()

    def reminds(scope: Any, _: Any) -> float:
        scope.launch("C", None)
        return 0.2

    root = mixed.app.saga("root", "R")
    root.sleep("sleep", mixed.coloured(reminds))
    mixed.step(root, "1")
    mixed.saga("child", "C", gate)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        ((left,),) = await mixed.ask(
            "select extract(epoch from not_before - created_at)::float8 from scoop_outbox.run where saga = 'root'"
        )
        await until(lambda: _is_over(mixed), LONG)
        assert left >= 0.2
        assert mixed.journal == ["child-0"]
        gate.open = True
        await handle.wait(LONG)
    assert mixed.journal == ["child-0", "root-1"]


async def test_what_fails_below_a_sleep_is_handled_at_once(mixed: Shop) -> None:
    root = mixed.app.saga("root", "R")
    step = root.sleep("sleep", mixed.coloured(lambda scope, _: (scope.launch("C", None), HOUR)[1]))
    mixed.saga("child", "C", raises("boom"))

    _, error = await mixed.fail("R")

    assert step.name in str(error)
    assert "boom" in str(error)


async def test_a_run_whose_failed_child_is_handled_sleeps_on(mixed: Shop) -> None:
    def launches_and_sleeps(scope: Any, _: Any) -> float:
        scope.launch("C", None)
        return 1.0

    root = mixed.app.saga("root", "R")
    step = root.sleep("sleep", mixed.coloured(launches_and_sleeps))
    step.on_child_failure(mixed.coloured(lambda *_: mixed.journal("handled")))
    mixed.step(root, "1")
    mixed.saga("child", "C", raises("boom"))

    handle = await mixed.run("R")

    assert mixed.journal == ["child-0", "handled", "root-1"]
    run = await mixed.only(handle, "root")
    assert times(run)["1"] - run.steps[0].started_at >= timedelta(seconds=1)


async def _is_over(shop: Shop) -> bool:
    return bool(await shop.ask("select from scoop_outbox.run where saga = 'root' and not_before < clock_timestamp()"))


async def test_what_says_how_long_may_look_at_the_context_and_fail(mixed: Shop) -> None:
    root = mixed.saga("root", "R", None)
    root.sleep("sleep", mixed.coloured(lambda *_: "soon"))

    _, error = await mixed.fail("R")

    assert error.failure.type.endswith("StepError")
    assert "step 'sleep' of saga 'root': 'soon' is no time to sleep for" in str(error)
    assert mixed.journal == ["root-0", "root-rb0"]


def show(shop: Shop, handle: Handle) -> str:
    options = ["--database", service_of(shop.homes[0]).home.url]
    return CliRunner().invoke(main, ["show", str(handle.id), *options], catch_exceptions=False).output


async def test_who_waits_is_told_that_it_sleeps(mixed: Shop) -> None:
    root = mixed.saga("root", "R", None)
    root.sleep("over night", 8 * HOUR)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: is_asleep(mixed, handle), LONG)
        with pytest.raises(TimeoutError, match=r"sleeps behind step 'over night' since .* and wakes in 28.* s"):
            await handle.wait(0.01)
        async with AsyncRuns(service_of(mixed.homes[0]).home.url) as runs:
            (waiting,) = (await runs.explain(handle.id)).waiting
        shown = await asyncio.to_thread(show, mixed, handle)
    assert re.search(r"sleeps until \d{4}-.*, 8.0 h more", shown)
    assert (await mixed.only(handle, "root")).sleeps_until is not None
    (reason,) = waiting.reasons
    assert reason.cause == "sleep"
    assert reason.text.startswith("it sleeps behind step 'over night', and wakes in 28")


@pytest.mark.parametrize("given", ["1", None, True, float("nan"), [1]])
def test_what_is_no_time_is_refused(given: Any, mixed: Shop) -> None:
    root = mixed.app.saga("root", "R")
    with pytest.raises(DefinitionError, match=r"step 'sleep' of saga 'root': .* is no time to sleep for"):
        root.sleep("sleep", given)


def test_a_point_in_time_has_a_time_zone(mixed: Shop) -> None:
    root = mixed.app.saga("root", "R")
    with pytest.raises(DefinitionError, match="2030-01-01T00:00:00 has no time zone"):
        root.sleep_until("sleep", datetime(2030, 1, 1))  # noqa: DTZ001
    with pytest.raises(DefinitionError, match="is no point in time to sleep until"):
        root.sleep_until("sleep", 5.0)  # type: ignore[arg-type]


def test_what_cannot_be_called_as_a_step_is_refused(mixed: Shop) -> None:
    root = mixed.app.saga("root", "R")

    def forgets() -> float:
        return 1.0

    with pytest.raises(DefinitionError, match=r"step 'sleep' of saga 'root' is called with \(scope, message\)"):
        root.sleep("sleep", forgets)  # type: ignore[arg-type]
