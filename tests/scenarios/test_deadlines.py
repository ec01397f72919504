"""DL: until when a hierarchy, a run, or a rollback has to end, and what becomes of those that are late."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from scoop_outbox import DefinitionError, DistributedError, GaveUp, Handle, Retry, RunState, StepError
from tests.carriers import Carrier
from tests.scenarios.conftest import MakeShop
from tests.scenarios.shop import LONG, Gate, Shop, announced, launches, raises, with_a_message_on_its_way
from tests.waiting import until

SOON = 0.3
ENOUGH = 2.0
"""Seconds in which what has to happen before a deadline does, also on a machine that is busy."""
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
ROLLED_BACK = RunState.ROLLED_BACK


def late(failure: Any, saga: str, source: str) -> bool:
    """Whether a failure is that of a run of `saga` that gave up because of a deadline which `source` had set."""
    (cause,) = failure.causes
    return (
        failure.type == GaveUp.__name__
        and failure.source.split("[")[0] == saga
        and cause.type == "MissedHappyPathDeadline"
        and cause.source.split("[")[0] == source
        and cause.message.startswith(f"Missed happy path deadline of {cause.source} at 20")
        and not cause.stack_trace
        and not cause.causes
    )


async def late_at(gate: Gate, shop: Shop) -> tuple[Handle, GaveUp]:
    """Launch a message on R whose deadline passes while it is held back at the gate, and return how it ended."""
    async with shop.running():
        handle = await shop.app.launch("R", None, timeout=ENOUGH)
        await until(lambda: gate.entered, LONG)
        deadline = (await shop.only(handle, "root")).deadline
        assert deadline is not None
        # Test and database have one clock.
        await until(lambda: datetime.now(UTC) > deadline.at + timedelta(milliseconds=50), LONG)
        return handle, await _gave_up(gate, handle)


async def gives_up_at(gate: Gate, shop: Shop) -> tuple[Handle, GaveUp]:
    """Launch a message on R whose root gives up while its child is held back at the gate, and return how it ended."""

    async def gives_up() -> bool:
        return (await shop.only(handle, "root")).giving_up is not None

    async with shop.running():
        handle = await shop.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        await until(gives_up, LONG)
        return handle, await _gave_up(gate, handle)


async def deadlines_at(gate: Gate, shop: Shop, **options: Any) -> dict[str, Any]:
    """Launch a message on R and return the deadline of each saga's run while the one at the gate is executed."""
    async with shop.running():
        handle = await shop.app.launch("R", None, **options)
        await until(lambda: gate.entered, LONG)
        deadlines = {run.saga: run.deadline for run in await shop.runs(handle)}
        gate.open = True
        await handle.wait(LONG)
    return deadlines


async def _gave_up(gate: Gate, handle: Handle) -> GaveUp:
    gate.open = True
    with pytest.raises(GaveUp) as caught:
        await handle.wait(LONG)
    return caught.value


@pytest.mark.one_home("only its home knows whether a child has begun: that is waited for while it is down")
@pytest.mark.everywhere
async def test_dl_01_a_child_that_comes_too_late_executes_nothing(shop: Shop) -> None:
    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("C", deadline=LONG_AGO), on_child_failure=True)
    shop.saga("child", "C", None)

    async with shop.running():
        handle = await shop.app.launch("R", None, timeout=3600)
        with pytest.raises(DistributedError) as caught:
            await handle.wait(LONG)

    assert shop.journal == ["root-0", "root-hcf0", "root-rb0"]
    assert caught.value.failure.type == "ChildRolledBack"
    (failure,) = caught.value.failure.causes
    # Either it has started, or its parent was faster.
    assert late(failure, "child", "root") or late(failure, "root", "root")
    assert "2020-01-01T00:00:00+00:00" in (failure.causes[0].message or "")


async def test_dl_02_rf_09_a_rollback_without_time_left_calls_no_compensation(mixed: Shop) -> None:
    mixed.saga("root", "R", None, raises("no"))

    async with mixed.running():
        handle = await mixed.app.launch("R", None, rollback_timeout=0.000_001)
        with pytest.raises(DistributedError) as caught:
            await handle.wait(LONG)

    assert mixed.journal == ["root-0", "root-1"]
    assert await mixed.states(handle) == {"root": RunState.ROLLBACK_FAILED}
    assert caught.value.failure.type == GaveUp.__name__
    assert [cause.type for cause in caught.value.failure.causes] == ["MissedRollbackDeadline", "RuntimeError"]


async def test_dl_03_what_a_step_does_after_the_deadline_is_discarded_and_what_was_before_is_undone(shop: Shop) -> None:
    gate = Gate()
    shop.saga("root", "R", None, gate)

    _, error = await late_at(gate, shop)

    assert shop.journal == ["root-0", "root-1", "root-rb0"]
    assert late(error.failure, "root", "shop")


async def test_dl_04_the_earlier_deadline_counts_and_names_the_others(mixed: Shop) -> None:
    far = datetime.now(UTC) + timedelta(hours=1)
    gate = Gate()
    mixed.saga("root", "R", launches("C", timeout=60))
    mixed.saga("child", "C", launches("G", deadline=far + timedelta(hours=1)))
    mixed.saga("grandchild", "G", gate)

    deadline = (await deadlines_at(gate, mixed, deadline=far))["grandchild"]

    assert deadline is not None
    assert deadline.source.startswith("root[")
    assert [(one.at, one.source.split("[")[0]) for one in deadline.trace] == [
        (far, "shop"),
        (far + timedelta(hours=1), "child"),
    ] or [(one.at, one.source.split("[")[0]) for one in deadline.trace] == [
        (far + timedelta(hours=1), "child"),
        (far, "shop"),
    ]


async def test_dl_06_a_deadline_binds_all_that_is_below(mixed: Shop) -> None:
    gate = Gate()
    mixed.saga("root", "R", launches("C"))
    mixed.saga("child", "C", launches("G"))
    mixed.saga("grandchild", "G", gate)

    handle, error = await late_at(gate, mixed)

    assert mixed.journal == ["root-0", "child-0", "grandchild-0", "child-rb0", "root-rb0"]
    assert late(error.failure, "root", "shop")
    assert late((await mixed.only(handle, "child")).failure, "child", "shop")


async def test_dl_07_a_run_that_sets_its_own_deadline_gives_up_and_its_child_is_undone(mixed: Shop) -> None:
    gate = Gate()

    def launches_and_sets(scope: Any, _: Any) -> None:
        scope.launch("C", None)
        scope.set_deadline(timeout=ENOUGH)

    mixed.saga("root", "R", launches_and_sets, None)
    child = mixed.app.saga("child", "C", shield=True)
    mixed.step(child, "0", gate)
    mixed.step(child, "1")

    _, error = await gives_up_at(gate, mixed)

    assert mixed.journal == ["root-0", "child-0", "child-1", "child-rb1", "child-rb0", "root-rb0"]
    assert late(error.failure, "root", "root")


async def test_dl_08_the_budget_of_a_rollback_counts_from_its_beginning(mixed: Shop) -> None:
    gate = Gate()
    mixed.saga("root", "R", None, gate, raises("no"))

    async with mixed.running():
        handle = await mixed.app.launch("R", None, rollback_timeout=ENOUGH)
        await until(lambda: gate.entered, LONG)
        launched = datetime.now(UTC)
        await until(lambda: datetime.now(UTC) > launched + timedelta(seconds=1.1 * ENOUGH), LONG)
        gate.open = True
        with pytest.raises(DistributedError, match="no"):
            await handle.wait(LONG)

    assert mixed.journal == ["root-0", "root-1", "root-2", "root-rb1", "root-rb0"]


async def test_dl_09_a_run_that_waits_for_a_retry_gives_up_at_its_deadline(mixed: Shop) -> None:
    root = mixed.saga("root", "R", None)
    mixed.step(root, "1", raises("not yet"), retry=Retry(attempts=2, backoff=3600.0, max_backoff=3600.0))

    async with mixed.running():
        handle = await mixed.app.launch("R", None, timeout=ENOUGH)
        with pytest.raises(GaveUp):
            await handle.wait(LONG)

    assert mixed.journal == ["root-0", "root-1", "root-rb0"]


async def test_a_run_that_waits_for_its_lane_gives_up_at_its_deadline(mixed: Shop) -> None:
    gate = Gate()
    root = mixed.app.saga("root", "R", ordered="key")
    mixed.step(root, "0", gate)

    async with mixed.running():
        first = await mixed.app.launch("R", None, key="k")
        await until(lambda: gate.entered, LONG)
        second = await mixed.app.launch("R", None, key="k", timeout=SOON)
        with pytest.raises(GaveUp):
            await second.wait(LONG)
        gate.open = True
        await first.wait(LONG)

    assert mixed.journal == ["root-0"]


@pytest.mark.one_home("only its home knows whether a child has begun: that is waited for while it is down")
@pytest.mark.everywhere
async def test_q53_a_child_that_never_starts_fails_at_its_deadline(make_shop: MakeShop, carrier: Carrier) -> None:
    here, elsewhere = make_shop(), await announced(make_shop(service="elsewhere"), child="C")
    root = here.app.saga("root", "R")
    here.step(root, "0", launches("C", timeout=SOON), on_child_failure=True)

    async with with_a_message_on_its_way(here, carrier) as handle:
        with pytest.raises(DistributedError) as caught:
            await handle.wait(LONG)
    async with here.running(worker=False), elsewhere.running():
        await (await elsewhere.app.launch("C", None)).wait(LONG)

    assert here.journal == ["root-0", "root-hcf0", "root-rb0", "child-0"]  # that of its own
    (failure,) = caught.value.failure.causes
    assert late(failure, "root", "root")


async def test_dl_12_a_deadline_is_lifted_by_the_run_that_has_set_it(shop: Shop) -> None:
    gate = Gate()

    def sets(scope: Any, _: Any) -> None:
        scope.set_deadline(timeout=0.05)

    def lifts(scope: Any, _: Any) -> None:
        scope.set_deadline()

    root = shop.app.saga("root", "R", shield=True)  # a shield says when a run gives up, and not what binds it
    shop.step(root, "0", sets)
    shop.step(root, "1", lifts)
    shop.step(root, "2", launches("C"))
    shop.saga("child", "C", gate)

    assert await deadlines_at(gate, shop) == {"root": None, "child": None}


async def test_dl_12_what_somebody_else_has_set_is_not_lifted(mixed: Shop) -> None:
    def lifts(scope: Any, _: Any) -> None:
        scope.set_deadline()

    mixed.saga("root", "R", lifts, launches("C"))
    gate = Gate()
    mixed.saga("child", "C", gate)

    deadlines = await deadlines_at(gate, mixed, timeout=3600)

    assert [one and one.source for one in deadlines.values()] == ["shop", "shop"]


async def test_dl_10_q77_a_rollback_and_what_its_compensations_launch_is_not_late(mixed: Shop) -> None:
    gate = Gate()
    root = mixed.app.saga("root", "R")
    mixed.step(root, "0", compensate=launches("C"))
    mixed.step(root, "1", gate)
    mixed.saga("child", "C", None)

    handle, _ = await late_at(gate, mixed)

    assert mixed.journal == ["root-0", "root-1", "root-rb0", "child-0"]
    assert await mixed.states(handle) == {"root": ROLLED_BACK, "child": RunState.COMMITTED}


async def test_q20_a_budget_ends_a_rollback_that_waits_for_a_retry_and_all_above_it(mixed: Shop) -> None:
    mixed.saga("root", "R", launches("C"), raises("no"))
    child = mixed.app.saga("child", "C")
    patient = Retry(attempts=5, backoff=3600.0, max_backoff=3600.0)
    mixed.step(child, "0", compensate=raises("not now"), compensate_retry=patient)

    async with mixed.running():
        handle = await mixed.app.launch("R", None, rollback_timeout=SOON)
        with pytest.raises(DistributedError):
            await handle.wait(LONG)

    assert await mixed.states(handle) == dict.fromkeys(("root", "child"), RunState.ROLLBACK_FAILED)
    stuck = (await mixed.only(handle, "child")).failure
    assert stuck is not None
    assert stuck.causes[0].type == "MissedRollbackDeadline"


async def test_a_saga_has_a_timeout_of_its_own(mixed: Shop) -> None:
    gate = Gate()
    root = mixed.app.saga("root", "R", timeout=timedelta(seconds=ENOUGH))
    mixed.step(root, "0")
    mixed.step(root, "1", launches("C"))
    mixed.saga("child", "C", gate)

    _, error = await gives_up_at(gate, mixed)

    assert mixed.journal == ["root-0", "root-1", "child-0", "root-rb1", "root-rb0"]
    assert late(error.failure, "root", "root")


async def test_a_shielded_step_is_finished_first_and_nobody_polls_meanwhile(mixed: Shop) -> None:
    gate = Gate()
    root = mixed.app.saga("root", "R")
    mixed.step(root, "0", launches("C"), shield=True)
    mixed.step(root, "1")
    mixed.saga("child", "C", gate)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        gate.open = True
        await handle.wait(LONG)

    assert mixed.journal == ["root-0", "child-0", "root-1"]


async def test_a_deadline_joins_the_callers_transaction(mixed: Shop, database_url: str) -> None:
    mixed.saga("root", "R", None)
    await mixed.app.announce()

    def launch() -> Handle:
        with psycopg.connect(database_url) as connection:
            connection.execute("set datestyle to 'German'")
            return mixed.app.launch_sync("R", None, timeout=3600, session=connection)

    handle = await asyncio.to_thread(launch)
    async with mixed.running():
        await handle.wait(LONG)
        root = await mixed.only(handle, "root")

    assert root.deadline is not None
    assert timedelta(minutes=59) < root.deadline.at - datetime.now(UTC) < timedelta(minutes=61)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"timeout": 0}, "pass more than 0 seconds"),
        ({"timeout": "soon"}, "pass seconds, or a timedelta"),
        ({"deadline": datetime(2030, 1, 1)}, "pass a datetime with a time zone"),  # noqa: DTZ001
        ({"rollback_timeout": timedelta(seconds=-1)}, "pass more than 0 seconds"),
    ],
)
async def test_times_that_make_no_sense_are_refused(mixed: Shop, given: dict[str, Any], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        await mixed.app.launch("R", None, **given)


async def test_a_rollback_sets_no_deadline(mixed: Shop) -> None:
    def sets(scope: Any, *_: object) -> None:
        with pytest.raises(StepError, match="a rollback is not given up"):
            scope.set_deadline(timeout=1)

    root = mixed.app.saga("root", "R")
    mixed.step(root, "0", compensate=sets)
    mixed.step(root, "1", raises("no"))

    await mixed.fail("R")

    assert mixed.journal == ["root-0", "root-1", "root-rb0"]


def takes(duration: float, then: Exception | None = None) -> Any:
    """The body of a callback that takes so many seconds, and then returns or fails."""

    def body(*_: object) -> Any:
        end = datetime.now(UTC) + timedelta(seconds=duration)
        yield lambda: datetime.now(UTC) > end
        if then is not None:
            raise then

    return body


def launches_two(scope: Any, _: Any) -> None:
    scope.launch("C", None, timeout=SOON)
    scope.launch("D", None, timeout=2 * SOON)


@pytest.mark.one_home("only its home knows whether a child has begun: that is waited for while it is down")
@pytest.mark.parametrize("body", [launches_two, launches("C", deadline=LONG_AGO)], ids=["two", "long ago"])
async def test_q53_each_child_that_never_starts_fails_at_its_deadline(
    make_shop: MakeShop, carrier: Carrier, body: Any
) -> None:
    here = make_shop()
    await announced(make_shop(service="elsewhere"), child="C", other="D")
    root = here.app.saga("root", "R")
    here.step(root, "0", body)

    async with with_a_message_on_its_way(here, carrier) as handle:
        with pytest.raises(DistributedError):
            await handle.wait(LONG)

    assert here.journal == ["root-0", "root-rb0"]


@pytest.mark.one_home("only its home knows whether a child has begun: that is waited for while it is down")
async def test_a_deadline_that_is_over_when_it_is_set_ends_the_run(make_shop: MakeShop, carrier: Carrier) -> None:
    here = make_shop()
    await announced(make_shop(service="elsewhere"), child="C")

    def sets(scope: Any, _: Any) -> None:
        scope.launch("C", None)
        scope.set_deadline(deadline=LONG_AGO)

    here.saga("root", "R", sets)

    async with with_a_message_on_its_way(here, carrier) as handle:
        with pytest.raises(GaveUp):
            await handle.wait(LONG)


@pytest.mark.one_home("only its home knows whether a child has begun: that is waited for while it is down")
async def test_children_that_somebody_is_about_to_take_in_are_looked_at_again(
    make_shop: MakeShop, carrier: Carrier, database_url: str
) -> None:
    here = make_shop()
    await announced(make_shop(service="elsewhere"), child="C")
    here.saga("root", "R", launches("C", timeout=SOON))

    async with with_a_message_on_its_way(here, carrier) as handle:
        async with await psycopg.AsyncConnection.connect(database_url) as other:
            await other.execute("select from scoop_outbox.child where state = 'waiting' for update")
            late = datetime.now(UTC) + timedelta(seconds=2 * SOON)
            await until(lambda: datetime.now(UTC) > late, LONG)
            await other.rollback()
        with pytest.raises(DistributedError):
            await handle.wait(LONG)


async def test_dl_08_the_budget_does_not_begin_with_the_step_that_fails(mixed: Shop) -> None:
    mixed.saga("root", "R", None, takes(1.1 * ENOUGH, RuntimeError("no")))

    async with mixed.running():
        handle = await mixed.app.launch("R", None, rollback_timeout=ENOUGH)
        with pytest.raises(DistributedError, match="no"):
            await handle.wait(LONG)

    assert mixed.journal == ["root-0", "root-1", "root-rb0"]


@pytest.mark.one_home("only its home knows whether a child has begun: that is waited for while it is down")
async def test_q20_a_budget_reaches_what_a_compensation_launches(make_shop: MakeShop, carrier: Carrier) -> None:
    here = make_shop()
    await announced(make_shop(service="elsewhere"), child="C")
    root = here.app.saga("root", "R", rollback_timeout=SOON)
    here.step(root, "0", compensate=launches("C"))
    here.step(root, "1", raises("no"))

    async with with_a_message_on_its_way(here, carrier) as handle:
        with pytest.raises(DistributedError):
            await handle.wait(LONG)

    assert await here.states(handle) == {"root": RunState.ROLLBACK_FAILED}


async def test_q20_a_child_that_is_told_to_roll_back_has_a_budget_of_its_own(mixed: Shop) -> None:
    mixed.saga("root", "R", launches("C", rollback_timeout=SOON), raises("no"))
    child = mixed.app.saga("child", "C")
    patient = Retry(attempts=5, backoff=3600.0, max_backoff=3600.0)
    mixed.step(child, "0", compensate=raises("not now"), compensate_retry=patient)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        with pytest.raises(DistributedError):
            await handle.wait(LONG)

    assert (await mixed.only(handle, "child")).state is RunState.ROLLBACK_FAILED


async def test_a_parked_run_gives_up_at_its_deadline(mixed: Shop) -> None:
    mixed.saga("root", "R", launches("C", timeout=ENOUGH))
    child = mixed.saga("child", "C", None)
    mixed.step(child, "1", raises(kind=MemoryError))

    async with mixed.running(max_interruptions=1):
        handle = await mixed.app.launch("R", None)
        with pytest.raises(DistributedError) as caught:
            await handle.wait(LONG)

    assert mixed.journal == ["root-0", "child-0", "child-1", "child-rb0", "root-rb0"]
    assert late(caught.value.failure.causes[0], "child", "root")


async def test_q37_what_a_shielded_step_has_launched_is_not_late(mixed: Shop) -> None:
    gate = Gate()
    root = mixed.app.saga("root", "R")
    mixed.step(root, "0", launches("C"), shield=True, on_child_failure=True)
    mixed.step(root, "1")
    mixed.saga("child", "C", gate, None)

    await late_at(gate, mixed)

    assert mixed.journal == ["root-0", "child-0", "child-1", "child-rb1", "child-rb0", "root-rb0"]


async def test_dl_11_a_deadline_counts_next_to_other_context(mixed: Shop) -> None:
    gate = Gate()
    mixed.saga("root", "R", launches("C", context={"tenant": "b"}, timeout=60))
    mixed.saga("child", "C", gate)

    deadline = (await deadlines_at(gate, mixed, context={"tenant": "a"}, timeout=3600))["child"]

    assert deadline is not None
    assert deadline.source.startswith("root[")
