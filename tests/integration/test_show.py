"""Operators look at hierarchies: `scoop-outbox show`, and `Runs.show`."""

import json
import re
import sys
import threading
import uuid
from collections.abc import Iterator
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest

from scoop_outbox import AmbiguousId, DefinitionError, RunState, Scoop, UnknownMessage
from scoop_outbox.core.run import ChildState
from scoop_outbox.operations.runs import Runs
from tests.integration.seeing import (
    ask,
    command,
    launches,
    nothing,
    printed,
    raises,
    refused,
    shop,
)
from tests.waiting import until

ID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
AT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00"
TOOK = r"\d+\.\d{3} s"


@pytest.fixture
def runs(database_url: str) -> Iterator[Runs]:
    with Runs(database_url) as opened:
        yield opened


def fits(text: str, *patterns: str) -> bool:
    lines = text.splitlines()
    return len(lines) == len(patterns) and all(map(re.fullmatch, patterns, lines))


async def test_a_hierarchy_that_rolled_back_is_shown_as_a_tree(database_url: str, runs: Runs) -> None:
    app = shop(database_url, charge=raises("card declined\nby the bank"))
    async with app.running():
        handle = await app.launch("orders", 1, key="A\n1")
        with pytest.raises(Exception, match="card declined"):
            await handle.wait(20)
    text = printed(database_url, "show", str(handle.id))
    assert fits(
        text,
        rf"message {handle.id}: topic orders, key A\\n1, taken in {AT}",
        rf"place-order \(shop\): rolled_back, began {AT}, {TOOK}, run {ID}",
        r"  failure: ChildRolledBack: Child failure occurred while suspended in step \[pay\]",
        rf"  1 reserve: compensated, {TOOK}",
        rf"    reserve \(shop\): rolled_back, began {AT}, {TOOK}, run {ID}",
        r"      failure: ParentSaidSo",
        rf"      1 take: compensated, {TOOK}",
        rf"      2 take, compensation of 1: committed, {TOOK}",
        rf"  2 pay: compensated, {TOOK}",
        rf"    charge \(shop\): rolled_back, began {AT}, {TOOK}, run {ID}",
        r"      failure: ValueError: card declined",
        rf"      1 card: failed, {TOOK}: ValueError: card declined",
        rf"  3 reserve, compensation of 1: committed, {TOOK}",
    ), text
    found = runs.show(handle.id)
    assert found.ended
    assert [run.saga for run in found.runs] == ["place-order", "reserve", "charge"]


async def test_what_is_below_a_run_is_shown_of_its_hierarchy(database_url: str, runs: Runs) -> None:
    app = shop(database_url)
    async with app.running():
        handle = await app.launch("orders", 1)
        await handle.wait(20)
    root, *children = runs.show(handle.id).runs
    assert [run.id for run in runs.show(root.id).runs] == [root.id, *(run.id for run in children)]
    below = runs.show(children[0].id)
    assert [run.saga for run in below.runs] == ["reserve"]
    assert (below.run_id, below.message_id, below.topic) == (children[0].id, children[0].message_id, "reserve")
    assert re.search(r"^reserve \(shop\): committed", printed(database_url, "show", str(children[0].id)), re.MULTILINE)


async def test_who_has_not_begun_is_shown_where_it_was_launched(database_url: str, runs: Runs) -> None:
    app = shop(database_url)
    async with app.running(worker=False):
        handle = await app.launch("orders", 1)
        await until(lambda: ask(database_url, "select count(*) from run") == [(1,)])
    async with app.running(relay=False):
        await until(lambda: ask(database_url, "select count(*) from step") == [(1,)])
    found = runs.show(handle.id)
    (one,) = found.unstarted
    assert (one.service, one.saga, one.state, one.launched_by) == ("shop", "reserve", ChildState.WAITING, 1)
    assert one.parent == found.runs[0].id
    assert not found.ended
    assert fits(
        printed(database_url, "show", str(handle.id)),
        rf"message {handle.id}: topic orders, taken in {AT}",
        rf"place-order \(shop\): running, began {AT}, {TOOK} so far, run {ID}",
        rf"  1 reserve: committed, {TOOK}",
        rf"    reserve \(shop\): not started: message {one.message_id} has not been taken in",
    )
    # It is known by its id, too.
    assert runs.show(one.message_id).taken_in_at is None
    expected = rf"message {one.message_id}: topic reserve, not taken in yet"
    assert fits(printed(database_url, "show", str(one.message_id)), expected)


async def test_a_message_that_is_on_its_way_or_was_given_up_is_shown(database_url: str, runs: Runs) -> None:
    app = shop(database_url)
    handle = await app.launch("orders", 1, key="k")
    await app.close()
    assert printed(database_url, "show", str(handle.id)) == (
        f"message {handle.id}: topic orders, key k, not taken in yet\n"
    )
    assert not runs.show(handle.id).ended
    ask(
        database_url,
        "with gone as (delete from outbox returning *) "
        "insert into dead_letter (message_id, topic, key, body, content_type, headers, origin, reason) "
        "select message_id, topic, key, body, content_type, headers, 'relay', 'too large' from gone",
    )
    assert printed(database_url, "show", str(handle.id)) == (
        f"message {handle.id}: topic orders, key k, dead letter 1\n"
    )
    assert runs.show(handle.id).ended


async def test_parked_interrupted_late_and_stuck_runs_say_so(database_url: str) -> None:
    app = Scoop("shop", database=database_url)
    saga = app.saga("place-order", on="orders")
    saga.add_step("reserve", launches("reserve"), compensate=raises("no way back"))
    saga.add_step("pay", raises("no money"))
    late = Scoop("late", database=database_url)
    late.saga("too-late", on="reserve").add_step("only", nothing)
    async with app.running():
        handle = await app.launch("orders", 1)
        with pytest.raises(Exception, match="no way back"):
            await handle.wait(20)
        async with late.running(relay=False):
            other = await app.launch("reserve", 1)
            await other.wait(20)
    ask(database_url, "update run set interruptions = 3, interruption = 'out of disk' where saga = 'too-late'")
    ask(
        database_url,
        "update run set late = true, lineage = array[(select id from run where saga = 'place-order'), id], "
        "state = 'parked', reason = 'broken' where saga = 'too-late'",
    )
    text = printed(database_url, "show", str(handle.id))
    assert fits(
        text,
        rf"message {handle.id}: topic orders, taken in {AT}",
        rf"place-order \(shop\): rollback_failed, began {AT}, {TOOK}, run {ID}",
        r"  failure: ValueError: no way back",
        r"  rolled back for: ValueError: no money",
        rf"  1 reserve: committed, {TOOK}",
        rf"  2 pay: failed, {TOOK}: ValueError: no money",
        *[
            rf"  {n} reserve, compensation of 1: failed, {TOOK}(, attempt \d)?: ValueError: no way back"
            for n in (3, 4, 5)
        ],
        rf"  too-late \(late\): parked, began {AT}, {TOOK}, run {ID}, late: nobody waits for it",
        r"    reason: broken",
        r"    interrupted 3 times in a row: out of disk",
        rf"    1 only: committed, {TOOK}",
    ), text


async def test_json_is_one_object_with_all_that_is_known(database_url: str) -> None:
    app = shop(database_url, charge=raises("card declined"))
    async with app.running():
        handle = await app.launch("orders", 1, key="k")
        with pytest.raises(Exception, match="card declined"):
            await handle.wait(20)
    (line,) = printed(database_url, "show", str(handle.id), "--json").splitlines()
    found = json.loads(line)
    assert (found["message_id"], found["topic"], found["key"]) == (str(handle.id), "orders", "k")
    assert (found["run_id"], found["dead_letters"], found["unstarted"], found["ended"]) == (None, [], [], True)
    root, _, charge = found["runs"]
    assert (root["saga"], root["state"], root["late"]) == ("place-order", "rolled_back", False)
    assert (charge["lineage"], charge["launched_by"]) == ([root["id"], charge["id"]], 2)
    assert charge["failure"]["type"] == "ValueError"
    assert charge["failure"]["message"] == "card declined"
    assert [step["state"] for step in root["steps"]] == ["compensated", "compensated", "committed"]
    assert [step["undoes"] for step in root["steps"]] == [None, None, 1]
    assert datetime.fromisoformat(root["created_at"]) <= datetime.fromisoformat(root["ended_at"])


async def test_ids_may_be_shortened(database_url: str, runs: Runs) -> None:
    app = Scoop("shop", database=database_url)
    for saga in ("a", "b"):
        app.saga(saga, on="orders").add_step("only", nothing)
    first, second = (uuid.UUID(f"01a20d49-27f9-7a10-8f3c-{n:012x}") for n in (0xABC, 0xDEF))
    other = uuid.UUID("01a20d49-ffff-7a10-8f3c-000000000000")
    async with app.running():
        for message_id in (first, second, other):
            await (await app.launch("orders", 1, id=message_id)).wait(20)
    assert runs.show("01a20d49ff").message_id == other, "its runs begin with the same digits"
    assert runs.show("01A20D49-FF").message_id == other
    assert runs.show(f"{first}"[:-2]).message_id == first
    (run,) = (run for run in runs.show(first).runs if run.saga == "b")
    assert runs.show(str(run.id)[:28]).run_id == run.id
    with pytest.raises(AmbiguousId, match=f"message {first}, .*message {second}"):
        runs.show("01a20d4927")
    said = refused(database_url, "show", "01a20d49")
    assert "several ids begin with 01a20d49, pass more of it: message 01a20d49-27f9-7a10-8f3c-000000000abc" in said
    with pytest.raises(UnknownMessage, match="no message and no run of this database"):
        runs.show("01a20d4a")
    assert "begins with 00000000" in refused(database_url, "show", "00000000")
    for sought in ("01a20", "01a20d4g", f"{first}0", ""):
        with pytest.raises(DefinitionError, match="hexadecimal digits"):
            runs.show(sought)


async def test_many_ids_are_not_all_named(database_url: str, runs: Runs) -> None:
    app = shop(database_url)
    for n in range(12):
        await app.launch("orders", n, id=uuid.UUID(f"01a20d49-27f9-7a10-8f3c-{n:012x}"))
    await app.close()
    with pytest.raises(AmbiguousId, match=r"message 01a20d49-27f9-7a10-8f3c-000000000009, and more$"):
        runs.show("01a20d")


async def test_watching_ends_with_the_hierarchy(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    waiting = threading.Event()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        waiting.set()

    async def slow(scope: Any, message: Any) -> None:
        await until(waiting.is_set)

    app = shop(database_url, charge=slow)
    results: list[str] = []
    monkeypatch.setattr(sys.modules["scoop_outbox.cli.show"], "time", SimpleNamespace(sleep=sleep))
    async with app.running():
        handle = await app.launch("orders", 1)
        await until(lambda: ask(database_url, "select count(*) from run where saga = 'charge'") == [(1,)])
        thread = threading.Thread(
            target=lambda: results.append(command(database_url, "show", str(handle.id), "--json", "--watch").output)
        )
        thread.start()
        await handle.wait(20)
        await until(lambda: not thread.is_alive())
    looks = [json.loads(line) for line in results[0].splitlines()]
    assert [one["ended"] for one in looks] == [False] * (len(looks) - 1) + [True]
    assert slept == [1.0] * (len(looks) - 1)
    assert looks[-1]["runs"][0]["state"] == RunState.COMMITTED
