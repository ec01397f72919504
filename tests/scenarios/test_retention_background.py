"""Q18: pruning goes on in the background, what goes is archived, and who asks for its rollback is faster or slower."""

import asyncio
import json
import logging
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from scoop_outbox import (
    Answer,
    ArchivedHierarchy,
    DefinitionError,
    Handle,
    RollbackAnswer,
    RollbackRequested,
    RunState,
    Scoop,
)
from scoop_outbox._retention import Retention
from scoop_outbox.app import service_of
from scoop_outbox.cli import main
from scoop_outbox.core.plans import rollback
from scoop_outbox.core.plans.intake import take_in
from scoop_outbox.core.plans.prune import Part, Pruned, prune, read_periods
from scoop_outbox.core.statement import Plan
from scoop_outbox.daemon import maintenance
from scoop_outbox.daemon.daemons import Daemons
from scoop_outbox.daemon.maintenance import Maintenance
from scoop_outbox.message import Envelope
from tests.scenarios import retention
from tests.scenarios.retention import MONTH, age, rows
from tests.scenarios.shop import LONG, Shop, launches, raises
from tests.waiting import until

EXPIRED = RollbackAnswer(Answer.EXPIRED)


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the background look often, and rollbacks not give up as long as runs are held."""
    monkeypatch.setattr(maintenance, "EVERY", 0.02)
    monkeypatch.setattr(rollback, "_PAUSES", (0.02,) * 1000)


def family(shop: Shop) -> None:
    shop.saga("root", "R", launches("C"))
    shop.saga("child", "C", None)


def maintenance_of(running: Daemons) -> Maintenance:
    assert running.maintenance is not None
    return running.maintenance


async def is_empty(shop: Shop) -> bool:
    return await rows(shop) == {}


@pytest.mark.parametrize("whose", ["the relay's", "the saga's"])
async def test_q18_the_relay_prunes_in_the_background(
    mixed: Shop, whose: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    root = mixed.app.saga("root", "R", retention=MONTH if whose == "the saga's" else None)
    mixed.step(root, "0", launches("C", "nobody"))
    mixed.saga("child", "C", None)
    for _ in range(3):
        await mixed.run("R")
    await age(mixed, timedelta(days=29))
    options: dict[str, Any] = {"retention": MONTH} if whose == "the relay's" else {}
    async with mixed.app.running(worker=False, **options) as running:
        background = maintenance_of(running)
        await until(lambda: background.looks > 2, LONG)
        assert not await is_empty(mixed)
        await age(mixed, timedelta(days=2))
        await until(lambda: is_empty(mixed), LONG)
        await until(lambda: background.counts.hierarchies == 3, LONG)
        assert "scoop_outbox_pruned_hierarchies_total 3.0" in await running.metrics()
    assert "maintenance: pruned (3 hierarchies of 6 runs" in caplog.text
    # Who says nothing prunes nothing, but what sagas say.
    assert background.counts.unhandled == 0


async def test_q18_what_is_pruned_is_remembered_for_7_days_at_least(mixed: Shop) -> None:
    for wrong in ({"remember": timedelta(days=6)}, {"retention": 0}, {"retain_payload": "x"}):
        with pytest.raises(DefinitionError, match=next(iter(wrong))):
            async with mixed.running(**wrong):
                pass
    with pytest.raises(DefinitionError, match="retention"):
        mixed.app.saga("root", "R", retention=-1)


async def test_q18_what_is_too_large_is_left_to_the_command(
    mixed: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(maintenance, "LARGEST", 3)
    mixed.saga("root", "R", launches("C", "C", "C"))
    mixed.saga("child", "C", None)
    mixed.saga("alone", "A", None)
    await mixed.run("R")
    await mixed.run("A")
    await age(mixed, MONTH)
    async with mixed.running(worker=False, retention=MONTH) as running:
        await until(lambda: maintenance_of(running).counts.hierarchies == 1, LONG)
        await until(lambda: maintenance_of(running).looks > 4, LONG)
        assert await mixed.ask("select count(*) from scoop_outbox.run") == [(4,)]
    assert caplog.text.count("too large to be pruned in the background (1 of more than 3 runs") == 1
    assert (await retention.prune(mixed)).runs == 4


async def test_q18_one_process_of_a_home_prunes(mixed: Shop) -> None:
    family(mixed)
    await mixed.run("R")
    twin = Scoop("shop", database=service_of(mixed.app).home.url)
    async with mixed.running(worker=False) as first, twin.running(worker=False) as second:
        both = (first, second)

        def owners() -> list[int]:
            return [place for place, one in enumerate(both) if one.relay is not None and one.relay.is_first]

        # Which of the two it is depends on who has taken the first shard: it may be the second.
        await until(lambda: sum(maintenance_of(one).looks for one in both) > 2, LONG)
        (owner,) = owners()
        before = maintenance_of(both[1 - owner]).looks
        looks = maintenance_of(both[owner]).looks + 3
        await until(lambda: maintenance_of(both[owner]).looks > looks or owners() != [owner], LONG)
        assert owners() != [owner] or maintenance_of(both[1 - owner]).looks == before


@pytest.mark.parametrize("colour", ["async", "blocking"])
async def test_q18_promise_19_an_archive_sees_all_of_it_before_it_goes(mixed: Shop, colour: str) -> None:
    archived: list[ArchivedHierarchy] = []
    left: list[dict[str, int]] = []
    refusals = iter([True, False])

    def keep(hierarchy: ArchivedHierarchy) -> None:
        if next(refusals, False):
            raise OSError("the archive is full")
        archived.append(hierarchy)

    async def keep_async(hierarchy: ArchivedHierarchy) -> None:
        left.append(await rows(mixed))
        keep(hierarchy)

    mixed.app.on_archive(keep_async if colour == "async" else keep)
    root = mixed.app.saga("root", "R")
    mixed.step(root, "0", launches("C"), on_child_failure=lambda *_: None)
    mixed.saga("child", "C", None)
    mixed.saga("broken", "C", raises("boom"))
    handle = await mixed.run("R", {"sku": 1}, key="k")
    child = await mixed.only(handle, "child")
    async with mixed.running():
        await mixed.app.rollback(child.id, reason="feelz")
        await until(lambda: mixed.journal.count("child-rb0"), LONG)
        await until(lambda: _is(mixed, child.id, RunState.ROLLED_BACK), LONG)
    await age(mixed, MONTH)
    there = await rows(mixed)

    async with mixed.running(worker=False, retention=MONTH) as running:
        await until(lambda: is_empty(mixed), LONG)
        assert maintenance_of(running).failed == 1

    assert all(seen == there for seen in left), "nothing goes before it has returned"
    (hierarchy,) = archived
    assert (hierarchy.message_id, hierarchy.erased_only) == (handle.id, False)
    assert Counter({table: len(found) for table, found in hierarchy.rows.items()}) == Counter(there) + Counter(
        {"message": 2}
    )
    bodies = {row["topic"]: bytes.fromhex(row["body"][2:]) for row in hierarchy.rows["message"]}
    assert json.loads(bodies["R"]) == {"sku": 1}
    told = json.loads(hierarchy.to_json())
    assert {row["saga"] for row in told["run"]} == {"root", "child", "broken"}
    assert {row["type"] for row in told["failure"]} >= {"RuntimeError", "RollbackRequested"}


async def _is(shop: Shop, run_id: uuid.UUID, state: RunState) -> bool:
    return await shop.ask("select state from scoop_outbox.run where id = %s", run_id) == [(state.value,)]


async def test_q18_the_command_appends_to_a_file(mixed: Shop, tmp_path: Path) -> None:
    family(mixed)
    handles = [await mixed.run("R") for _ in range(2)]
    async with mixed.running():
        nobody = await mixed.app.launch("nobody", 1)
        await nobody.wait(LONG)
    await age(mixed, MONTH)
    file = tmp_path / "archive.jsonl"
    url = service_of(mixed.app).home.url

    def told(*options: str) -> Any:
        return CliRunner().invoke(main, ["prune", "--older-than", "30d", "--database", url, *options])

    missing = await asyncio.to_thread(told, "--archive", str(tmp_path / "no" / "file"))
    assert (missing.exit_code, "cannot be written" in missing.output) == (1, True)
    assert (await rows(mixed))["run"] == 4
    short = await asyncio.to_thread(told, "--archive", str(file), "--limit", "1")
    assert short.exit_code == 0, short.output
    assert len(file.read_text().splitlines()) == 1, "what does not go is not archived"
    await asyncio.to_thread(told, "--archive", str(file))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["message_id"] for line in lines} == {str(one.id) for one in (*handles, nobody)}
    assert [table for table in lines[-1] if table not in ("message_id", "erased_only")] == ["message"]


@asynccontextmanager
async def held_after(shop: Shop, batches: int, handle: Handle, *, part: Part) -> AsyncIterator[Callable[[], Any]]:
    """Begin to prune a hierarchy, and go no further than so many batches; what it gives does the rest.

    Behind the first, it is known what is due; behind the second, the message at the top is locked; behind the third,
    the runs; behind the fourth, all is gone, and not committed.
    """

    def plan() -> Plan[Pruned]:
        periods = yield from read_periods(Retention(MONTH, MONTH))
        return (yield from prune([handle.id], periods, part))

    async with service_of(shop.app).home.driver() as driver:
        pruning = plan()
        batch = next(pruning)
        for _ in range(batches):
            batch = pruning.send(await driver.run(_asked(batch)))

        async def rest() -> Pruned:
            nonlocal batch
            while True:
                rows_of = await driver.run(_asked(batch))
                try:
                    batch = pruning.send(rows_of)
                except StopIteration as done:
                    pruned: Pruned = done.value
                    return pruned

        yield rest


@pytest.mark.parametrize("held", [1, 2, 3, 4])
@pytest.mark.parametrize("part", list(Part))
async def test_q18_who_asks_for_a_rollback_while_it_goes_is_faster_or_told_that_it_is_gone(
    mixed: Shop, part: Part, held: int
) -> None:
    """At each boundary of the transaction that prunes, before it commits."""
    family(mixed)
    handle = await mixed.run("R")
    await age(mixed, MONTH)
    async with held_after(mixed, held, handle, part=part) as rest:
        asking = asyncio.create_task(mixed.app.rollback(handle.id))
        if held < 3:  # nobody holds the runs yet
            await asking
        else:
            await until(lambda: _waits_or_is_done(mixed, [asking]), LONG)
        pruned = await rest()
    expected = RollbackAnswer(Answer.ACCEPTED) if held < 3 else EXPIRED
    assert (await asking, pruned.hierarchies) == (expected, int(held >= 3))
    if held < 3:
        async with mixed.running():
            with pytest.raises(RollbackRequested):
                await handle.wait(LONG)


def _asked(batch: Any) -> Plan[Any]:
    return (yield batch)


async def test_q18_what_is_held_is_not_waited_for(mixed: Shop, database_url: str) -> None:
    family(mixed)
    handles = [await mixed.run("R") for _ in range(2)]
    await age(mixed, MONTH)
    child = await mixed.only(handles[0], "child")
    for question, target in (
        ("select from scoop_outbox.run where id = %s for share", child.id),
        ("select from scoop_outbox.message where id = %s for share", handles[0].id),
    ):
        async with await psycopg.AsyncConnection.connect(database_url) as connection:
            await connection.execute(question.encode(), [target])
            async with asyncio.timeout(LONG):
                counts = await retention.prune(mixed)
            assert counts.hierarchies <= 1
    assert len(await mixed.runs(handles[0])) == 2
    assert (await retention.prune(mixed)).hierarchies == 1
    assert await is_empty(mixed)


async def test_q18_rollbacks_and_pruning_race_and_every_hierarchy_is_undone_or_gone(mixed: Shop) -> None:
    family(mixed)
    async with mixed.running():
        handles = [await mixed.app.launch("R", number) for number in range(60)]
        for handle in handles:
            await handle.wait(LONG)
    await age(mixed, MONTH)

    async def ask(handle: Any) -> RollbackAnswer:
        return await mixed.app.rollback(handle.id)

    async with mixed.running():
        pruning = [asyncio.create_task(retention.prune(mixed, pause=0.0)) for _ in range(2)]
        answers = await asyncio.gather(*map(ask, reversed(handles)))
        gone = sum(counts.hierarchies for counts in await asyncio.gather(*pruning))
        undone = [handle for handle, answered in zip(reversed(handles), answers, strict=True) if answered != EXPIRED]
        for handle in undone:
            with pytest.raises(Exception, match="RollbackRequested"):
                await handle.wait(LONG)
    assert {one.answer for one in answers} <= {Answer.ACCEPTED, Answer.EXPIRED}
    assert gone + len(undone) == len(handles)
    assert mixed.journal.count("root-rb0") == mixed.journal.count("child-rb0") == len(undone)
    assert (await rows(mixed)).get("run", 0) == 2 * len(undone)


async def comes_later(shop: Shop, *topics: str) -> None:
    """A service that listens on topics after something has been launched on them."""
    app = Scoop("later", database=service_of(shop.app).home.url)
    for topic in topics:
        app.saga(f"later on {topic}", topic).add_step("only", lambda scope, message: None)
    await app.announce()
    await app.close()


async def messages_again(shop: Shop, handle: Handle) -> list[Envelope]:
    """The messages of a family, as a broker hands them over once more."""
    child, root = await shop.only(handle, "child"), await shop.only(handle, "root")
    lineage = {"scoop-lineage": str(root.id)}
    return [
        Envelope(str(child.message_id), "C", None, b"1", "application/json", lineage),
        Envelope(str(handle.id), "R", None, b"1", "application/json", {}),
    ]


async def is_taken_in(shop: Shop, messages: Sequence[Envelope], service: str | None = "later") -> None:
    async with service_of(shop.app).home.driver() as driver:
        await driver.run(take_in(messages, service_of(shop.app).hints, service=service))


@pytest.mark.parametrize("held", [1, 2, 3])
@pytest.mark.parametrize("part", list(Part))
async def test_q18_a_late_run_that_begins_while_its_hierarchy_goes_keeps_it(mixed: Shop, held: int, part: Part) -> None:
    """The message is taken in for a saga that has come since, in a transaction that commits first."""
    family(mixed)
    handle = await mixed.run("R")
    again = await messages_again(mixed, handle)
    await age(mixed, MONTH)
    await comes_later(mixed, "C")

    async with held_after(mixed, held, handle, part=part) as rest:
        await is_taken_in(mixed, again)
        assert (await rest()).hierarchies == 0
    assert {run.saga for run in await mixed.runs(handle)} == {"root", "child", "later on C"}


@pytest.mark.parametrize("service", [None, "later"])
@pytest.mark.parametrize("part", list(Part))
async def test_q18_nothing_begins_below_what_is_going(mixed: Shop, part: Part, service: str | None) -> None:
    """Taken in behind the removal, before it commits."""
    family(mixed)
    handle = await mixed.run("R")
    again = await messages_again(mixed, handle)
    await age(mixed, MONTH)
    await comes_later(mixed, "C", "R")

    async with held_after(mixed, 4, handle, part=part) as rest:
        taking = [asyncio.create_task(is_taken_in(mixed, [one], service)) for one in again]
        await until(lambda: _waits_or_is_done(mixed, taking), LONG)
        assert (await rest()).hierarchies == 1
    async with asyncio.timeout(LONG):
        await asyncio.gather(*taking)
    for one in again:  # and afterwards
        await is_taken_in(mixed, [one], service)
    assert await mixed.ask("select saga from scoop_outbox.run where saga like 'later%%'") == []


async def _waits_or_is_done(shop: Shop, tasks: Sequence[asyncio.Task[Any]]) -> bool:
    waiting = await shop.ask(
        "select from pg_locks l join pg_stat_activity a using (pid) "
        "where not l.granted and a.datname = current_database() "
        "union all select from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()"
    )
    return sum(task.done() for task in tasks) + len(waiting) >= len(tasks)
