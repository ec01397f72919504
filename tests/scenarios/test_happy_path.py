"""The happy path: steps in order, and no step before everything below the one before it has finished."""

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from scoop_outbox import DefinitionError, Handle, RunState, Scoop, UnknownMessage
from scoop_outbox.app import service_of
from tests.carriers import Carrier
from tests.scenarios.shop import LONG, Shop, events, launches, order
from tests.waiting import until

COMMITTED = RunState.COMMITTED


async def test_hp_01_the_next_step_waits_for_the_children(shop: Shop) -> None:
    shop.saga("root", "R", launches("C"), None)
    shop.saga("child", "C", None, None)

    handle = await shop.run("R")

    assert shop.journal == ["root-0", "child-0", "child-1", "root-1"]
    assert await shop.states(handle) == {"root": COMMITTED, "child": COMMITTED}
    assert await events(shop.app, handle) == [
        "root 0 step committed",
        "child 0 step committed",
        "child 1 step committed",
        "root 1 step committed",
    ]


async def test_hp_02_grandchildren_are_waited_for(shop: Shop) -> None:
    shop.saga("root", "R", launches("C"), None)
    shop.saga("child", "C", None, launches("G"), None)
    shop.saga("gc", "G", None, None)

    handle = await shop.run("R")

    expected = ["root-0", "child-0", "child-1", "gc-0", "gc-1", "child-2", "root-1"]
    assert shop.journal == expected
    assert await events(shop.app, handle) == [f"{entry.replace('-', ' ')} step committed" for entry in expected]
    assert await shop.states(handle) == {"root": COMMITTED, "child": COMMITTED, "gc": COMMITTED}


async def test_hp_03_children_of_two_emissions_run_side_by_side(shop: Shop) -> None:
    # Each waits for the other's first step, so neither order of one after the other would end.
    shop.saga("root", "R", launches("C", "C2"), None)
    shop.saga("c1", "C", None, wait_for(shop, "c2-0"))
    shop.saga("c2", "C2", None, wait_for(shop, "c1-0"))

    handle = await shop.run("R")

    order(shop.journal, "root-0", "c1-0", "c1-1", "root-1")
    order(shop.journal, "root-0", "c2-0", "c2-1", "root-1")
    assert len(shop.journal.entries) == 6
    assert await shop.states(handle) == {"root": COMMITTED, "c1": COMMITTED, "c2": COMMITTED}


async def test_hp_04_two_sagas_handle_one_emission_side_by_side(shop: Shop) -> None:
    shop.saga("root", "R", launches("C"), None)
    shop.saga("c1", "C", None, wait_for(shop, "c2-0"))
    shop.saga("c2", "C", None, wait_for(shop, "c1-0"))

    handle = await shop.run("R")

    order(shop.journal, "root-0", "c1-0", "c1-1", "root-1")
    order(shop.journal, "root-0", "c2-0", "c2-1", "root-1")
    assert len(shop.journal.entries) == 6
    one, other = await shop.only(handle, "c1"), await shop.only(handle, "c2")
    assert one.message_id == other.message_id
    assert one.id != other.id


async def test_hp_05_a_message_that_nobody_handles_has_no_runs(shop: Shop, carrier: Carrier) -> None:
    shop.saga("other", "elsewhere", None)

    handle = await shop.run("R")

    assert (await shop.status(handle)).runs == ()
    assert shop.journal == []
    if carrier.url is None:
        assert (await shop.app.message(handle.id)).topic == "R"
    else:
        # It has gone to the broker, and nobody takes it in from there.
        with pytest.raises(UnknownMessage):
            await shop.app.message(handle.id)


async def test_hp_06_each_saga_on_the_topic_has_one_run(shop: Shop) -> None:
    shop.saga("one", "R", None)
    shop.saga("two", "R", None)

    handle = await shop.run("R")

    assert sorted(run.saga for run in await shop.runs(handle)) == ["one", "two"]
    assert sorted(shop.journal.entries) == ["one-0", "two-0"]


async def test_hp_07_one_step_leaves_one_record_and_one_final_state(shop: Shop) -> None:
    shop.saga("root", "R", None)

    handle = await shop.run("R")

    run = await shop.only(handle, "root")
    (step,) = run.steps
    assert (step.seq, step.step, step.state, step.iteration, step.attempt, step.failure) == (
        1,
        "0",
        "committed",
        0,
        0,
        None,
    )
    assert step.started_at <= step.ended_at
    assert (run.state, run.failure, run.next_step, run.parent) == (COMMITTED, None, None, None)
    assert run.created_at <= step.started_at
    assert run.ended_at is not None
    assert run.ended_at >= step.ended_at


async def test_hp_08_a_message_is_found_by_its_id(mixed: Shop) -> None:
    seen: list[Any] = []

    def body(_: Any, message: Any) -> None:
        seen.append((message.id, message.topic, message.key, message.payload, message.headers))

    mixed.saga("root", "R", body)
    payload = {"text": "žluťoučký \u0000 ✓", "list": [1, 2.5, None, True]}

    handle = await mixed.run("R", payload, key="a key", headers={"x": "1"})

    message = await mixed.app.message(handle.id)
    assert (message.id, message.topic, message.key) == (handle.id, "R", "a key")
    assert (message.payload, message.headers, message.content_type) == (payload, {"x": "1"}, "application/json")
    assert message.created_at is not None
    assert seen == [(handle.id, "R", "a key", payload, {"x": "1"})]
    with pytest.raises(UnknownMessage):
        await mixed.app.message(uuid.uuid4())
    with pytest.raises(UnknownMessage):
        await mixed.app.status(uuid.uuid4())


async def test_hp_09_five_messages_are_handled_five_times(shop: Shop) -> None:
    shop.saga("root", "R", None)

    async with shop.running():
        handles = [await shop.app.launch("R", number) for number in range(5)]
        for handle in handles:
            await handle.wait(LONG)

    assert shop.journal == ["root-0"] * 5
    assert len({(await shop.only(handle, "root")).id for handle in handles}) == 5


async def test_hp_10_a_topic_without_handlers_is_not_waited_for(shop: Shop) -> None:
    shop.saga("root", "R", launches("nobody listens"), None)

    handle = await shop.run("R")

    assert await events(shop.app, handle) == ["root 0 step committed", "root 1 step committed"]
    assert await shop.states(handle) == {"root": COMMITTED}


async def test_hp_11_a_last_step_that_launches_is_not_the_end(shop: Shop) -> None:
    states: list[RunState] = []

    def body(scope: Any, _: Any) -> Iterator[Any]:
        # The parent's step has committed, but the parent has not.
        yield lambda: handles
        states.append(shop.app.status_sync(handles[0].id).runs[0].state)

    handles: list[Handle] = []
    shop.saga("root", "R", launches("C"))
    shop.saga("child", "C", body)

    async with shop.running():
        handles.append(await shop.app.launch("R", None))
        await handles[0].wait(LONG)

    assert states == [RunState.RUNNING]
    root, child = await shop.only(handles[0], "root"), await shop.only(handles[0], "child")
    assert len(root.steps) == 1
    assert root.state is COMMITTED
    assert root.ended_at is not None
    assert child.ended_at is not None
    assert child.ended_at <= root.ended_at


async def test_hp_12_a_saga_may_launch_to_its_own_topic(shop: Shop) -> None:
    def down(scope: Any, message: Any) -> None:
        shop.journal(f"in-{message.payload}")
        if message.payload < 2:
            scope.launch("R", message.payload + 1)

    def up(scope: Any, message: Any) -> None:
        shop.journal(f"out-{message.payload}")

    shop.saga("root", "R", down, up)

    handle = await shop.run("R", 0)

    assert shop.journal.of("in", "out") == ["in-0", "in-1", "in-2", "out-2", "out-1", "out-0"]
    lineages = sorted(((run.id, run.lineage) for run in await shop.runs(handle)), key=lambda pair: len(pair[1]))
    assert [len(lineage) for _, lineage in lineages] == [1, 2, 3]
    for run_id, lineage in lineages:
        assert lineage[-1] == run_id
        assert lineage == lineages[-1][1][: len(lineage)]


async def test_hp_13_a_message_on_the_global_scope_starts_a_hierarchy_of_its_own(shop: Shop) -> None:
    launched: list[uuid.UUID] = []

    def start(scope: Any, _: Any) -> None:
        launched.append(scope.launch_on_global_scope("G", None))

    shop.saga("root", "R", start, None)
    # It can only end after the launcher has, so the launcher does not wait for it.
    shop.saga("elsewhere", "G", wait_for(shop, "root-1"), launches("C"), None)
    shop.saga("child", "C", None)

    async with shop.running():
        handle = await shop.app.launch("R", None)
        await handle.wait(LONG)
        elsewhere = shop.app.handle(launched[0])
        await elsewhere.wait(LONG)

    assert await shop.states(handle) == {"root": COMMITTED}
    assert await shop.states(elsewhere) == {"elsewhere": COMMITTED, "child": COMMITTED}
    run = await shop.only(elsewhere, "elsewhere")
    assert run.lineage == (run.id,)
    assert run.parent is None
    order(shop.journal, "elsewhere-0", "elsewhere-1", "child-0", "elsewhere-2")


async def test_hp_14_what_a_step_launches_is_published_when_it_commits(shop: Shop) -> None:
    started: list[str] = []

    def body(scope: Any, _: Any) -> Iterator[Any]:
        scope.launch("C", None)
        # The probe is launched later and handled: whatever could be published by now has been.
        yield lambda: shop.journal.count("probe-0")
        started.extend(shop.journal.of("child"))

    shop.saga("root", "R", body)
    shop.saga("child", "C", None)
    shop.saga("probe", "P", None)

    async with shop.running():
        handle = await shop.app.launch("R", None)
        await until(lambda: shop.journal.count("root-0"))
        await (await shop.app.launch("P", None)).wait(LONG)
        await handle.wait(LONG)

    assert started == []
    order(shop.journal, "root-0", "probe-0", "child-0")
    root, child = await shop.only(handle, "root"), await shop.only(handle, "child")
    assert root.steps[0].ended_at <= child.created_at


def test_hp_15_a_saga_without_steps_is_refused(database_url: str) -> None:
    app = Scoop("shop", database=database_url)
    app.saga("empty", on="R")

    with pytest.raises(DefinitionError, match=r"'empty' has no steps"):
        service_of(app).check()
    with pytest.raises(DefinitionError, match=r"'empty' has no steps"):
        asyncio.run(_run(app))
    with pytest.raises(DefinitionError, match=r"'empty' has no steps"):
        app.launch_sync("R", None)


async def _run(app: Scoop) -> None:
    async with app.running():
        pass


def test_hp_15_two_steps_of_one_name_are_refused() -> None:
    saga = Scoop("shop").saga("root", on="R")
    saga.add_step("0", _step)

    with pytest.raises(DefinitionError, match=r"'root' has a step '0' already"):
        saga.add_step("0", _step)


def test_hp_15_two_sagas_of_one_name_are_refused() -> None:
    app = Scoop("shop")
    app.saga("root", on="R")

    with pytest.raises(DefinitionError, match=r"has a saga 'root' already"):
        app.saga("root", on="other")


def _step(scope: Any, message: Any) -> None:
    pass


async def test_hp_16_ready_runs_are_executed_in_the_order_of_their_messages(shop: Shop) -> None:
    seen: list[int] = []
    shop.saga("root", "R", lambda _, message: seen.append(message.payload))

    handles = [await shop.app.launch("R", number) for number in range(20)]
    async with shop.running(slots=1):
        for handle in handles:
            await handle.wait(LONG)

    assert seen == list(range(20))


async def test_hp_16_messages_of_one_key_are_executed_in_order(mixed: Shop) -> None:
    seen: list[int] = []
    mixed.saga("root", "R", lambda _, message: seen.append(message.payload))

    async with mixed.running(slots=1):
        handles = [await mixed.app.launch("R", number, key="same") for number in range(20)]
        for handle in handles:
            await handle.wait(LONG)

    assert seen == list(range(20))


@pytest.mark.parametrize("handlers", [0, 1, 50])
async def test_promise_4_a_thousand_messages_of_one_step(mixed: Shop, handlers: int) -> None:
    each = 1_000 if handlers < 50 else 20

    def body(scope: Any, _: Any) -> None:
        for number in range(each):
            scope.launch("C", number)

    seen: list[int] = []
    mixed.saga("root", "R", body, lambda *_: mixed.journal("all"))
    for number in range(handlers):
        saga = mixed.app.saga(f"handler {number}", on="C")
        saga.add_step("0", mixed.coloured(lambda _, message: seen.append(message.payload)))

    handle = await mixed.run("R")

    assert sorted(seen) == sorted(list(range(each)) * handlers)
    assert mixed.journal.entries[-2:] == ["root-1", "all"]
    assert len(await mixed.runs(handle)) == 1 + each * handlers
    assert {run.state for run in await mixed.runs(handle)} == {COMMITTED}


async def test_promise_2_a_step_sees_everything_that_the_one_before_has_caused(shop: Shop) -> None:
    """Three levels, two sagas on every topic: the last step of each level sees the end of all below it."""
    seen: dict[str, int] = {}

    def count(name: str, topic: str) -> Any:
        def body(*_: Any) -> None:
            seen[name] = len(shop.journal.of(*(f"{topic}{one}" for one in "ab")))

        return body

    shop.saga("root", "R", launches("A", "A"), count("root", "leaf"))
    for one in "ab":
        shop.saga(f"mid{one}", "A", launches("B"), None)
        shop.saga(f"leaf{one}", "B", None, None)

    await shop.run("R")

    # Two messages on A, two sagas each: four on B, two sagas of two steps each.
    assert seen == {"root": 4 * 2 * 2}
    assert shop.journal.entries[-1] == "root-1"


def wait_for(shop: Shop, entry: str) -> Any:
    """The body of a step that ends once another one has been called."""

    def body(*_: Any) -> Iterator[Any]:
        yield lambda: shop.journal.count(entry)

    return body
