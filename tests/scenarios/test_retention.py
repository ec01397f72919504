"""Q18: hierarchies that have ended are removed whole, after a while; what can still run, or heal, stays."""

import asyncio
import uuid
from datetime import timedelta
from typing import Any

import pytest
from click.testing import CliRunner

from scoop_outbox import Answer, DefinitionError, RollbackAnswer, RunState, UnknownMessage
from scoop_outbox.app import service_of
from scoop_outbox.cli import main
from scoop_outbox.core.plans.intake import take_in
from scoop_outbox.message import Envelope
from tests.scenarios.conftest import MakeShop
from tests.scenarios.retention import MONTH, age, prune, rows
from tests.scenarios.shop import LONG, Gate, Shop, launches, raises
from tests.waiting import until

EXPIRED = RollbackAnswer(Answer.EXPIRED)


def family(shop: Shop) -> None:
    """A root with two children, of which one fails and is handled."""
    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("C"), on_child_failure=lambda *_: None)
    shop.step(root, "1")
    shop.saga("child", "C", launches("G"))
    shop.saga("broken", "C", launches("G"), raises("boom"))
    shop.saga("grandchild", "G", None)


async def test_q18_d36_a_hierarchy_that_has_ended_goes_whole(shop: Shop) -> None:
    family(shop)
    old = await shop.run("R")
    assert (await rows(shop)).keys() >= {"run", "step", "child", "failure"}
    await age(shop, timedelta(days=31))
    young = await shop.run("R")
    left = await rows(shop)

    counts = await prune(shop)

    assert (counts.hierarchies, counts.runs) == (1, 5)
    assert await rows(shop) == {table: count // 2 for table, count in left.items()}
    assert len(await shop.runs(young)) == 5
    with pytest.raises(UnknownMessage, match="pruned"):
        await shop.app.status(old.id)
    with pytest.raises(UnknownMessage, match="pruned"):
        await old.wait(0)
    # Of the five messages of each, that at the top is remembered.
    messages = await shop.ask("select id, body from scoop_outbox.message where forget_at is not null")
    assert messages == [(old.id, b"")]
    assert await shop.ask("select count(*) from scoop_outbox.message") == [(5,)]


async def test_q18_undo_after_pruning_answers_expired(shop: Shop) -> None:
    shop.saga("root", "R", launches("C"))
    shop.saga("child", "C", None)
    handle = await shop.run("R")
    root = await shop.only(handle, "root")
    await age(shop, MONTH)
    await prune(shop)

    for target in (handle.id, root.id):
        assert await shop.app.rollback(target) == EXPIRED
        assert await shop.app.cancel(target) is Answer.EXPIRED
    assert await shop.app.rollback(uuid.uuid4()) == RollbackAnswer(Answer.UNKNOWN)
    url = service_of(shop.app).home.url
    done = await asyncio.to_thread(CliRunner().invoke, main, ["rollback", str(handle.id), "--database", url])
    assert (done.exit_code, done.output) == (1, f"{handle.id}\texpired\n")
    shown = await asyncio.to_thread(CliRunner().invoke, main, ["show", str(handle.id), "--database", url])
    assert shown.output.startswith(f"message {handle.id}: topic R, pruned 20")


@pytest.mark.parametrize("how", ["parked", "stuck", "running", "asked to be undone"])
async def test_q18_what_can_still_run_or_heal_keeps_its_whole_hierarchy(mixed: Shop, how: str) -> None:
    gate = Gate()
    mixed.saga("root", "R", launches("C"))
    child = mixed.app.saga("child", "C")
    mixed.step(child, "0", compensate=raises("stuck") if how == "stuck" else True)
    bodies: dict[str, Any] = {"stuck": raises("boom"), "running": gate}
    mixed.step(child, "1", bodies.get(how))
    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: mixed.journal.count("child-1"), LONG)
        if how == "stuck":
            await until(lambda: mixed.journal.count("child-rb0"), LONG)
            with pytest.raises(Exception, match="stuck"):
                await handle.wait(LONG)
        elif how != "running":
            await handle.wait(LONG)
        if how == "running":
            await age(mixed, MONTH)
            assert (await prune(mixed)).hierarchies == 0
            gate.open = True
            await handle.wait(LONG)
            return
    if how == "parked":
        await mixed.execute("update scoop_outbox.run set state = 'parked', reason = 'r' where saga = 'child'")
    if how == "asked to be undone":  # by a transaction that has just committed
        await mixed.execute(
            "insert into scoop_outbox.request (target, kind) select id, 'rollback' from scoop_outbox.run"
        )
    await age(mixed, MONTH)
    left = await rows(mixed)

    assert (await prune(mixed)).hierarchies == 0
    assert await rows(mixed) == left


async def test_q18_what_was_abandoned_goes_with_what_people_have_done_about_it(mixed: Shop) -> None:
    root = mixed.app.saga("root", "R")
    mixed.step(root, "0", compensate=raises("stuck"))
    mixed.step(root, "1", raises("boom"))
    handle, _ = await mixed.fail("R")
    await age(mixed, MONTH)
    assert (await prune(mixed)).hierarchies == 0

    run = await mixed.only(handle, "root")
    assert run.state is RunState.ROLLBACK_FAILED
    await mixed.app.retry(run.id, note="again")
    async with mixed.running():
        await until(lambda: mixed.journal.count("root-rb0") == 2, LONG)
        await until(lambda: _is(mixed, run.id, RunState.ROLLBACK_FAILED), LONG)
    assert await mixed.app.abandon(run.id) is Answer.ACCEPTED
    await age(mixed, MONTH)
    assert (await prune(mixed)).hierarchies == 1
    assert await rows(mixed) == {}


async def _is(shop: Shop, run_id: uuid.UUID, state: RunState) -> bool:
    found = await shop.ask("select state from scoop_outbox.run where id = %s", run_id)
    return found == [(state.value,)]


async def test_q18_what_was_cancelled_or_undone_goes_with_the_requests(mixed: Shop) -> None:
    gate = Gate()
    mixed.saga("root", "R", launches("C"), None)
    mixed.saga("child", "C", gate)
    async with mixed.running():
        cancelled = await mixed.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        assert await mixed.app.cancel(cancelled.id) is Answer.ACCEPTED
        gate.open = True
        undone = await mixed.app.launch("R", None)
        await undone.wait(LONG)
        await mixed.app.rollback(undone.id)
        for handle in (cancelled, undone):
            with pytest.raises(Exception, match="Requested"):
                await handle.wait(LONG)
    assert (await rows(mixed))["request"] >= 3
    await age(mixed, MONTH)
    assert (await prune(mixed)).hierarchies == 2
    assert await rows(mixed) == {}


async def test_q18_a_late_run_belongs_to_the_hierarchy(make_shop: MakeShop) -> None:
    shop, audit = make_shop(), make_shop(service="audit")
    shop.saga("root", "R", launches("C"))
    async with shop.running(worker=False):
        handle = await shop.app.launch("R", None)
        await until(lambda: _count(shop, "run", 1), LONG)
    async with shop.running(relay=False):
        await handle.wait(LONG)
    gate = Gate()
    audit.saga("late", "C", gate)
    async with audit.running():
        await until(lambda: gate.entered, LONG)
        await age(shop, MONTH)
        assert (await prune(shop)).hierarchies == 0
        gate.open = True
        await until(lambda: _is_ended(shop), LONG)
    await age(shop, MONTH)
    assert (await prune(shop)).runs == 2
    assert await rows(shop) == {}


async def _is_ended(shop: Shop) -> bool:
    return await shop.ask("select from scoop_outbox.run where ended_at is null") == []


async def _count(shop: Shop, table: str, count: int) -> bool:
    return await shop.ask(f"select count(*) from scoop_outbox.{table}") == [(count,)]  # noqa: S608


def _again(row: Any, lineage: str | None) -> Envelope:
    """A message as its broker hands it over once more."""
    message_id, topic = row
    headers = {} if lineage is None else {"scoop-lineage": lineage}
    return Envelope(str(message_id), topic, None, b"1", "application/json", headers)


@pytest.mark.parametrize("service", [None, "shop"])
async def test_q18_messages_of_a_pruned_hierarchy_that_come_again_start_nothing(
    make_shop: MakeShop, service: str | None
) -> None:
    """Not even in a saga that did not exist then; and they are no dead letters."""
    shop = make_shop()
    shop.saga("root", "R", launches("C"))
    shop.saga("child", "C", None)
    handle = await shop.run("R")
    root = await shop.only(handle, "root")
    messages = await shop.ask("select id, topic from scoop_outbox.message order by topic desc")
    again = [_again(messages[0], None), _again(messages[1], str(root.id))]
    await age(shop, MONTH)
    await prune(shop)
    new = make_shop()
    for topic in "RC":
        new.saga(f"new on {topic}", topic, None)
    await new.app.announce()
    home = service_of(new.app).home

    for _ in range(2):
        async with home.driver() as driver:
            assert await driver.run(take_in(again, service_of(new.app).hints, service=service)) == []
        assert await rows(shop) == {}
    # That of the child is nobody's now, and goes as such.
    await age(shop, MONTH)
    assert (await prune(shop)).unhandled == 1
    assert await rows(shop) == {}


async def test_q18_what_was_pruned_is_forgotten_after_a_while(mixed: Shop) -> None:
    mixed.saga("root", "R", None)
    given = uuid.uuid4()
    handle = await mixed.run("R", id=given)
    await age(mixed, MONTH)
    await prune(mixed)
    assert await mixed.app.launch("R", None, id=given) is not None
    assert await _count(mixed, "outbox", 0), "the id is still one message's"
    await mixed.execute("update scoop_outbox.message set forget_at = forget_at - %s", timedelta(days=6, hours=23))
    assert (await prune(mixed)).forgotten == 0
    assert await mixed.app.rollback(handle.id) == EXPIRED
    await mixed.execute("update scoop_outbox.message set forget_at = forget_at - %s", timedelta(hours=2))
    assert (await prune(mixed)).forgotten == 1
    assert await mixed.app.rollback(handle.id) == RollbackAnswer(Answer.UNKNOWN)
    assert await _count(mixed, "launched", 0)
    with pytest.raises(DefinitionError, match="7 days"):
        await prune(mixed, remember=timedelta(days=6))


async def test_q18_promise_19_sagas_say_how_long_they_are_kept_and_the_longest_counts(mixed: Shop) -> None:
    for name, topics, days in (("short", "AB", 1), ("long", "BC", 60), ("says nothing", "D", None)):
        for topic in topics:
            saga = mixed.app.saga(f"{name} {topic}", topic, retention=None if days is None else timedelta(days=days))
            mixed.step(saga, "0", None)
    async with mixed.running():
        for topic in "ABCD":
            await (await mixed.app.launch(topic, None)).wait(LONG)

    async def kept() -> list[str]:
        return [saga for (saga,) in await mixed.ask("select saga from scoop_outbox.run order by saga")]

    await age(mixed, timedelta(days=31))
    await prune(mixed, timedelta(days=40))
    assert await kept() == ["long B", "long C", "says nothing D", "short A", "short B"], "older than is asked for, too"
    await prune(mixed, MONTH)
    assert await kept() == ["long B", "long C", "short B"]
    await age(mixed, timedelta(days=31))
    await prune(mixed, MONTH)
    assert await kept() == []


async def test_q18_the_payload_goes_before_the_trace_and_then_nothing_is_undone(mixed: Shop) -> None:
    def tells(scope: Any, _: Any) -> None:
        scope.set_result({"secret": 1})
        scope.launch("C", {"secret": 2})

    mixed.saga("root", "R", tells)
    child = mixed.app.saga("child", "C")
    mixed.step(child, "0", lambda scope, _: scope.context.__setitem__("secret", 3))
    handle = await mixed.run("R", {"secret": 4}, headers={"secret": "5"})
    await age(mixed, timedelta(days=8))

    assert (await prune(mixed, retain_payload=timedelta(days=9))).erased == 0
    assert (await prune(mixed, retain_payload=timedelta(days=7))).erased == 1
    assert (await prune(mixed, retain_payload=timedelta(days=7))).erased == 0, "once"
    for table in ("message", "run", "child", "step"):
        assert "secret" not in str(await mixed.ask(f"select r::text from scoop_outbox.{table} r")), table  # noqa: S608
    assert {run.saga for run in await mixed.runs(handle)} == {"root", "child"}
    assert await mixed.app.rollback(handle.id) == EXPIRED
    assert await mixed.app.rollback((await mixed.only(handle, "child")).id) == EXPIRED
    assert await mixed.app.cancel(handle.id) is Answer.NOTHING_TO_DO
    # A saga that comes later would find an empty body.
    later = mixed.app.saga("later", "C")
    mixed.step(later, "0", None)
    await mixed.app.announce()
    (row,) = await mixed.ask("select id, topic from scoop_outbox.message where topic = 'C'")
    root = await mixed.only(handle, "root")
    async with service_of(mixed.app).home.driver() as driver:
        again = [_again(row, str(root.id))]
        await driver.run(take_in(again, service_of(mixed.app).hints, service="shop"))
    assert len(await mixed.runs(handle)) == 2

    await age(mixed, MONTH)
    assert (await prune(mixed)).hierarchies == 1
    assert await rows(mixed) == {}


async def test_q18_messages_that_nobody_handles_go_too(mixed: Shop) -> None:
    mixed.saga("root", "R", launches("nobody", "C"))
    mixed.saga("child", "C", None)
    await mixed.run("R")
    async with mixed.running():
        await (await mixed.app.launch("nobody either", None)).wait(LONG)
    await age(mixed, timedelta(days=29))
    assert (await prune(mixed)).unhandled == 0
    await age(mixed, timedelta(days=1))
    counts = await prune(mixed)
    assert (counts.hierarchies, counts.unhandled) == (1, 2)
    assert await mixed.ask("select count(*) from scoop_outbox.message where forget_at is null") == [(0,)]


async def test_q18_the_command_says_what_goes_before_it_does(mixed: Shop) -> None:
    mixed.saga("root", "R", launches("C", "nobody"))
    mixed.saga("child", "C", None)
    for _ in range(3):
        await mixed.run("R")
    await age(mixed, MONTH)

    def told(*options: str) -> str:
        url = service_of(mixed.app).home.url
        done = CliRunner().invoke(main, ["prune", "--older-than", "30d", "--database", url, *options])
        assert done.exit_code == 0, done.output
        return done.output.splitlines()[-1]

    left = await rows(mixed)
    assert await asyncio.to_thread(told, "--dry-run") == "3\t6\t3\t0\t0"
    assert await asyncio.to_thread(told, "--dry-run", "--limit", "2") == "2\t4\t0\t0\t0"
    assert await rows(mixed) == left
    assert await asyncio.to_thread(told, "--limit", "2") == "2\t4\t0\t0\t0"
    assert await asyncio.to_thread(told) == "1\t2\t3\t0\t0"
    assert await rows(mixed) == {}
