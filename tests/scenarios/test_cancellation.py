"""CA: somebody asks a hierarchy to give up, and all that it has done is undone."""

import asyncio
import uuid
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from scoop_outbox import Answer, GaveUp, RunState, Saga
from scoop_outbox.cli import main
from scoop_outbox.core import forward
from scoop_outbox.core.run import Run
from scoop_outbox.core.transition import Transition
from scoop_outbox.operations.runs import Runs
from tests.carriers import Carrier
from tests.scenarios.cancelling import FEELZ, cancelled_at, gave_up, gives_up
from tests.scenarios.conftest import MakeShop
from tests.scenarios.shop import LONG, Gate, Shop, announced, events, launches, order, raises, with_a_message_on_its_way
from tests.waiting import until


@pytest.mark.everywhere
async def test_ca_01_cf_11_q56_a_child_that_executes_gives_up_at_its_end_and_then_its_parent(shop: Shop) -> None:
    gate = Gate()
    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("C"), on_child_failure=True)
    shop.step(root, "1")
    shop.saga("child", "C", gate, None)

    handle, error = await cancelled_at(gate, shop, told=True)

    assert shop.journal == ["root-0", "child-0", "root-rb0"]  # no failure handler, nothing of the child's to undo
    assert await events(shop.app, handle) == ["root 0 step compensated", "root 0 compensation committed"]
    assert await shop.states(handle) == {"root": RunState.ROLLED_BACK, "child": RunState.ROLLED_BACK}
    assert gave_up(error.failure, "root")
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


@pytest.mark.one_home("only its home knows whether a child has begun: that is waited for while it is down")
@pytest.mark.everywhere
async def test_ca_08_a_child_that_has_not_started_never_does(make_shop: MakeShop, carrier: Carrier) -> None:
    here, elsewhere = make_shop(), await announced(make_shop(service="elsewhere"), child="C")
    here.saga("root", "R", launches("C"), None)

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
        await until(lambda: gives_up(mixed, handle), LONG)
        assert not [entry for entry in mixed.journal.entries if "rb" in entry]
        gate.open = True
        with pytest.raises(GaveUp):
            await handle.wait(LONG)

    order(mixed.journal, "child-0", "quick-rb0", "root-rb1", "root-rb0")
    assert mixed.journal.count("child-rb0") == 0


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


@pytest.mark.one_home("only its home knows whether a child has begun: that is waited for while it is down")
async def test_q14_the_message_of_a_cancelled_child_starts_no_late_run(make_shop: MakeShop, carrier: Carrier) -> None:
    here, newcomer = make_shop(), make_shop(service="newcomer")
    elsewhere = await announced(make_shop(service="elsewhere"), child="C")
    here.saga("root", "R", launches("C"))

    async with with_a_message_on_its_way(here, carrier) as handle:
        await here.app.cancel(handle.id, **FEELZ)
        with pytest.raises(GaveUp):
            await handle.wait(LONG)
    newcomer.saga("late", "C", None)
    async with here.running(worker=False), elsewhere.running(), newcomer.running():
        await (await newcomer.app.launch("C", None)).wait(LONG)  # behind the other one

    assert sorted(here.journal.entries) == ["child-0", "late-0", "root-0", "root-rb0"]


@pytest.mark.builtin("a relay without a worker takes in what is launched")
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
