"""TP, Q64: participants that are no sagas. Somebody outside does their work, and says how it ended."""

import asyncio
import re
import uuid
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from scoop_outbox import (
    Answer,
    ChildRolledBack,
    DefinitionError,
    DistributedError,
    GaveUp,
    Handle,
    Repeat,
    RollbackRequested,
    Runs,
    RunState,
    RunStatus,
    UnknownMessage,
)
from scoop_outbox.app import service_of
from scoop_outbox.cli import main
from scoop_outbox.operations.runs import Cause
from tests.carriers import Carrier
from tests.docs.markdown import ROOT, blocks
from tests.scenarios.conftest import MakeShop
from tests.scenarios.retention import MONTH, age, prune, rows
from tests.scenarios.shop import LONG, Gate, Shop, events, launches, raises, together, with_a_message_on_its_way
from tests.waiting import until

MANAGER = "manager-approval"


def approval(shop: Shop, *, fails: bool = False, **options: Any) -> None:
    """A root that launches a message for somebody outside, and goes on when that is done."""
    root = shop.app.saga("root", on="R")
    shop.step(root, "0", launches("approvals", payload={"amount": 900}, key="order 1"))

    def keeps(scope: Any, _: object) -> None:
        if fails:
            raise RuntimeError("boom")
        scope.set_result([result.value for result in scope.results])

    shop.step(root, "1", keeps)
    shop.app.external(MANAGER, on="approvals", **options)


async def waiting(shop: Shop, handle: Handle, name: str = MANAGER) -> RunStatus:
    """The run of somebody outside, once it has begun."""

    async def begun() -> bool:
        try:
            return bool(await shop.runs(handle, name))
        except UnknownMessage:
            return False

    await until(begun, LONG)
    return await shop.only(handle, name)


async def failed(handle: Handle) -> DistributedError:
    with pytest.raises(DistributedError) as caught:
        await handle.wait(LONG)
    return caught.value


async def is_in(shop: Shop, handle: Handle, name: str, state: RunState) -> bool:
    return (await shop.only(handle, name)).state is state


def database_of(shop: Shop) -> str:
    return service_of(shop.app).home.url


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


@pytest.mark.everywhere
async def test_q64_it_is_completed_while_its_message_is_on_its_way(mixed: Shop, carrier: Carrier) -> None:
    approval(mixed)
    async with with_a_message_on_its_way(mixed, carrier) as handle:
        (work,) = await mixed.ask("select message_id from scoop_outbox.child")
        assert await mixed.app.complete(work[0], MANAGER, result="early") is Answer.ACCEPTED
        assert await mixed.app.complete(work[0], MANAGER, result="again") is Answer.ALREADY_REQUESTED
    async with mixed.running():
        assert await handle.wait(LONG) == ["early"]


async def test_q64_a_root_is_completed_while_it_is_in_the_outbox(mixed: Shop) -> None:
    external = mixed.app.external(MANAGER, on="approvals")
    handle = await mixed.app.launch("approvals", None)
    assert mixed.app.complete_sync(handle.id, external, result="early") is Answer.ACCEPTED
    async with mixed.running():
        assert await handle.wait(LONG) == "early"


async def test_q64_whoever_died_between_saying_and_telling_says_it_again(mixed: Shop) -> None:
    mixed.app.external(MANAGER, on="approvals")
    async with mixed.running():
        handle = await mixed.app.launch("approvals", None)
        work = await waiting(mixed, handle)
        await mixed.ask(
            "insert into scoop_outbox.request (target, kind, result) values (%s, 'complete', '1') returning id", work.id
        )
        assert await mixed.app.complete(work.message_id, MANAGER, result=2) is Answer.ALREADY_REQUESTED
        assert await handle.wait(LONG) == 1


async def test_q64_a_message_that_comes_again_is_no_more_work(mixed: Shop) -> None:
    mixed.app.external(MANAGER, on="approvals")
    async with mixed.running():
        handle = await mixed.app.launch("approvals", None)
        await waiting(mixed, handle)
        await mixed.ask(
            "insert into scoop_outbox.outbox (shard, message_id, topic, body, content_type, headers) "
            "select 0, id, topic, body, content_type, headers from scoop_outbox.message returning seq"
        )
        await until(lambda: _outbox_is_empty(mixed), LONG)
        assert await mixed.app.complete(handle.id, MANAGER, result=1) is Answer.ACCEPTED
        assert await handle.wait(LONG) == 1
    assert await mixed.states(handle) == {MANAGER: RunState.COMMITTED}


async def _outbox_is_empty(shop: Shop) -> bool:
    return not await shop.ask("select from scoop_outbox.outbox")


async def test_q64_it_is_completed_by_the_transaction_that_did_the_work(mixed: Shop) -> None:
    approval(mixed)
    engine = create_async_engine(make_url(database_of(mixed)).set(drivername="postgresql+psycopg"))
    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        work = (await waiting(mixed, handle)).message_id
        async with AsyncSession(engine) as session:
            assert await mixed.app.fail(work, MANAGER, error=ValueError("no"), session=session) is Answer.ACCEPTED
            await session.rollback()
        async with AsyncSession(engine) as session:
            answer = await mixed.app.complete(work, MANAGER, result="\0yes", session=session)
            assert answer is Answer.ACCEPTED
            assert (await mixed.only(handle, MANAGER)).state is RunState.RUNNING
            await session.commit()
        assert await handle.wait(LONG) == ["\0yes"]
        async with AsyncSession(engine) as session:
            assert await mixed.app.fail(work, MANAGER, session=session) is Answer.ALREADY_COMPLETED
    await engine.dispose()


async def test_q64_a_session_lets_it_fail_and_does_not_wait_for_what_is_on_its_way(mixed: Shop) -> None:
    mixed.app.external(MANAGER, on="approvals")
    engine = create_async_engine(make_url(database_of(mixed)).set(drivername="postgresql+psycopg"))
    handle = await mixed.app.launch("approvals", None)
    async with AsyncSession(engine) as session:
        assert await mixed.app.complete(handle.id, MANAGER, session=session) is Answer.NOT_YET
        await session.commit()
    async with mixed.running():
        await waiting(mixed, handle)
        async with AsyncSession(engine) as session:
            error = ValueError("no")
            error.__cause__ = OSError("no pen")
            assert await mixed.app.fail(handle.id, MANAGER, error=error, session=session) is Answer.ACCEPTED
            await session.commit()
        raised = await failed(handle)
    assert (raised.failure.type, raised.failure.causes[0].message) == ("ValueError", "no pen")
    await engine.dispose()


async def test_q64_it_is_listed_and_explained(mixed: Shop) -> None:
    approval(mixed)
    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        work = await waiting(mixed, handle)
        with Runs(database_of(mixed)) as runs:
            assert {run.saga for run in runs.list()} == {"root", MANAGER}
            await until(lambda: _waits_outside(runs, handle), LONG)
            (first, *_) = runs.explain(handle.id).waiting
            (reason,) = first.reasons
            assert first.run_id == work.id
            assert reason.text == (
                f"it waits for somebody to complete it: scoop-outbox complete {work.message_id} {MANAGER}"
            )
    # Nobody is alive who could end it, and that is what it waits for once it is completed.
    with Runs(database_of(mixed)) as runs:
        assert runs.complete(work.message_id, MANAGER, source="me") is Answer.ACCEPTED
        (first, *_) = runs.explain(handle.id).waiting
        assert (first.next, [reason.cause for reason in first.reasons]) == ("it commits", [Cause.NO_WORKER])


def _waits_outside(runs: Runs, handle: Handle) -> bool:
    return [reason.cause for one in runs.explain(handle.id).waiting for reason in one.reasons] == [Cause.OUTSIDE]


async def test_q64_from_the_command_line(mixed: Shop) -> None:
    approval(mixed)
    command = CliRunner()
    options = ["--database", database_of(mixed)]
    async with mixed.running():
        first, second = await mixed.app.launch("R", None), await mixed.app.launch("R", None)
        work, other = [str((await waiting(mixed, one)).message_id) for one in (first, second)]
        done = command.invoke(main, ["complete", work, MANAGER, "--result", '{"ok": true}', *options])
        assert (done.exit_code, done.output) == (0, f"{work}\taccepted\n")
        no = command.invoke(main, ["fail", other, MANAGER, "--reason", "no", "--source", "me", *options])
        assert (no.exit_code, no.output) == (0, f"{other}\taccepted\n")
        late = command.invoke(main, ["fail", work, MANAGER, *options])
        assert (late.exit_code, late.output) == (1, f"{work}\talready completed\n")
        assert command.invoke(main, ["complete", work, MANAGER, "--result", "{", *options]).exit_code == 2
        assert await first.wait(LONG) == [{"ok": True}]
        assert "ExternalFailed: no" in str(await failed(second))
    shown = command.invoke(main, ["show", str(second.id), *options]).output
    assert re.search(
        r"^ *manager-approval \(shop\): rolled_back, .*\n *failure: ExternalFailed: no\n *fail, .*, by me$",
        shown,
        re.MULTILINE,
    )


async def test_q17_another_language_says_it_with_the_documented_statement(mixed: Shop) -> None:
    approval(mixed)
    ((_, documented),) = [one for one in blocks(ROOT / "docs" / "operations.md", "sql") if "external" in one[1]]
    assert documented.count("'complete'") == documented.count('\'{"by": "Ms Moss"}\', null') == 1
    failing = documented.replace("'complete'", "'fail'").replace('\'{"by": "Ms Moss"}\', null', "null, 'no'")
    async with mixed.running():
        first, second = await mixed.app.launch("R", None), await mixed.app.launch("R", None)
        with psycopg.connect(database_of(mixed)) as connection:
            for handle, statement in ((first, documented), (second, failing)):
                work = (await waiting(mixed, handle)).message_id
                said = re.sub(r"'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}'", f"'{work}'", statement)
                assert [connection.execute(said.encode()).rowcount for _ in range(2)] == [1, 0]
        assert await first.wait(LONG) == [{"by": "Ms Moss"}]
        (cause,) = (await failed(second)).failure.causes
        assert str(cause) == "[web page] ExternalFailed: no"


def test_q64_it_has_no_steps_and_a_name_of_its_own(mixed: Shop) -> None:
    external = mixed.app.external(MANAGER, on="approvals")
    with pytest.raises(DefinitionError, match="external participant and has no steps"):
        external.step("0")
    with pytest.raises(DefinitionError, match="has no steps"):
        external.add_step("0", lambda _scope, _message: None)
    with pytest.raises(DefinitionError, match="has a saga 'manager-approval' already"):
        mixed.app.saga(MANAGER, on="other")
    with pytest.raises(TypeError, match="ordered"):
        mixed.app.external("other", on="approvals", ordered="key")  # type: ignore[call-arg]
    assert repr(external) == "<external 'manager-approval' on 'approvals'>"


async def test_q64_it_is_completed_under_the_name_that_it_has_now(make_shop: MakeShop) -> None:
    old, new = make_shop(), make_shop()
    old.app.external("boss", on="approvals")
    new.app.external(MANAGER, on="approvals", formerly=["boss"])
    async with old.running():
        handle = await old.app.launch("approvals", None)
        await waiting(old, handle, "boss")
    async with new.running():
        await waiting(new, handle)
        assert await new.app.complete(handle.id, MANAGER, result=1.5) is Answer.ACCEPTED
        assert await handle.wait(LONG) == 1.5


async def test_q64_what_was_asked_to_give_up_before_it_came_does_not_begin(mixed: Shop) -> None:
    mixed.app.external(MANAGER, on="approvals")
    handle = await mixed.app.launch("approvals", None)
    assert await mixed.app.cancel(handle.id) is Answer.ACCEPTED
    assert await mixed.app.complete(handle.id, MANAGER) is Answer.GAVE_UP
    async with mixed.running():
        with pytest.raises(GaveUp):
            await handle.wait(LONG)


async def test_q64_what_was_said_is_pruned_with_its_hierarchy(mixed: Shop) -> None:
    approval(mixed)
    async with mixed.running():
        done, not_done = await mixed.app.launch("R", None), await mixed.app.launch("R", None)
        works = [await waiting(mixed, one) for one in (done, not_done)]
        assert await mixed.app.complete(works[0].id, MANAGER, result=1) is Answer.ACCEPTED
        error = ValueError("no")
        error.__cause__ = OSError("no pen")
        assert await mixed.app.fail(works[1].id, MANAGER, error=error) is Answer.ACCEPTED
        assert await done.wait(LONG) == [1]
        await failed(not_done)
    archived: list[Any] = []
    await age(mixed, MONTH)
    assert (await prune(mixed, archive=archived.extend)).hierarchies == 2
    assert await rows(mixed) == {}
    assert sorted(row["kind"] for one in archived for row in one.rows["request"]) == ["complete", "fail"]
    assert await mixed.app.complete(works[0].id, MANAGER) is Answer.UNKNOWN, "only what was at the top is remembered"


async def test_q64_what_was_said_of_work_that_never_began_is_pruned_too(mixed: Shop, carrier: Carrier) -> None:
    approval(mixed)
    async with with_a_message_on_its_way(mixed, carrier) as handle:
        (work,) = await mixed.ask("select message_id from scoop_outbox.child")
        assert await mixed.app.fail(work[0], MANAGER, reason="early") is Answer.ACCEPTED
        assert await mixed.app.cancel(handle.id) is Answer.ACCEPTED
        await failed(handle)
    assert await mixed.ask("select count(*) from scoop_outbox.request where kind = 'fail'") == [(1,)]
    await age(mixed, MONTH)
    assert (await prune(mixed)).hierarchies == 1
    assert "request" not in await rows(mixed)


async def test_q64_what_it_left_is_erased_with_the_payload(mixed: Shop) -> None:
    mixed.app.external(MANAGER, on="approvals")
    async with mixed.running():
        handle = await mixed.app.launch("approvals", None)
        await waiting(mixed, handle)
        assert await mixed.app.complete(handle.id, MANAGER, result="secret") is Answer.ACCEPTED
        assert await handle.wait(LONG) == "secret"
    await age(mixed, MONTH)
    assert (await prune(mixed, MONTH * 2, retain_payload=MONTH)).erased == 1
    assert await mixed.ask("select kind, result from scoop_outbox.request") == [("complete", None)]
    await age(mixed, MONTH * 2)
    assert (await prune(mixed)).hierarchies == 1
    assert await mixed.app.complete(handle.id, MANAGER) is Answer.EXPIRED
    assert mixed.app.fail_sync(handle.id, MANAGER) is Answer.EXPIRED
