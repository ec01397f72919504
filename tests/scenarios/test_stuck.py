"""Q6, Q78: runs that are stuck, and what a person can do about them."""

import asyncio
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scoop_outbox import (
    Answer,
    DefinitionError,
    DistributedError,
    GaveUp,
    Handle,
    Retry,
    RunState,
    RunStatus,
    Scoop,
    StuckRun,
    UnknownMessage,
)
from scoop_outbox.cli import main
from scoop_outbox.operations.runs import Runs
from tests.scenarios.conftest import MakeShop
from tests.scenarios.rollback_helpers import (
    child_rolled_back,
    declare_n_deep,
    fails,
    shape,
    simulated,
)
from tests.scenarios.shop import LONG, Body, Journal, Shop, launches, raises
from tests.waiting import until

COMMITTED = RunState.COMMITTED
ROLLING_BACK = RunState.ROLLING_BACK
ROLLED_BACK = RunState.ROLLED_BACK
ROLLBACK_FAILED = RunState.ROLLBACK_FAILED


class Broken:
    """The body of a compensation that fails until it is mended."""

    def __init__(self, text: str = "rb boom") -> None:
        self.mended = False
        self.attempts: list[int] = []
        self._text = text

    def __call__(self, scope: Any, *_: Any) -> None:
        self.attempts.append(scope.attempt)
        if not self.mended:
            raise RuntimeError(self._text)


async def ends(shop: Shop, handle: Handle, saga: str, state: RunState) -> RunStatus:
    """Wait until the run of a saga is in a state."""

    async def is_there() -> bool:
        try:
            return any(run.state is state for run in await shop.runs(handle, saga))
        except UnknownMessage:  # its message has not been taken in yet
            return False

    await until(is_there, LONG)
    return await shop.only(handle, saga)


async def told(handle: Handle) -> DistributedError:
    with pytest.raises(DistributedError) as caught:
        await handle.wait(LONG)
    return caught.value


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


async def test_rf_09_q6_a_rollback_that_took_too_long_is_taken_on_without_a_limit(mixed: Shop) -> None:
    broken = Broken()
    root = mixed.saga("root", "R", None)
    mixed.step(root, "1", compensate=broken, compensate_retry=Retry(attempts=2, backoff=600.0))
    mixed.step(root, "2", fails)

    async with mixed.running():
        handle = await mixed.app.launch("R", None, rollback_timeout=0.2)
        await until(lambda: broken.attempts == [0], LONG)
        run = await ends(mixed, handle, "root", ROLLBACK_FAILED)
        broken.mended = True
        assert await mixed.app.retry(run.id) is Answer.ACCEPTED
        run = await ends(mixed, handle, "root", ROLLED_BACK)

    assert run.rollback_by is None
    assert mixed.journal.entries[-3:] == ["root-rb1", "root-rb1", "root-rb0"]


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


@dataclass
class Part:
    """A saga of a random tree: how many steps it has, and what each of them launches."""

    below: list["Part | None"]


parts = st.recursive(
    st.builds(Part, st.lists(st.none(), min_size=1, max_size=2)),
    lambda part: st.builds(Part, st.lists(st.none() | part, min_size=1, max_size=3)),
    max_leaves=6,
)


def declare(shop: Shop, part: Part, name: str, undo: Callable[[str], Body]) -> None:
    saga = shop.app.saga(name, name)
    for number, below in enumerate(part.below):
        topic = f"{name}/{number}"
        body = None if below is None else launches(topic)
        shop.step(saga, str(number), body, compensate=undo(topic))
        if below is not None:
            declare(shop, below, topic, undo)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=parts, data=st.data())
async def test_q6_q78_what_is_healed_is_undone_in_the_order_of_what_never_got_stuck(
    database_url: str, part: Part, data: st.DataObject
) -> None:
    undone: list[str] = []
    names: list[str] = []
    failing: dict[str, int] = {}

    def undo(name: str) -> Body:
        names.append(name)

        def body(*_: Any) -> None:
            if failing.get(name, 0):
                failing[name] -= 1
                raise RuntimeError(name)
            undone.append(name)

        return body

    top = f"{uuid.uuid4()}"
    shop = Shop(Scoop(top, database=database_url), Journal(), "mixed")
    declare(shop, part, top, undo)
    shop.step(shop.app.sagas[top], "last", fails)
    broken = data.draw(st.lists(st.sampled_from(sorted(names)), min_size=1, max_size=3))
    async with shop.running():
        await told(await shop.app.launch(top, None))
        expected = list(undone)
        assert sorted(expected) == sorted(names)
        undone.clear()
        failing.update(Counter(broken))
        handle = await shop.app.launch(top, None)
        failure = (await told(handle)).failure
        root = await shop.only(handle, top)

        async def is_healed() -> bool:
            await shop.app.retry(root.id)
            return (await shop.only(handle, top)).state is ROLLED_BACK

        await until(is_healed, LONG, 0.01)
        assert (await told(handle)).failure != failure
    await shop.app.close()
    assert not any(failing.values())
    assert undone == expected


# skip ----------------------------------------------------------------------------------------------------------------


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


# abandon -------------------------------------------------------------------------------------------------------------


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


def loses_its_connection(database_url: str, mended: list[bool]) -> Body:
    """The body of a callback that costs its run the connection until it is mended."""

    def body(scope: Any, *_: Any) -> None:
        if not mended:
            with psycopg.connect(database_url, autocommit=True) as other:
                other.execute("select pg_terminate_backend(%s, 5000)", [scope.connection.info.backend_pid])

    return body


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


# the hook ------------------------------------------------------------------------------------------------------------


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


# at the same time ----------------------------------------------------------------------------------------------------


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
