"""Q17, Q64: the ways in which somebody outside says that the work is done, and what is seen and kept of that."""

import re
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from scoop_outbox import (
    Answer,
    DefinitionError,
    GaveUp,
    Handle,
    Runs,
    RunState,
)
from scoop_outbox.cli import main
from scoop_outbox.operations.runs import Cause
from tests.carriers import Carrier
from tests.docs.markdown import ROOT, blocks
from tests.scenarios.conftest import MakeShop
from tests.scenarios.outside import MANAGER, approval, database_of, failed, waiting
from tests.scenarios.retention import MONTH, age, prune, rows
from tests.scenarios.shop import LONG, Shop, with_a_message_on_its_way
from tests.waiting import until


@pytest.mark.everywhere
@pytest.mark.one_home("who completes work before it has come says so where it was launched, or where it goes")
async def test_q64_it_is_completed_while_its_message_is_on_its_way(mixed: Shop, carrier: Carrier) -> None:
    approval(mixed)
    async with with_a_message_on_its_way(mixed, carrier) as handle:
        (work,) = await mixed.ask("select message_id from scoop_outbox.child")
        assert await mixed.app.complete(work[0], MANAGER, result="early") is Answer.ACCEPTED
        assert await mixed.app.complete(work[0], MANAGER, result="again") is Answer.ALREADY_REQUESTED
    async with mixed.running():
        assert await handle.wait(LONG) == ["early"]


@pytest.mark.one_home("it looks at what one database stores")
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


@pytest.mark.one_home("it is said in a transaction of one database")
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


@pytest.mark.one_home("it looks at what one database stores")
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


@pytest.mark.one_home("it looks at what one database stores")
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


@pytest.mark.one_home("it is said in a transaction of one database")
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


@pytest.mark.one_home("it looks at what one database stores")
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


@pytest.mark.one_home("it looks at what one database stores")
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


@pytest.mark.one_home("it looks at what one database stores")
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
