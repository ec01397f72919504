"""CA: somebody asks a hierarchy to give up, and all that it has done is undone."""

import asyncio
import uuid
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from scoop_outbox import Answer, CancellationRequested, GaveUp, Handle, Retry, RunCancelled, RunState, Saga
from scoop_outbox.cli import main
from scoop_outbox.core import forward
from scoop_outbox.core.run import Run
from scoop_outbox.core.transition import Transition
from scoop_outbox.operations.runs import Runs
from tests.carriers import Carrier
from tests.scenarios.conftest import MakeShop
from tests.scenarios.shop import COLOURS, LONG, Gate, Shop, events, launches, order, raises, with_a_message_on_its_way
from tests.waiting import until

FEELZ = {"reason": "feelz", "source": "master-system"}


def gave_up(failure: Any, saga: str) -> bool:
    """Whether a failure is that of a run of `saga` which gave up for the reason above, and for nothing else."""
    (cause,) = failure.causes
    return (failure.type, failure.message, failure.source.split("[")[0]) == (GaveUp.__name__, None, saga) and (
        (cause.type, cause.message, cause.source) == (CancellationRequested.__name__, "feelz", "master-system")
    )


@pytest.mark.everywhere
async def test_ca_01_cf_11_q56_a_child_that_executes_gives_up_at_its_end_and_then_its_parent(shop: Shop) -> None:
    gate = Gate()
    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("C"), on_child_failure=True)
    shop.step(root, "1")
    shop.saga("child", "C", gate, None)

    async with shop.running():
        handle = await shop.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        assert await shop.app.cancel(handle.id, **FEELZ) is Answer.ACCEPTED
        await until(lambda: _gives_up(shop, handle), LONG)  # the child has been told, too
        gate.open = True
        with pytest.raises(GaveUp) as caught:
            await handle.wait(LONG)

    assert shop.journal == ["root-0", "child-0", "root-rb0"]  # no failure handler, nothing of the child's to undo
    assert await events(shop.app, handle) == ["root 0 step compensated", "root 0 compensation committed"]
    assert await shop.states(handle) == {"root": RunState.ROLLED_BACK, "child": RunState.ROLLED_BACK}
    assert gave_up(caught.value.failure, "root")
    assert gave_up((await shop.only(handle, "child")).failure, "child")


async def test_ca_02_what_has_committed_is_not_cancelled(mixed: Shop) -> None:
    mixed.saga("root", "R", launches("C"))
    mixed.saga("child", "C", None)

    handle = await mixed.run("R")

    assert await mixed.app.cancel(handle.id, **FEELZ) is Answer.NOTHING_TO_DO
    async with mixed.running():
        await (await mixed.app.launch("R", None)).wait(LONG)
    assert await mixed.states(handle) == {"root": RunState.COMMITTED, "child": RunState.COMMITTED}


@pytest.mark.everywhere
async def test_ca_03_q50_a_message_that_nobody_has_seen_starts_a_run_that_executes_nothing(mixed: Shop) -> None:
    mixed.saga("root", "R", None)
    await mixed.app.announce()
    handle = await mixed.app.launch("R", None)

    assert await mixed.app.cancel(handle.id, **FEELZ) is Answer.ACCEPTED
    async with mixed.running():
        with pytest.raises(GaveUp) as caught:
            await handle.wait(LONG)

    assert mixed.journal == []
    assert await mixed.states(handle) == {"root": RunState.ROLLED_BACK}
    assert gave_up(caught.value.failure, "root")


async def test_ca_04_q8_the_first_reason_counts_and_an_unknown_id_is_said_to_be_unknown(mixed: Shop) -> None:
    gate = Gate()
    mixed.saga("root", "R", gate)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        assert await mixed.app.cancel(handle.id, **FEELZ) is Answer.ACCEPTED
        assert await mixed.app.cancel(handle.id, reason="other", source="other") is Answer.ALREADY_REQUESTED
        assert await mixed.app.cancel(uuid.uuid4(), **FEELZ) is Answer.UNKNOWN
        gate.open = True
        with pytest.raises(GaveUp) as caught:
            await handle.wait(LONG)

    assert gave_up(caught.value.failure, "root")
    assert await mixed.app.cancel(handle.id) is Answer.ALREADY_ROLLED_BACK


async def test_ca_05_a_rollback_is_not_cancelled(mixed: Shop) -> None:
    gate = Gate()
    root = mixed.saga("root", "R", None)
    mixed.step(root, "1", compensate=gate)

    def fails(*_: object) -> None:
        raise RuntimeError("no")

    mixed.step(root, "2", fails)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        assert await mixed.app.cancel(handle.id, **FEELZ) is Answer.NOTHING_TO_DO
        gate.open = True
        with pytest.raises(Exception, match="no"):
            await handle.wait(LONG)

    assert mixed.journal == ["root-0", "root-1", "root-2", "root-rb1", "root-rb0"]


async def test_ca_06_cancelled_by_its_run_a_child_fails_for_its_parent(mixed: Shop) -> None:
    gate = Gate()
    handled: list[Any] = []

    def handles(_: Any, __: Any, error: Any) -> None:
        handled.append(error.failure)

    root = mixed.app.saga("root", "R")
    mixed.step(root, "0", launches("C"), on_child_failure=handles)
    mixed.saga("child", "C", None, gate)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        child = await mixed.only(handle, "child")
        assert await mixed.app.cancel(child.id, **FEELZ) is Answer.ACCEPTED
        gate.open = True
        await handle.wait(LONG)

    assert mixed.journal == ["root-0", "child-0", "child-1", "child-rb0", "root-hcf0"]
    (failure,) = handled
    assert gave_up(failure.causes[0], "child")
    assert await mixed.states(handle) == {"root": RunState.COMMITTED, "child": RunState.ROLLED_BACK}


@pytest.mark.everywhere
async def test_ca_08_a_child_that_has_not_started_never_does(make_shop: MakeShop, carrier: Carrier) -> None:
    here, elsewhere = make_shop(), make_shop(service="elsewhere")
    here.saga("root", "R", launches("C"), None)
    elsewhere.saga("child", "C", None)
    await elsewhere.app.announce()

    async with with_a_message_on_its_way(here, carrier) as handle:
        assert await here.app.cancel(handle.id, **FEELZ) is Answer.ACCEPTED
        with pytest.raises(GaveUp) as caught:
            await handle.wait(LONG)
        assert gave_up(caught.value.failure, "root")
    async with here.running(worker=False), elsewhere.running():
        await (await elsewhere.app.launch("C", "of its own")).wait(LONG)

    assert here.journal == ["root-0", "root-rb0", "child-0"]
    assert await here.states(handle) == {"root": RunState.ROLLED_BACK}


async def test_ca_09_another_run_of_the_same_saga_goes_on(mixed: Shop) -> None:
    gates = {"a": Gate(), "b": Gate()}

    def waits(_: Any, message: Any) -> Any:
        return gates[message.payload]()

    def launches_on(scope: Any, message: Any) -> None:
        scope.launch("C", message.payload)

    mixed.saga("root", "R", launches_on, None)
    mixed.saga("child", "C", waits)

    async with mixed.running():
        a, b = [await mixed.app.launch("R", name) for name in gates]
        await until(lambda: all(gate.entered for gate in gates.values()), LONG)
        assert await mixed.app.cancel(a.id, **FEELZ) is Answer.ACCEPTED
        gates["a"].open = True
        with pytest.raises(GaveUp):
            await a.wait(LONG)
        assert mixed.journal.count("root-1") == 0
        gates["b"].open = True
        await b.wait(LONG)

    assert await mixed.states(b) == {"root": RunState.COMMITTED, "child": RunState.COMMITTED}


async def test_ca_10_nothing_is_rolled_back_beside_a_child_that_executes(mixed: Shop) -> None:
    gate = Gate()
    mixed.saga("root", "R", None, launches("C", "D"))
    mixed.saga("child", "C", gate)
    mixed.saga("quick", "D", None)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: gate.entered and mixed.journal.count("quick-0"), LONG)
        assert await mixed.app.cancel(handle.id, **FEELZ) is Answer.ACCEPTED
        await until(lambda: _gives_up(mixed, handle), LONG)
        assert not [entry for entry in mixed.journal.entries if "rb" in entry]
        gate.open = True
        with pytest.raises(GaveUp):
            await handle.wait(LONG)

    order(mixed.journal, "child-0", "quick-rb0", "root-rb1", "root-rb0")
    assert mixed.journal.count("child-rb0") == 0


async def _gives_up(shop: Shop, handle: Handle) -> bool:
    root, *_ = await shop.runs(handle, "root")
    return root.giving_up is not None


async def test_ca_11_a_shielded_saga_runs_to_its_end_and_is_rolled_back_afterwards(mixed: Shop) -> None:
    gate = Gate()
    mixed.saga("root", "R", launches("C"), None)
    child = mixed.app.saga("child", "C", shield=True)
    mixed.step(child, "0", gate)
    mixed.step(child, "1", launches("G"))
    mixed.saga("grandchild", "G", None)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        assert await mixed.app.cancel(handle.id, **FEELZ) is Answer.ACCEPTED
        gate.open = True
        with pytest.raises(GaveUp):
            await handle.wait(LONG)

    assert mixed.journal == [
        *("root-0", "child-0", "child-1", "grandchild-0"),
        *("grandchild-rb0", "child-rb1", "child-rb0", "root-rb0"),
    ]
    assert (await mixed.only(handle, "child")).state is RunState.ROLLED_BACK


async def test_q37_a_shielded_step_and_what_it_launched_are_finished_first(shop: Shop) -> None:
    gate = Gate()
    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("C"), shield=True)
    shop.step(root, "1")
    shop.saga("child", "C", gate, None)

    async with shop.running():
        handle = await shop.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        assert await shop.app.cancel(handle.id, **FEELZ) is Answer.ACCEPTED
        gate.open = True
        with pytest.raises(GaveUp):
            await handle.wait(LONG)

    assert shop.journal == ["root-0", "child-0", "child-1", "child-rb1", "child-rb0", "root-rb0"]


async def test_q21_a_step_that_completes_on_give_up_is_compensated(shop: Shop) -> None:
    gate = Gate()
    root = shop.saga("root", "R", None)
    shop.step(root, "1", gate, complete_on_give_up=True)
    shop.step(root, "2")

    async with shop.running():
        handle = await shop.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        assert await shop.app.cancel(handle.id, **FEELZ) is Answer.ACCEPTED
        gate.open = True
        with pytest.raises(GaveUp):
            await handle.wait(LONG)

    assert shop.journal == ["root-0", "root-1", "root-rb1", "root-rb0"]


async def test_a_run_that_waits_for_a_retry_gives_up_at_once(mixed: Shop) -> None:
    root = mixed.saga("root", "R", None)
    mixed.step(root, "1", raises("not yet"), retry=Retry(attempts=2, backoff=3600.0, max_backoff=3600.0))

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: mixed.journal.count("root-1"), LONG)
        await until(lambda: _has_failed(mixed, handle), LONG)
        assert await mixed.app.cancel(handle.id, **FEELZ) is Answer.ACCEPTED
        with pytest.raises(GaveUp):
            await handle.wait(LONG)

    assert mixed.journal == ["root-0", "root-1", "root-rb0"]


async def _has_failed(shop: Shop, handle: Handle) -> bool:
    return any(step.state == "failed" for step in (await shop.only(handle, "root")).steps)


async def test_a_run_that_waits_for_its_lane_gives_up_at_once(mixed: Shop) -> None:
    gate = Gate()
    root = mixed.app.saga("root", "R", ordered="key")
    mixed.step(root, "0", gate)

    async with mixed.running():
        first, second, third = [await mixed.app.launch("R", None, key="k") for _ in range(3)]
        await until(lambda: gate.entered, LONG)
        assert await mixed.app.cancel(second.id, **FEELZ) is Answer.ACCEPTED
        with pytest.raises(GaveUp):
            await second.wait(LONG)
        assert mixed.journal == ["root-0"]
        gate.open = True
        await first.wait(LONG)
        await third.wait(LONG)

    assert mixed.journal == ["root-0", "root-0"]


async def test_a_run_that_is_about_to_end_gives_up_instead(mixed: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed.saga("root", "R", launches("C"))
    mixed.saga("child", "C", None)
    answers: list[Answer] = []
    committed = forward.committed

    def cancelled_meanwhile(saga: Saga, run: Run) -> Transition:
        if not answers:
            answers.append(mixed.app.cancel_sync(run.message_id, **FEELZ))
        return committed(saga, run)

    monkeypatch.setattr(forward, "committed", cancelled_meanwhile)
    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        with pytest.raises(GaveUp):
            await handle.wait(LONG)

    assert answers == [Answer.ACCEPTED]
    assert mixed.journal == ["root-0", "child-0", "child-rb0", "root-rb0"]


async def test_a_cancelled_step_leaves_no_row_and_no_message(mixed: Shop) -> None:
    def cancels(scope: Any, message: Any) -> None:
        scope.launch("C", None)
        assert mixed.app.cancel_sync(message.id, **FEELZ) is Answer.ACCEPTED

    mixed.saga("root", "R", cancels)
    mixed.saga("child", "C", None)

    handle, error = await mixed.fail("R")

    assert gave_up(error.failure, "root")
    assert mixed.journal == ["root-0"]
    assert await events(mixed.app, handle) == []
    assert await mixed.states(handle) == {"root": RunState.ROLLED_BACK}


async def test_a_parked_run_gives_up(mixed: Shop) -> None:
    def dies(*_: object) -> None:
        raise MemoryError

    mixed.saga("root", "R", launches("C"))
    child = mixed.saga("child", "C", None)
    mixed.step(child, "1", dies)

    async with mixed.running(max_interruptions=1):
        handle = await mixed.app.launch("R", None)
        await until(lambda: mixed.journal.count("child-1"), LONG)
        await until(lambda: _is_parked(mixed, handle), LONG)
        assert await mixed.app.cancel(handle.id, **FEELZ) is Answer.ACCEPTED
        with pytest.raises(GaveUp):
            await handle.wait(LONG)

    assert mixed.journal == ["root-0", "child-0", "child-1", "child-rb0", "root-rb0"]


async def _is_parked(shop: Shop, handle: Handle) -> bool:
    return any(run.state is RunState.PARKED for run in await shop.runs(handle))


async def test_many_children_are_cancelled_those_that_run_and_those_that_wait(mixed: Shop) -> None:
    gate = Gate()

    def launches_many(scope: Any, _: Any) -> None:
        for number in range(100):
            scope.launch("C", number)

    mixed.saga("root", "R", launches_many)
    mixed.saga("child", "C", gate)

    async with mixed.running(slots=4):
        handle = await mixed.app.launch("R", None)
        await until(lambda: len(mixed.journal.entries) > 4, LONG)
        assert await mixed.app.cancel(handle.id, **FEELZ) is Answer.ACCEPTED
        gate.open = True  # there is no slot for the parent before
        with pytest.raises(GaveUp):
            await handle.wait(LONG)

    assert mixed.journal.count("child-0") < 50  # the parent does not wait until all mail before its own is seen to
    assert {run.state for run in await mixed.runs(handle)} == {RunState.ROLLED_BACK}


async def test_operators_cancel_without_an_application(mixed: Shop, database_url: str) -> None:
    gate = Gate()
    mixed.saga("root", "R", None, gate)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        arguments = ["cancel", str(handle.id), str(uuid.UUID(int=1)), "--database", database_url]
        told = await asyncio.to_thread(CliRunner().invoke, main, [*arguments, "--reason", "feelz", "--source", "me"])
        gate.open = True
        with pytest.raises(GaveUp) as caught:
            await handle.wait(LONG)

    assert told.exit_code == 1
    assert told.output == f"{handle.id}\taccepted\n{uuid.UUID(int=1)}\tunknown\n"
    assert str(caught.value.failure.causes[0]) == "[me] CancellationRequested: feelz"
    with Runs(database_url) as runs:
        assert runs.cancel(handle.id, source="me") is Answer.ALREADY_ROLLED_BACK


@pytest.mark.parametrize("colour", COLOURS[:2], indirect=True)
async def test_q62_a_step_asks_at_a_checkpoint(shop: Shop) -> None:
    gate = Gate()

    def asks(scope: Any, _: Any) -> Any:
        yield scope.checkpoint()
        shop.journal("root-goes on")
        yield from gate()
        yield scope.checkpoint()
        shop.journal("root-never")

    shop.saga("root", "R", None, asks)

    async with shop.running():
        handle = await shop.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        assert await shop.app.cancel(handle.id, **FEELZ) is Answer.ACCEPTED
        gate.open = True
        with pytest.raises(GaveUp) as caught:
            await handle.wait(LONG)

    assert gave_up(caught.value.failure, "root")
    assert shop.journal == ["root-0", "root-1", "root-goes on", "root-rb0"]
    assert await events(shop.app, handle) == ["root 0 step compensated", "root 0 compensation committed"]


@pytest.mark.parametrize("colour", COLOURS[:2], indirect=True)
async def test_q62_a_checkpoint_sees_a_deadline_and_may_be_in_a_group(shop: Shop) -> None:
    async def waits(scope: Any) -> None:
        while True:
            await scope.checkpoint()

    async def grouped(scope: Any, _: Any) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(waits(scope))
            group.create_task(asyncio.sleep(LONG))

    def loops(scope: Any, _: Any) -> None:
        while True:
            scope.checkpoint()

    root = shop.app.saga("root", "R")
    root.add_step("0", grouped if next(shop.colours) == "async" else loops)

    async with shop.running():
        handle = await shop.app.launch("R", None, timeout=0.2)
        with pytest.raises(GaveUp) as caught:
            await handle.wait(LONG)

    assert [cause.type for cause in caught.value.failure.causes] == ["MissedHappyPathDeadline"]


async def test_q62_nothing_is_stopped_in_what_is_shielded(mixed: Shop) -> None:
    gate = Gate()

    def asks(scope: Any, _: Any) -> Any:
        yield from gate()
        yield scope.checkpoint()
        mixed.journal("root-goes on")

    root = mixed.app.saga("root", "R")
    mixed.step(root, "0", asks, shield=True)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        assert await mixed.app.cancel(handle.id, **FEELZ) is Answer.ACCEPTED
        gate.open = True
        with pytest.raises(GaveUp):
            await handle.wait(LONG)

    assert mixed.journal == ["root-0", "root-goes on", "root-rb0"]


async def test_what_looks_like_a_cancellation_and_is_none_is_a_failure(mixed: Shop) -> None:
    mixed.saga("root", "R", None, raises("of my own", RunCancelled))

    _, error = await mixed.fail("R")

    assert (error.failure.type, error.failure.message) == ("scoop_outbox.errors.RunCancelled", "of my own")
    assert mixed.journal == ["root-0", "root-1", "root-rb0"]


async def test_a_shielded_run_that_is_parked_stays_parked(mixed: Shop) -> None:
    def dies(*_: object) -> None:
        raise MemoryError

    root = mixed.app.saga("root", "R", shield=True)
    mixed.step(root, "0", dies)

    async with mixed.running(max_interruptions=1):
        handle = await mixed.app.launch("R", None)
        await until(lambda: mixed.journal.count("root-0"), LONG)
        await until(lambda: _is_parked(mixed, handle), LONG)
        assert await mixed.app.cancel(handle.id, **FEELZ) is Answer.ACCEPTED
        await until(lambda: _has_no_mail(mixed), LONG)  # the worker has looked

    assert mixed.journal == ["root-0"]


async def _has_no_mail(shop: Shop) -> bool:
    return not await shop.ask("select from scoop_outbox.mailbox")


@pytest.mark.parametrize("option", ["shield", "complete_on_give_up"])
async def test_q21_a_last_step_that_is_committed_is_compensated(mixed: Shop, option: str) -> None:
    gate = Gate()
    root = mixed.saga("root", "R", None)
    given: dict[str, Any] = {option: True}
    mixed.step(root, "1", gate, **given)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        assert await mixed.app.cancel(handle.id, **FEELZ) is Answer.ACCEPTED
        gate.open = True
        with pytest.raises(GaveUp):
            await handle.wait(LONG)

    assert mixed.journal == ["root-0", "root-1", "root-rb1", "root-rb0"]


async def test_q14_the_message_of_a_cancelled_child_starts_no_late_run(make_shop: MakeShop, carrier: Carrier) -> None:
    here, elsewhere, newcomer = make_shop(), make_shop(service="elsewhere"), make_shop(service="newcomer")
    here.saga("root", "R", launches("C"))
    elsewhere.saga("child", "C", None)
    await elsewhere.app.announce()

    async with with_a_message_on_its_way(here, carrier) as handle:
        await here.app.cancel(handle.id, **FEELZ)
        with pytest.raises(GaveUp):
            await handle.wait(LONG)
    newcomer.saga("late", "C", None)
    async with here.running(worker=False), elsewhere.running(), newcomer.running():
        await (await newcomer.app.launch("C", None)).wait(LONG)  # behind the other one

    assert sorted(here.journal.entries) == ["child-0", "late-0", "root-0", "root-rb0"]


async def test_a_message_that_is_taken_in_while_it_is_looked_for_is_cancelled(mixed: Shop, database_url: str) -> None:
    mixed.saga("root", "R", None)
    await mixed.app.announce()
    handle = await mixed.app.launch("R", None)

    async with await psycopg.AsyncConnection.connect(database_url) as other:
        await other.execute("lock table scoop_outbox.expected_root in access exclusive mode")
        asking = asyncio.create_task(mixed.app.cancel(handle.id, **FEELZ))
        await until(lambda: _is_waited_for(mixed), LONG)
        async with mixed.running(worker=False):
            await until(lambda: mixed.ask("select from scoop_outbox.run"), LONG)
            await other.rollback()
            assert await asking is Answer.ACCEPTED


async def _is_waited_for(shop: Shop) -> bool:
    return bool(await shop.ask("select from pg_locks where not granted"))


async def test_q76_children_that_are_stuck_are_told_of_when_the_run_has_given_up(mixed: Shop) -> None:
    gate = Gate()
    root = mixed.app.saga("root", "R")
    mixed.step(root, "0", launches("C", "D"), on_child_failure=True, on_child_rollback_failure=lambda *_: None)
    stuck = mixed.app.saga("stuck", "C")
    mixed.step(stuck, "0", compensate=raises("cannot"))
    mixed.step(stuck, "1", raises("no"))
    mixed.saga("child", "D", gate)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: gate.entered and mixed.journal.count("stuck-rb0"), LONG)
        await until(lambda: mixed.ask("select from scoop_outbox.child where state = 'rollback_failed'"), LONG)
        assert await mixed.app.cancel(handle.id, **FEELZ) is Answer.ACCEPTED
        gate.open = True
        with pytest.raises(GaveUp):
            await handle.wait(LONG)

    assert mixed.journal.of("root") == ["root-0", "root-hcrf0", "root-rb0"]


async def test_a_run_that_is_cancelled_while_it_is_parked_gives_up(mixed: Shop) -> None:
    gate = Gate()

    def dies(*_: object) -> Any:
        yield from gate()
        raise MemoryError

    mixed.saga("root", "R", launches("C"))
    child = mixed.app.saga("child", "C")
    mixed.step(child, "0")
    mixed.step(child, "1", dies)

    async with mixed.running(max_interruptions=1):
        handle = await mixed.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        assert await mixed.app.cancel(handle.id, **FEELZ) is Answer.ACCEPTED
        await until(lambda: _gives_up(mixed, handle), LONG)  # the child has been told, while it is executed
        gate.open = True
        with pytest.raises(GaveUp):
            await handle.wait(LONG)

    assert mixed.journal == ["root-0", "child-0", "child-1", "child-rb0", "root-rb0"]
