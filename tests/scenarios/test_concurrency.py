"""Many runs, several workers: each message is handled once, and no run stands in the way of others."""

import threading
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest

from scoop_outbox import DistributedError, GoTo, Handle, Repeat, RunState, StepError, TransientError
from scoop_outbox.app import service_of
from tests.scenarios.conftest import MakeShop
from tests.scenarios.shop import LONG, Shop, events, launches
from tests.waiting import until

COMMITTED = RunState.COMMITTED


async def test_cc_01_two_workers_and_one_message(make_shop: MakeShop, colour: str) -> None:
    one, two = (make_shop(colour) for _ in range(2))
    for shop in (one, two):
        shop.saga("root", "R", None)

    async with one.running(), two.running():
        handle = await one.app.launch("R", None)
        await handle.wait(LONG)

    assert one.journal == ["root-0"]
    assert await events(one.app, handle) == ["root 0 step committed"]


@pytest.mark.one_home("it looks at what one database stores")
async def test_cc_02_two_workers_and_many_hierarchies(make_shop: MakeShop, colour: str) -> None:
    one, two = (make_shop(colour) for _ in range(2))
    seen: Counter[str] = Counter()
    working: set[int] = set()
    lock = threading.Lock()

    def count(scope: Any, message: Any) -> None:
        with lock:
            seen[f"{scope.saga} {scope.step} {message.payload}"] += 1

    def make(number: int) -> Any:
        def body(scope: Any, message: Any) -> Iterator[Any]:
            count(scope, message)
            scope.launch("C", message.payload)
            working.add(number)
            yield lambda: len(working) == 2  # neither does it all on its own

        return body

    for number, shop in enumerate((one, two)):
        shop.saga("root", "R", make(number), count)
        shop.saga("child", "C", count, count)

    async with one.running(slots=3), two.running(slots=3):
        handles = [await (one, two)[number % 2].app.launch("R", number) for number in range(30)]
        for handle in handles:
            await handle.wait(LONG)

    assert set(seen.values()) == {1}
    assert len(seen) == 30 * 4
    workers = {step.worker for handle in handles for run in await one.runs(handle) for step in run.steps}
    assert workers == {service_of(one.app).home.worker_id, service_of(two.app).home.worker_id}


async def test_cc_02_workers_without_relays_work_for_one_that_has_one(make_shop: MakeShop) -> None:
    shops = [make_shop() for _ in range(3)]
    for shop in shops:
        shop.saga("root", "R", launches("C"), None)
        shop.saga("child", "C", None)

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(shops[0].running(worker=False))
        for shop in shops[1:]:
            await stack.enter_async_context(shop.running(relay=False))
        handles = [await shops[0].app.launch("R", None) for _ in range(10)]
        for handle in handles:
            await handle.wait(LONG)

    assert Counter(shops[0].journal.entries) == {"root-0": 10, "child-0": 10, "root-1": 10}


async def test_cc_03_three_slots_execute_three_runs_at_once(shop: Shop) -> None:
    barrier = Meeting(3)
    shop.saga("root", "R", barrier.body)

    async with shop.running(slots=3):
        handles = [await shop.app.launch("R", None) for _ in range(3)]
        for handle in handles:
            await handle.wait(LONG)

    assert barrier.most == 3


async def test_cc_03_slots_are_the_most_that_is_executed_at_once(shop: Shop) -> None:
    barrier = Meeting(2)
    shop.saga("root", "R", barrier.body)

    async with shop.running(slots=2):
        handles = [await shop.app.launch("R", None) for _ in range(20)]
        for handle in handles:
            await handle.wait(LONG)

    assert barrier.most == 2


async def test_cc_03_waiting_holds_no_slot(shop: Shop) -> None:
    """Ten parents wait for children of theirs, in a worker with a single slot."""
    shop.saga("root", "R", launches("C"), None)
    shop.saga("child", "C", launches("G"), None)
    shop.saga("gc", "G", None)

    async with shop.running(slots=1):
        handles = [await shop.app.launch("R", None) for _ in range(10)]
        for handle in handles:
            await handle.wait(LONG)

    assert Counter(shop.journal.entries) == dict.fromkeys(("root-0", "child-0", "gc-0", "child-1", "root-1"), 10)


async def test_promise_1_consecutive_steps_in_different_processes(make_shop: MakeShop) -> None:
    """The first worker is gone when the second step is executed; in between, the run is only in the database."""
    one, two = make_shop(), make_shop()
    for shop in (one, two):
        shop.saga("root", "R", launches("C"), None)
    children = make_shop(service="children")
    children.saga("child", "C", None)
    await children.app.announce()

    async with one.running():
        handle = await one.app.launch("R", None)
        await until(lambda: one.journal.count("root-0"))
        await until(lambda: _steps(one, handle))
    async with two.running(), children.running():
        await handle.wait(LONG)

    assert one.journal == ["root-0", "child-0", "root-1"]
    run = await two.only(handle, "root")
    assert [step.worker for step in run.steps] == [
        service_of(one.app).home.worker_id,
        service_of(two.app).home.worker_id,
    ]


async def _steps(shop: Shop, handle: Handle) -> bool:
    return len((await shop.status(handle)).runs[0].steps) == 1


@pytest.mark.parametrize("poison", [TransientError("not now"), MemoryError()], ids=repr)
async def test_if_07_d17_a_run_that_never_succeeds_delays_nobody(mixed: Shop, poison: Exception) -> None:
    healed = threading.Event()

    def body(_: Any, message: Any) -> None:
        if message.payload == "poison" and not healed.is_set():
            raise poison

    mixed.saga("root", "R", body)

    async with mixed.running(slots=1):
        bad = [await mixed.app.launch("R", "poison") for _ in range(3)]
        await until(lambda: mixed.journal.count("root-0") >= 3)
        for _ in range(20):
            await (await mixed.app.launch("R", "good")).wait(LONG)
        for handle in bad:
            assert (await mixed.only(handle, "root")).state is RunState.RUNNING
        healed.set()
        for handle in bad:
            await handle.wait(LONG)
            assert await events(mixed.app, handle) == ["root 0 step committed"]


async def test_lp_10_a_run_that_repeats_for_ever_starves_nobody(shop: Shop) -> None:
    stop = threading.Event()

    def body(*_: Any) -> Repeat | None:
        return None if stop.is_set() else Repeat()

    shop.saga("endless", "E", body)
    shop.saga("root", "R", launches("C"), None)
    shop.saga("child", "C", None)

    async with shop.running(slots=1):
        endless = await shop.app.launch("E", None)
        await until(lambda: shop.journal.count("endless-0") > 3)
        for _ in range(5):
            await (await shop.app.launch("R", None)).wait(LONG)
        before = shop.journal.count("endless-0")
        await until(lambda: shop.journal.count("endless-0") > before)
        stop.set()
        await endless.wait(LONG)

    run = await shop.only(endless, "endless")
    assert run.state is COMMITTED
    assert [step.iteration for step in run.steps] == list(range(shop.journal.count("endless-0")))


async def test_lp_01_repeat_executes_a_step_again(shop: Shop) -> None:
    seen: list[tuple[str, int]] = []

    def loop(scope: Any, _: Any) -> Repeat | None:
        seen.append((scope.step, scope.iteration))
        return Repeat() if scope.iteration < 2 else None

    shop.saga("root", "R", loop, lambda scope, _: seen.append((scope.step, scope.iteration)))

    handle = await shop.run("R")

    assert seen == [("0", 0), ("0", 1), ("0", 2), ("1", 0)]
    run = await shop.only(handle, "root")
    assert [(step.seq, step.step, step.iteration, step.state) for step in run.steps] == [
        (1, "0", 0, "committed"),
        (2, "0", 1, "committed"),
        (3, "0", 2, "committed"),
        (4, "1", 0, "committed"),
    ]
    assert run.state is COMMITTED


async def test_lp_02_a_step_that_returns_nothing_is_executed_once(shop: Shop) -> None:
    shop.saga("root", "R", None, None)

    handle = await shop.run("R")

    assert [step.iteration for step in (await shop.only(handle, "root")).steps] == [0, 0]


async def test_lp_03_every_iteration_waits_for_its_own_children(shop: Shop) -> None:
    def loop(scope: Any, _: Any) -> Repeat | None:
        shop.journal(f"iteration-{scope.iteration}")
        scope.launch("C", scope.iteration)
        return Repeat() if scope.iteration == 0 else None

    shop.saga("root", "R", loop, None)
    shop.saga("child", "C", lambda _, message: shop.journal(f"of-{message.payload}"))

    await shop.run("R")

    assert shop.journal == [
        *("root-0", "iteration-0", "child-0", "of-0"),
        *("root-0", "iteration-1", "child-0", "of-1"),
        "root-1",
    ]


async def test_gt_01_goto_skips_steps(shop: Shop) -> None:
    shop.saga("root", "R", lambda *_: GoTo("2"), None, None)

    handle = await shop.run("R")

    assert shop.journal == ["root-0", "root-2"]
    assert await events(shop.app, handle) == ["root 0 step committed", "root 2 step committed"]


async def test_gt_02_goto_goes_back(shop: Shop) -> None:
    seen: list[int] = []
    saga = shop.app.saga("root", on="R")
    shop.step(saga, "a", lambda scope, _: seen.append(scope.iteration))
    shop.step(saga, "b")

    def back(*_: Any) -> GoTo | None:
        return GoTo(saga.steps[0]) if len(seen) == 1 else None

    shop.step(saga, "c", back)

    await shop.run("R")

    assert shop.journal == ["root-a", "root-b", "root-c", "root-a", "root-b", "root-c"]
    assert seen == [0, 0]


async def test_gt_03_goto_the_own_step_is_a_repetition(shop: Shop) -> None:
    seen: list[int] = []

    def loop(scope: Any, _: Any) -> GoTo | None:
        seen.append(scope.iteration)
        return GoTo("0") if scope.iteration < 2 else None

    shop.saga("root", "R", loop, None)

    await shop.run("R")

    assert seen == [0, 1, 2]
    assert shop.journal == ["root-0"] * 3 + ["root-1"]


async def test_gt_11_q54_goto_a_step_that_does_not_exist_is_a_failure_of_the_step(
    shop: Shop, database_url: str
) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("create table written (by text)")

    def body(scope: Any, _: Any) -> Generator[Any, Any, GoTo]:
        yield scope.connection.execute("insert into written values ('step 1')")
        scope.launch("C", None)
        return GoTo("nowhere")

    shop.saga("root", "R", None, body, None)
    shop.saga("child", "C", None)

    handle, error = await shop.fail("R")

    assert shop.journal == ["root-0", "root-1", "root-rb0"]
    assert error.type.endswith(StepError.__qualname__)
    assert "goes to 'nowhere', which saga 'root' does not have; it has '0', '1', '2'" in str(error)
    assert await events(shop.app, handle) == [
        "root 0 step compensated",
        "root 1 step failed",
        "root 0 compensation committed",
    ]
    with psycopg.connect(database_url) as connection:
        assert connection.execute("select * from written").fetchall() == []


async def test_gt_11_a_step_that_returns_something_else_fails(shop: Shop) -> None:
    shop.saga("root", "R", None, lambda *_: 42)

    _, error = await shop.fail("R")

    assert error.type.endswith(StepError.__qualname__)
    assert "step '1' of saga 'root' returned int" in str(error)
    assert "scope.set_result()" in str(error)


async def test_gt_12_goto_waits_for_the_children_of_the_step_that_jumps(shop: Shop) -> None:
    def body(scope: Any, _: Any) -> GoTo:
        scope.launch("C", None)
        return GoTo("2")

    shop.saga("root", "R", body, None, None)
    shop.saga("child", "C", None, None)

    await shop.run("R")

    assert shop.journal == ["root-0", "child-0", "child-1", "root-2"]


async def test_cc_failures_of_some_runs_do_not_touch_others(shop: Shop) -> None:
    def body(_: Any, message: Any) -> None:
        if message.payload % 2:
            raise RuntimeError(f"boom {message.payload}")

    shop.saga("root", "R", None, body)

    async with shop.running(slots=4):
        handles = [await shop.app.launch("R", number) for number in range(12)]
        for number, handle in enumerate(handles):
            if number % 2:
                with pytest.raises(DistributedError, match=rf"RuntimeError: boom {number} \("):
                    await handle.wait(LONG)
            else:
                await handle.wait(LONG)

    assert shop.journal.count("root-rb0") == 6


class Meeting:
    """A step that ends once as many as `together` are executed at the same time, or have been."""

    def __init__(self, together: int) -> None:
        self._lock = threading.Lock()
        self._together = together
        self._inside = 0
        self.most = 0

    def body(self, *_: Any) -> Iterator[Any]:
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)
        yield lambda: self.most >= self._together
        with self._lock:
            self._inside -= 1
