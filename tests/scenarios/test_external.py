"""TP, Q64: participants that are no sagas. Somebody outside does their work, and says how it ended."""

import asyncio
import uuid
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from scoop_outbox import (
    Answer,
    ChildRolledBack,
    GaveUp,
    Handle,
    Repeat,
    RollbackRequested,
    RunState,
    RunStatus,
    UnknownMessage,
)
from tests.scenarios.conftest import MakeShop
from tests.scenarios.outside import MANAGER, approval, database_of, failed, is_in, waiting
from tests.scenarios.shop import LONG, Gate, Shop, events, raises, together
from tests.waiting import until


async def test_tp_01_nobody_executes_it_and_the_parent_waits(make_shop: MakeShop) -> None:
    shop, office = make_shop(), make_shop(service="office")
    root = shop.app.saga("root", on="R")

    def loops(scope: Any, _: object) -> Repeat:
        scope.launch("C", None)
        scope.launch("approvals", None)
        return Repeat()

    shop.step(root, "loop", loops)
    shop.saga("child", "C", None)
    office.app.external(MANAGER, on="approvals")
    await office.app.announce()

    async with shop.running():
        handle = await shop.app.launch("R", None)
        await until(lambda: shop.journal.count("child-0"), LONG)
        with pytest.raises(TimeoutError):
            await handle.wait(0.5)
    assert shop.journal == ["root-loop", "child-0"]
    assert (await shop.only(handle, "root")).state is RunState.RUNNING


@pytest.mark.everywhere
async def test_tp_02_somebody_outside_completes_the_work_and_the_parent_goes_on(mixed: Shop) -> None:
    approval(mixed)
    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        work = await waiting(mixed, handle)
        assert await mixed.app.complete(work.message_id, MANAGER, result={"approved": True}) is Answer.ACCEPTED
        assert await handle.wait(LONG) == [{"approved": True}]
    assert mixed.journal == ["root-0", "root-1"]
    assert await mixed.states(handle) == {"root": RunState.COMMITTED, MANAGER: RunState.COMMITTED}


async def test_q64_it_is_completed_once_however_many_say_so(mixed: Shop) -> None:
    approval(mixed)
    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        work = (await waiting(mixed, handle)).message_id
        answers = await together(*(mixed.app.complete(work, MANAGER, result=n) for n in range(8)))
        assert sorted(answers) == [Answer.ACCEPTED] + 7 * [Answer.ALREADY_REQUESTED]
        assert await handle.wait(LONG) == [answers.index(Answer.ACCEPTED)]
    assert await mixed.app.complete(work, MANAGER, result="late") is Answer.ALREADY_REQUESTED
    assert await mixed.app.fail(work, MANAGER) is Answer.ALREADY_COMPLETED
    assert await events(mixed.app, handle, MANAGER) == [f"{MANAGER} completion step committed"]


async def test_q64_a_failure_travels_to_the_parent_with_who_said_so(mixed: Shop) -> None:
    approval(mixed)
    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        work = (await waiting(mixed, handle)).message_id
        said: dict[str, Any] = {"reason": "over budget", "source": "Ms Moss"}
        assert await mixed.app.fail(work, MANAGER, **said) is Answer.ACCEPTED
        error = await failed(handle)
        assert await mixed.app.fail(work, MANAGER, **said) is Answer.ALREADY_REQUESTED
        assert await mixed.app.complete(work, MANAGER) is Answer.ALREADY_FAILED
    assert isinstance(error, ChildRolledBack)
    assert [str(cause) for cause in error.failure.causes] == ["[Ms Moss] ExternalFailed: over budget"]
    assert mixed.journal == ["root-0", "root-rb0"]
    assert await mixed.states(handle) == {"root": RunState.ROLLED_BACK, MANAGER: RunState.ROLLED_BACK}


async def test_q64_an_exception_says_why_it_failed(mixed: Shop) -> None:
    approval(mixed)
    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        work = (await waiting(mixed, handle)).message_id
        error = ValueError("no signature")
        error.__cause__ = OSError("no pen")
        assert await mixed.app.fail(work, MANAGER, error=error, source="office") is Answer.ACCEPTED
        (cause,) = (await failed(handle)).failure.causes
    assert (cause.type, cause.message, cause.source) == ("ValueError", "no signature", "office")
    assert [below.message for below in cause.causes] == ["no pen"]


@pytest.mark.parametrize("target", ["hierarchy", "work"])
async def test_q64_what_is_cancelled_gives_up_at_once(mixed: Shop, target: str) -> None:
    approval(mixed, on_undo="undo")
    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        work = await waiting(mixed, handle)
        asked = handle.id if target == "hierarchy" else work.id
        assert await mixed.app.cancel(asked, reason="feelz") is Answer.ACCEPTED
        await failed(handle)
        assert await mixed.app.complete(work.message_id, MANAGER) is Answer.GAVE_UP
        assert await mixed.app.fail(work.message_id, MANAGER) is Answer.GAVE_UP
    assert await mixed.states(handle) == {"root": RunState.ROLLED_BACK, MANAGER: RunState.ROLLED_BACK}
    assert await events(mixed.app, handle, MANAGER) == []


@pytest.mark.parametrize("whose", ["its own", "of the launch"])
async def test_q64_what_is_late_gives_up_at_once(mixed: Shop, whose: str) -> None:
    approval(mixed, timeout=3 if whose == "its own" else None)
    async with mixed.running():
        handle = await mixed.app.launch("R", None, timeout=None if whose == "its own" else 3)
        work = await waiting(mixed, handle)
        error = await failed(handle)
        assert await mixed.app.complete(work.message_id, MANAGER) is Answer.GAVE_UP
    assert "Missed" in str(error) or any("GaveUp" in cause.type for cause in error.failure.causes)
    assert await mixed.states(handle) == {"root": RunState.ROLLED_BACK, MANAGER: RunState.ROLLED_BACK}


async def test_q64_what_was_accepted_counts_also_if_it_is_cancelled_before_anybody_looks(mixed: Shop) -> None:
    mixed.app.external(MANAGER, on="approvals", on_undo="undo")
    async with mixed.running():
        handle = await mixed.app.launch("approvals", None)
        work = await waiting(mixed, handle)
    assert await mixed.app.complete(work.message_id, MANAGER, result=1) is Answer.ACCEPTED
    assert await mixed.app.cancel(work.id) is Answer.ACCEPTED
    async with mixed.running():
        assert await handle.wait(LONG) == 1
    assert await mixed.states(handle) == {MANAGER: RunState.COMMITTED}


async def _is_old(shop: Shop, work: RunStatus, seconds: float) -> bool:
    old = "select from scoop_outbox.run where id = %s and clock_timestamp() >= created_at + %s * interval '1 s'"
    return bool(await shop.ask(old, work.id, seconds))


@pytest.mark.parametrize("ends", ["cancelled", "late"])
async def test_q64_what_was_accepted_counts_whoever_is_faster(mixed: Shop, ends: str) -> None:
    mixed.app.external(MANAGER, on="approvals")

    async def ends_it(number: int) -> None:
        handle = await mixed.app.launch("approvals", None, timeout=2 if ends == "late" else None)
        work = await waiting(mixed, handle)
        completing = mixed.app.complete(work.id, MANAGER, result=number)
        if ends == "late":
            # Around the deadline, by the clock that counts: each of them may be faster.
            await until(lambda: _is_old(mixed, work, 1.9 + number * 0.01), LONG, 0.05)
            answer = await completing
        elif number % 2:
            answer, _ = await together(completing, mixed.app.cancel(work.id))
        else:
            _, answer = await together(mixed.app.cancel(work.id), completing)
        if answer is Answer.GAVE_UP:
            with pytest.raises(GaveUp):
                await handle.wait(LONG)
        else:
            assert answer is Answer.ACCEPTED
            assert await handle.wait(LONG) == number

    async with mixed.running():
        await together(*(ends_it(number) for number in range(20)))


async def test_q64_who_decides_that_it_gives_up_at_this_moment_is_waited_for(mixed: Shop) -> None:
    mixed.app.external(MANAGER, on="approvals")
    async with mixed.running():
        handle = await mixed.app.launch("approvals", None)
        work = await waiting(mixed, handle)
    with psycopg.connect(database_of(mixed)) as worker:
        worker.execute("select from scoop_outbox.run where id = %s for update", [work.id])
        completing = asyncio.create_task(mixed.app.complete(work.id, MANAGER))
        await until(lambda: mixed.ask("select from pg_locks where not granted"), LONG)
        worker.execute("update scoop_outbox.run set state = 'rolled_back' where id = %s", [work.id])
        worker.commit()
        assert await completing is Answer.GAVE_UP


async def test_q64_what_was_completed_is_undone_by_being_told_and_that_is_waited_for(mixed: Shop) -> None:
    told: list[Any] = []
    gate = Gate()
    approval(mixed, fails=True, on_undo="approvals.undo")
    withdrawal = mixed.app.saga("withdrawal", on="approvals.undo")

    def withdraws(scope: Any, message: Any) -> Any:
        told.append((message.payload, message.key))
        yield from gate(scope, message)

    mixed.step(withdrawal, "0", withdraws)
    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        work = (await waiting(mixed, handle)).message_id
        await mixed.app.complete(work, MANAGER, result={"ticket": 7}, source="Ms Moss")
        await until(lambda: gate.entered, LONG)
        assert (await mixed.only(handle, MANAGER)).state is RunState.ROLLING_BACK
        gate.open = True
        await failed(handle)
        # Before the step that launched the work is compensated, the work is undone.
        assert mixed.journal == ["root-0", "root-1", "withdrawal-0", "root-rb0"]
    (payload, key), *again = told
    assert again == []
    assert key == "order 1"
    source = payload["reason"].pop("source")
    assert source.startswith("root[")
    assert payload == {
        "message_id": str(work),
        "name": MANAGER,
        "result": {"ticket": 7},
        "reason": {"type": "RuntimeError", "message": "boom"},
    }
    assert await mixed.app.complete(work, MANAGER) is Answer.ALREADY_REQUESTED


async def test_q64_without_anybody_to_be_told_it_counts_as_rolled_back(mixed: Shop) -> None:
    mixed.app.external(MANAGER, on="approvals")
    async with mixed.running():
        handle = await mixed.app.launch("approvals", None)
        work = await waiting(mixed, handle)
        await mixed.app.complete(work.message_id, MANAGER)
        await handle.wait(LONG)
        assert (await mixed.app.rollback(handle.id, reason="feelz")).answer is Answer.ACCEPTED
        with pytest.raises(RollbackRequested):
            await handle.wait(LONG)
    assert await mixed.states(handle) == {MANAGER: RunState.ROLLED_BACK}
    assert await events(mixed.app, handle) == [f"{MANAGER} completion step compensated"]


async def test_q64_who_is_told_and_fails_is_told_again_and_nothing_above_is_undone_before(mixed: Shop) -> None:
    approval(mixed, fails=True, on_undo="approvals.undo")
    fails = raises("not now")
    mixed.saga(
        "withdrawal", "approvals.undo", lambda *told: fails() if mixed.journal.count("withdrawal-0") < 2 else None
    )
    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        work = (await waiting(mixed, handle)).message_id
        await mixed.app.complete(work, MANAGER)
        await failed(handle)
    assert mixed.journal.entries[-3:] == ["withdrawal-0", "withdrawal-0", "root-rb0"]
    assert (await mixed.only(handle, MANAGER)).state is RunState.ROLLED_BACK


async def test_q64_two_of_them_and_a_saga_handle_one_message(mixed: Shop) -> None:
    approval(mixed)
    mixed.app.external("audit", on="approvals")
    mixed.saga("notes", "approvals", lambda scope, _: scope.set_result("noted"))
    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        work = (await waiting(mixed, handle)).message_id
        await until(lambda: mixed.journal.count("notes-0"), LONG)
        assert await mixed.app.complete(work, "notes") is Answer.NOT_EXTERNAL
        assert await mixed.app.complete(work, "audit", result="fine") is Answer.ACCEPTED
        await until(lambda: is_in(mixed, handle, "audit", RunState.COMMITTED), LONG)
        assert mixed.journal.count("root-1") == 0
        assert await mixed.app.complete(work, MANAGER, result="yes") is Answer.ACCEPTED
        assert sorted(await handle.wait(LONG)) == ["fine", "noted", "yes"]


@pytest.mark.one_home("it is about two services of one database")
async def test_q64_answers_about_what_it_is_not(make_shop: MakeShop) -> None:
    shop, office = make_shop(), make_shop(service="office")
    for one in (shop, office):
        one.app.external(MANAGER, on="approvals")
        await one.app.announce()
    assert await shop.app.complete(uuid.uuid4(), MANAGER) is Answer.UNKNOWN
    async with shop.running(), office.running():
        handle = await shop.app.launch("approvals", None)
        await until(lambda: _has_two(shop, handle), LONG)
        assert await shop.app.complete(handle.id, "nobody") is Answer.UNKNOWN
        assert await shop.app.complete(handle.id, MANAGER) is Answer.AMBIGUOUS
        # Also from the outside, by who is not its service.
        assert await shop.app.complete(handle.id, MANAGER, service="office", result=1) is Answer.ACCEPTED
        (mine,) = [run for run in await shop.runs(handle) if run.service == "shop"]
        assert await office.app.complete(mine.id, MANAGER, result=2) is Answer.ACCEPTED
        assert sorted(result.value for result in await handle.wait(LONG)) == [1, 2]


async def _has_two(shop: Shop, handle: Handle) -> bool:
    try:
        return len(await shop.runs(handle)) == 2
    except UnknownMessage:
        return False


@pytest.mark.one_home("it is said in a transaction of one database")
async def test_q64_a_transaction_that_commits_too_late_has_said_nothing(mixed: Shop) -> None:
    mixed.app.external(MANAGER, on="approvals")
    engine = create_async_engine(make_url(database_of(mixed)).set(drivername="postgresql+psycopg"))
    async with mixed.running():
        handle = await mixed.app.launch("approvals", None)
        await waiting(mixed, handle)
        async with AsyncSession(engine) as session:
            assert await mixed.app.complete(handle.id, MANAGER, session=session) is Answer.ACCEPTED
            assert await mixed.app.cancel(handle.id) is Answer.ACCEPTED
            with pytest.raises(GaveUp):
                await handle.wait(LONG)
            await session.commit()
        assert await mixed.app.complete(handle.id, MANAGER) is Answer.GAVE_UP
    await engine.dispose()


async def test_q64_its_timeout_is_shown_while_it_waits(mixed: Shop) -> None:
    mixed.app.external(MANAGER, on="approvals", timeout=600)
    async with mixed.running():
        handle = await mixed.app.launch("approvals", None)
        await waiting(mixed, handle)

        async def shown() -> bool:
            return (await mixed.only(handle, MANAGER)).deadline is not None

        await until(shown, LONG)


async def test_q64_code_without_an_event_loop_does_the_same(mixed: Shop) -> None:
    mixed.app.external(MANAGER, on="approvals")
    engine = create_engine(make_url(database_of(mixed)).set(drivername="postgresql+psycopg"))

    def says(done: uuid.UUID, not_done: uuid.UUID) -> list[Answer]:
        with Session(engine) as session:
            said = mixed.app.complete_sync(done, MANAGER, result=1, session=session)
            session.commit()
        with Session(engine) as session:
            also = mixed.app.fail_sync(not_done, MANAGER, reason="no", session=session)
            session.commit()
        return [said, also, mixed.app.fail_sync(done, MANAGER), mixed.app.complete_sync(not_done, MANAGER)]

    async with mixed.running():
        handles = [await mixed.app.launch("approvals", None) for _ in range(2)]
        for handle in handles:
            await waiting(mixed, handle)
        answers = await asyncio.to_thread(says, handles[0].id, handles[1].id)
        assert answers == [Answer.ACCEPTED, Answer.ACCEPTED, Answer.ALREADY_COMPLETED, Answer.ALREADY_FAILED]
        assert await handles[0].wait(LONG) == 1
        assert (await failed(handles[1])).failure.message == "no"
    engine.dispose()
