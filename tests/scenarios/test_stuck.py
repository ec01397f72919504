"""Q6, Q78: runs that are stuck are tried again, from the bottom to the top."""

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from scoop_outbox import (
    Answer,
    GaveUp,
    Retry,
)
from scoop_outbox.cli import main
from scoop_outbox.operations.runs import Runs
from tests.scenarios.healing import COMMITTED, ROLLBACK_FAILED, ROLLED_BACK, Broken, ends, told
from tests.scenarios.rollback_helpers import (
    child_rolled_back,
    declare_n_deep,
    fails,
    shape,
    simulated,
)
from tests.scenarios.shop import LONG, Shop, launches, raises
from tests.waiting import until


@pytest.mark.everywhere
async def test_q6_a_compensation_that_failed_is_called_again_and_the_rollback_goes_on(shop: Shop) -> None:
    broken = Broken()
    root = shop.saga("root", "R", None)
    shop.step(root, "1", compensate=broken, compensate_retry=Retry(attempts=2, backoff=0.01))
    shop.step(root, "2", fails)

    async with shop.running():
        handle = await shop.app.launch("R", None)
        assert (await told(handle)).message == "rb boom"
        run = await shop.only(handle, "root")
        assert await shop.app.retry(run.id) is Answer.ACCEPTED
        assert (await told(handle)).message == "rb boom"  # both attempts, anew
        broken.mended = True
        assert await shop.app.retry(run.id) is Answer.ACCEPTED
        run = await ends(shop, handle, "root", ROLLED_BACK)
        error = await told(handle)
        assert await shop.app.retry(run.id) is Answer.NOTHING_TO_DO

    assert broken.attempts == [0, 1, 0, 1, 0]
    assert shop.journal == ["root-0", "root-1", "root-2", *["root-rb1"] * 5, "root-rb0"]
    # What it would have failed with if nothing had been in the way.
    assert shape(error.failure) == shape(run.failure) == simulated("root")


@pytest.mark.everywhere
async def test_rf_07_q6_every_run_that_had_stopped_goes_on_from_the_bottom_to_the_top(shop: Shop) -> None:
    broken = Broken()
    root = shop.saga("root", "R", None)
    shop.step(root, "1", launches("C"), on_child_rollback_failure=True)
    shop.step(root, "2", fails)
    child = shop.saga("child", "C", None)
    shop.step(child, "1", launches("G"))
    shop.step(shop.saga("gc", "G", None), "1", compensate=broken)

    async with shop.running():
        handle = await shop.app.launch("R", None)
        await told(handle)
        assert await shop.states(handle) == dict.fromkeys(("root", "child", "gc"), ROLLBACK_FAILED)
        broken.mended = True
        assert await shop.app.retry((await shop.only(handle, "gc")).id) is Answer.ACCEPTED
        await ends(shop, handle, "root", ROLLED_BACK)
        error = await told(handle)

    assert shop.journal == [
        "root-0", "root-1", "child-0", "child-1", "gc-0", "gc-1", "root-2", "gc-rb1", "root-hcrf1",
        "gc-rb1", "gc-rb0", "child-rb1", "child-rb0", "root-rb1", "root-rb0",
    ]  # fmt: skip
    assert await shop.states(handle) == dict.fromkeys(("root", "child", "gc"), ROLLED_BACK)
    assert shape(error.failure) == simulated("root")


async def test_q6_a_run_that_has_stopped_because_of_others_retries_those(mixed: Shop) -> None:
    one, two = Broken("rb one"), Broken("rb two")
    mixed.saga("root", "R", launches("C", "D"), fails)
    mixed.saga("middle", "C", launches("E"))
    mixed.step(mixed.app.saga("one", "E"), "0", compensate=one)
    mixed.step(mixed.app.saga("two", "D"), "0", compensate=two)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await told(handle)
        root = await mixed.only(handle, "root")
        one.mended = True
        assert await mixed.app.retry(root.id) is Answer.ACCEPTED
        await ends(mixed, handle, "middle", ROLLED_BACK)
        await until(lambda: len(two.attempts) == 2, LONG)
        assert (await ends(mixed, handle, "two", ROLLBACK_FAILED)).failure is not None
        assert (await mixed.only(handle, "root")).state is ROLLBACK_FAILED  # as long as one cannot be undone
        two.mended = True
        assert await mixed.app.retry(root.id) is Answer.ACCEPTED
        await ends(mixed, handle, "root", ROLLED_BACK)

    assert (len(one.attempts), len(two.attempts)) == (2, 3)
    assert mixed.journal.count("root-rb0") == mixed.journal.count("middle-rb0") == 1
    assert mixed.journal.entries[-1] == "root-rb0"


async def test_q6_what_fails_again_disturbs_nobody_above(mixed: Shop) -> None:
    broken = Broken()
    root = mixed.app.saga("root", "R")
    mixed.step(root, "0", launches("C"), on_child_rollback_failure=True)
    mixed.step(root, "1", fails)
    mixed.step(mixed.app.saga("child", "C"), "0", compensate=broken)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await told(handle)
        before = await mixed.only(handle, "root")
        assert await mixed.app.retry(before.id) is Answer.ACCEPTED
        await until(lambda: len(broken.attempts) == 2, LONG)
        await ends(mixed, handle, "child", ROLLBACK_FAILED)
        broken.mended = True
        assert await mixed.app.retry(before.id) is Answer.ACCEPTED
        await ends(mixed, handle, "root", ROLLED_BACK)

    assert mixed.journal.count("root-hcrf0") == 1


async def test_q5_q6_a_failure_that_was_delivered_on_the_way_forward_heals_alike(mixed: Shop) -> None:
    broken = Broken()
    root = mixed.saga("root", "R", None)
    mixed.step(root, "1", launches("C"), on_child_failure=True, on_child_rollback_failure=True)
    child = mixed.app.saga("child", "C")
    mixed.step(child, "0", compensate=broken)
    mixed.step(child, "1", raises("boom 1"))

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await told(handle)
        assert await mixed.states(handle) == dict.fromkeys(("root", "child"), ROLLBACK_FAILED)
        broken.mended = True
        assert await mixed.app.retry((await mixed.only(handle, "child")).id) is Answer.ACCEPTED
        await ends(mixed, handle, "root", ROLLED_BACK)
        error = await told(handle)

    assert mixed.journal.count("child-rb0") == 2
    assert shape(error.failure) == child_rolled_back("root", "1", simulated("child", "boom 1"))
    assert mixed.journal.entries[-2:] == ["root-rb1", "root-rb0"]


async def test_q78_what_a_compensation_had_launched_is_healed_and_the_compensation_runs_again(mixed: Shop) -> None:
    broken = Broken()
    attempts: list[int] = []
    fail = {"child": True}

    def undo(scope: Any, *_: Any) -> None:
        attempts.append(scope.attempt)
        scope.launch("C", None)

    def fragile(*_: Any) -> None:
        if fail["child"]:
            raise RuntimeError("boom 1")

    root = mixed.saga("root", "R", None)
    mixed.step(root, "1", compensate=undo, compensate_retry=Retry(attempts=1))
    mixed.step(root, "2", fails)
    child = mixed.app.saga("child", "C")
    mixed.step(child, "0", compensate=broken)
    mixed.step(child, "1", fragile)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await told(handle)
        assert await mixed.states(handle) == dict.fromkeys(("root", "child"), ROLLBACK_FAILED)
        broken.mended, fail["child"] = True, False
        assert await mixed.app.retry((await mixed.only(handle, "child")).id) is Answer.ACCEPTED
        await ends(mixed, handle, "root", ROLLED_BACK)

    assert attempts == [0, 0]
    assert mixed.journal == [
        "root-0", "root-1", "root-2", "root-rb1", "child-0", "child-1", "child-rb0",
        "child-rb0", "root-rb1", "child-0", "child-1", "root-rb0",
    ]  # fmt: skip
    assert await mixed.states(handle) == {"root": ROLLED_BACK, "child": [ROLLED_BACK, COMMITTED]}


async def test_q78_what_a_handler_had_launched_is_healed_and_the_handler_is_called_again(mixed: Shop) -> None:
    broken = Broken("rb helper")
    calls: list[int] = []

    def handles(scope: Any, _: Any, error: Any) -> None:
        calls.append(scope.attempt)
        if len(calls) > 1 and not broken.mended:
            raise error
        if not broken.mended:
            scope.launch("H", None)

    root = mixed.saga("root", "R", None)
    mixed.step(root, "1", launches("C"), on_child_rollback_failure=handles)
    mixed.step(root, "2", fails)
    mixed.step(mixed.app.saga("child", "C"), "0", compensate=raises("rb child"))
    helper = mixed.app.saga("helper", "H")
    mixed.step(helper, "0", compensate=broken)
    mixed.step(helper, "1", fails)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await told(handle)
        assert await mixed.states(handle) == dict.fromkeys(("root", "child", "helper"), ROLLBACK_FAILED)
        broken.mended = True
        assert await mixed.app.retry((await mixed.only(handle, "helper")).id) is Answer.ACCEPTED
        await ends(mixed, handle, "root", ROLLED_BACK)

    assert calls == [0, 1, 0]
    assert mixed.journal.entries[-4:] == ["helper-rb0", "root-hcrf1", "root-rb1", "root-rb0"]
    assert await mixed.states(handle) == {"root": ROLLED_BACK, "child": ROLLBACK_FAILED, "helper": ROLLED_BACK}


async def test_rf_01_q6_the_deepest_hierarchy_of_the_specification_heals(mixed: Shop) -> None:
    declare_n_deep(mixed, broken=True)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await told(handle)
        gc = await mixed.only(handle, "gc")
        assert await mixed.app.skip(gc.id, note="by hand", source="anna") is Answer.ACCEPTED
        await ends(mixed, handle, "root", ROLLED_BACK)
        error = await told(handle)

    assert mixed.journal.entries[16:] == ["c1-rb1", "c1-rb0", "root-rb1", "root-rb0"]
    assert shape(error.failure) == child_rolled_back("root", "1", simulated("c2"))


async def test_q6_what_was_asked_while_no_worker_was_alive_is_found_by_the_next(
    mixed: Shop, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Broken()
    mixed.saga("root", "R", launches("M"), fails)
    mixed.saga("middle", "M", launches("C"))
    child = mixed.app.saga("child", "C")
    mixed.step(child, "0")
    mixed.step(child, "1", compensate=broken)
    handle, _ = await mixed.fail("R")
    broken.mended = True

    def asked(*arguments: str) -> list[str]:
        result = CliRunner().invoke(main, [*arguments, "--database", database_url])
        assert not result.exception or isinstance(result.exception, SystemExit)
        return [line.partition("\t")[2] or line for line in result.output.splitlines()]

    root, run = await mixed.only(handle, "root"), await mixed.only(handle, "child")
    assert asked("retry", str(root.id), "--note", "it answers", "--source", "anna") == ["accepted"]
    assert asked("retry", str(root.id), str(run.id)) == ["already requested"] * 2
    assert asked("skip", str(run.id)) == ["already requested"]
    assert asked("abandon", str(run.id), str(uuid.uuid4())) == ["nothing to do", "unknown"]
    async with mixed.running():  # a process that dies has rolled back its transaction, and left the mail
        await ends(mixed, handle, "root", ROLLED_BACK)
    assert mixed.journal.entries[-4:] == ["child-rb1", "child-rb0", "middle-rb0", "root-rb0"]
    assert [line for line in asked("show", str(run.id)) if "retry" in line and "by anna: it answers" in line]


async def test_q6_a_parent_that_is_being_decided_about_is_not_waited_for(mixed: Shop, database_url: str) -> None:
    mixed.saga("root", "R", launches("C"), fails)
    mixed.step(mixed.app.saga("child", "C"), "0", compensate=raises("rb boom"))
    handle, _ = await mixed.fail("R")
    run = await mixed.only(handle, "child")

    with psycopg.connect(database_url) as other:
        other.execute("select from scoop_outbox.run where parent_run is null for update")
        assert await mixed.app.retry(run.id) is Answer.BUSY
        assert mixed.app.skip_sync(run.id) is Answer.BUSY
        with Runs(database_url) as runs:
            assert await asyncio.to_thread(runs.abandon, run.id, source="anna") is Answer.BUSY
        other.rollback()
    assert await mixed.app.retry(run.id) is Answer.ACCEPTED


async def test_ca_01_q6_a_hierarchy_that_was_cancelled_heals_alike(mixed: Shop) -> None:
    broken = Broken()
    gate = {"entered": False, "open": False}

    def waits(*_: Any) -> Iterator[Any]:
        gate["entered"] = True
        yield lambda: gate["open"]

    mixed.saga("root", "R", None, launches("C"))
    child = mixed.app.saga("child", "C")
    mixed.step(child, "0", compensate=broken)
    mixed.step(child, "1", waits)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: gate["entered"], LONG)
        assert await mixed.app.cancel(handle.id, reason="feelz", source="master-system") is Answer.ACCEPTED
        gate["open"] = True
        await told(handle)
        await ends(mixed, handle, "root", ROLLBACK_FAILED)
        broken.mended = True
        assert await mixed.app.retry((await mixed.only(handle, "root")).id) is Answer.ACCEPTED
        await ends(mixed, handle, "root", ROLLED_BACK)
        with pytest.raises(GaveUp):
            await handle.wait(LONG)

    assert mixed.journal.entries[-3:] == ["child-rb0", "root-rb1", "root-rb0"]


async def test_q6_two_people_at_once_retry_a_run_once(mixed: Shop) -> None:
    gate = {"open": False}
    calls: list[int] = []

    def slow(*_: Any) -> Iterator[Any]:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("rb boom")
        yield lambda: gate["open"]

    root = mixed.saga("root", "R", launches("C"), fails)
    assert root is not None
    mixed.step(mixed.app.saga("child", "C"), "0", compensate=slow)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await told(handle)
        child, top = await mixed.only(handle, "child"), await mixed.only(handle, "root")
        answers = await asyncio.gather(*(mixed.app.retry(child.id) for _ in range(4)))
        assert answers.count(Answer.ACCEPTED) == 1
        assert set(answers) <= {Answer.ACCEPTED, Answer.ALREADY_REQUESTED, Answer.BUSY}
        await until(lambda: len(calls) == 2, LONG)
        assert await mixed.app.retry(child.id) is Answer.ALREADY_REQUESTED
        assert await mixed.app.retry(top.id) is Answer.ALREADY_REQUESTED
        assert await mixed.app.skip(top.id) is Answer.ALREADY_REQUESTED
        assert await mixed.app.abandon(child.id) is Answer.NOTHING_TO_DO
        gate["open"] = True
        await ends(mixed, handle, "root", ROLLED_BACK)

    assert len(calls) == 2
    assert await mixed.app.retry(uuid.uuid4()) is Answer.UNKNOWN
