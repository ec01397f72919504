"""SEED: the examples of the article that describes structured cooperation, with the logs and failures it prints."""

import inspect
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from scoop_outbox import DistributedError, RunState, RunStatus, Saga
from scoop_outbox.scope import AsyncScope, BlockingScope
from tests.scenarios.rollback_helpers import child_rolled_back, parent_said_so, shape, simulated
from tests.scenarios.shop import LONG, Shop, launches, raises
from tests.waiting import until

ROLLED_BACK = RunState.ROLLED_BACK


class MyException(Exception):
    """The article's."""


def line_of(function: Callable[..., Any], text: str) -> int:
    """The number of the line of a function that begins with a text."""
    lines, first = inspect.getsourcelines(function)
    (found,) = [number for number, line in enumerate(lines, first) if line.strip().startswith(text)]
    return found


def place(function: Callable[..., Any], text: str) -> dict[str, Any]:
    """The stored form of a frame of this file."""
    return {
        "fileName": "tests/scenarios/test_seed.py",
        "className": __name__,
        "lineNumber": line_of(function, text),
        "functionName": function.__qualname__,
    }


class Log:
    """Declares steps that log a number; what the article's examples consist of."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop

    def step(
        self,
        saga: Saga,
        name: str,
        number: str,
        then: Any = None,
        *,
        undo: str | None = None,
        finally_: str | None = None,
    ) -> None:
        """Declare a step that logs `number`, whose compensation logs `undo`, and whose finaliser logs `finally_`."""

        def invoke(scope: Any, message: Any) -> Any:
            self._shop.journal(number)
            return None if then is None else then(scope, message)

        def compensate(*_: Any) -> None:
            assert undo is not None
            self._shop.journal(undo)

        def finish(*_: Any) -> None:
            assert finally_ is not None
            self._shop.journal(finally_)

        saga.add_step(
            name,
            self._shop.coloured(invoke),
            compensate=None if undo is None else self._shop.coloured(compensate),
            finally_=None if finally_ is None else self._shop.coloured(finish),
        )


@pytest.fixture
def log(shop: Shop) -> Log:
    return Log(shop)


async def test_seed_1_quick_start(shop: Shop) -> None:
    def hello_1(scope: Any, _: Any) -> None:
        shop.journal("Hello from step 1")
        scope.launch("another-topic", {"some": "payload"})

    def hello_2(*_: Any) -> None:
        shop.journal("Hello from step 2")

    def child(_: Any, message: Any) -> None:
        assert message.payload == {"some": "payload"}
        shop.journal("child")

    saga = shop.app.saga("my-handler", on="some-topic")
    saga.add_step("Step 1", shop.coloured(hello_1))
    saga.add_step("Step 2", shop.coloured(hello_2))
    shop.app.saga("child-handler", on="another-topic").add_step("0", shop.coloured(child))

    handle = await shop.run("some-topic", {})

    assert shop.journal == ["Hello from step 1", "child", "Hello from step 2"]
    assert await shop.states(handle) == {"my-handler": RunState.COMMITTED, "child-handler": RunState.COMMITTED}


# -- SEED-2: real functions, for the frames of the failures are theirs -------------------------------------------------


async def emits_async(scope: AsyncScope, message: Any) -> None:
    scope.launch(message.payload["then"], {"then": "grandchild-topic"})


def emits_blocking(scope: BlockingScope, message: Any) -> None:
    scope.launch(message.payload["then"], {"then": "grandchild-topic"})


async def fails_async(scope: AsyncScope, message: Any) -> None:
    raise MyException("My exception message")


def fails_blocking(scope: BlockingScope, message: Any) -> None:
    raise MyException("My exception message")


@pytest.mark.parametrize(
    "parent_emits, child_emits, fails",
    [
        (emits_async, emits_async, fails_async),
        (emits_blocking, emits_blocking, fails_blocking),
        (emits_async, emits_blocking, fails_async),
        (emits_blocking, emits_async, fails_blocking),
    ],
    ids=["async", "blocking", "async-blocking-async", "blocking-async-blocking"],
)
@pytest.mark.one_home("it compares the failures that one database stores")
async def test_seed_2_the_distributed_stack_trace(mixed: Shop, parent_emits: Any, child_emits: Any, fails: Any) -> None:
    declared = Log(mixed)
    parent = mixed.app.saga("parent-handler", on="parent-topic")
    parent.add_step("First parent step", parent_emits)
    declared.step(parent, "Second parent step", "never")
    child = mixed.app.saga("child-handler", on="child-topic")
    declared.step(child, "First child step", "2")
    child.add_step("Second child step", child_emits)
    grandchild = mixed.app.saga("grandchild-handler", on="grandchild-topic")
    declared.step(grandchild, "First grandchild step", "4")
    grandchild.add_step("Second grandchild step", fails)

    async with mixed.running():
        handle = await mixed.app.launch("parent-topic", {"then": "child-topic"})
        with pytest.raises(DistributedError) as caught:
            await handle.wait(LONG)

    assert mixed.journal == ["2", "4"]
    by_saga = {run.saga: run for run in await mixed.runs(handle)}
    assert [run.state for run in by_saga.values()] == [ROLLED_BACK] * 3

    of_grandchild = {
        "message": "My exception message",
        "type": f"{__name__}.MyException",
        "source": source_of(by_saga["grandchild-handler"]),
        "stackTrace": [place(fails, "raise MyException")],
        "causes": [],
        "launchedAt": place(child_emits, "scope.launch("),
    }
    of_child = {
        "message": "Child failure occurred while suspended in step [Second child step]",
        "type": "ChildRolledBack",
        "source": source_of(by_saga["child-handler"]),
        "stackTrace": [],
        "causes": [of_grandchild],
        "launchedAt": place(parent_emits, "scope.launch("),
    }
    of_parent = {
        "message": "Child failure occurred while suspended in step [First parent step]",
        "type": "ChildRolledBack",
        "source": source_of(by_saga["parent-handler"]),
        "stackTrace": [],
        "causes": [of_child],
        "launchedAt": place(test_seed_2_the_distributed_stack_trace, "handle = await mixed.app.launch("),
    }
    stored = {saga: run.failure.to_json() for saga, run in by_saga.items() if run.failure is not None}
    assert stored == {
        "grandchild-handler": of_grandchild,
        "child-handler": of_child,
        "parent-handler": of_parent,
    }
    assert caught.value.to_json() == of_parent
    (cause,) = caught.value.causes
    assert cause.to_json() == of_child
    assert cause.causes[0].to_json() == of_grandchild


def source_of(run: RunStatus) -> str:
    """How the process that executed the last step of a run calls itself in failures."""
    return f"{run.saga}[{uuid.UUID(run.steps[-1].worker)}]"


async def test_seed_2_the_log(shop: Shop, log: Log) -> None:
    declare_chain(shop, log)

    await shop.fail("parent-topic")

    assert shop.journal == ["1", "2", "3", "4", "5"]


async def test_seed_3_unwinding(shop: Shop, log: Log) -> None:
    declare_chain(shop, log, undo=True)

    handle, error = await shop.fail("parent-topic")

    # The compensation of the step that failed is not among them.
    assert shop.journal == ["1", "2", "3", "4", "5", "6", "7", "8", "9"]
    root_cause = simulated("grandchild-handler", "My exception message")._replace(type=f"{__name__}.MyException")
    of_child = child_rolled_back("child-handler", "Second child step", root_cause)
    assert shape(error.failure) == child_rolled_back("parent-handler", "First parent step", of_child)
    assert set((await shop.states(handle)).values()) == {ROLLED_BACK}


def declare_chain(shop: Shop, log: Log, *, undo: bool = False) -> None:
    """Declare the sagas of SEED-2, or with compensations those of SEED-3."""
    boom = raises("My exception message", MyException)
    parent = shop.app.saga("parent-handler", on="parent-topic")
    log.step(parent, "First parent step", "1", launches("child-topic"), undo="9" if undo else None)
    log.step(parent, "Second parent step", "never", undo="never" if undo else None)
    child = shop.app.saga("child-handler", on="child-topic")
    log.step(child, "First child step", "2", undo="8" if undo else None)
    log.step(child, "Second child step", "3", launches("grandchild-topic"), undo="7" if undo else None)
    grandchild = shop.app.saga("grandchild-handler", on="grandchild-topic")
    log.step(grandchild, "First grandchild step", "4", undo="6" if undo else None)
    log.step(grandchild, "Second grandchild step", "5", boom, undo="never" if undo else None)


async def test_seed_4_siblings(shop: Shop, log: Log) -> None:
    parent = shop.app.saga("parent-handler", on="parent-topic")
    log.step(parent, "First parent step", "1", launches("child-topic"), undo="7")
    log.step(parent, "Second parent step", "never", undo="never")
    one = shop.app.saga("child-handler-1", on="child-topic")
    log.step(one, "First child-1 step", "2a", undo="6")
    log.step(one, "Second child-1 step", "3a", launches("grandchild-topic"), undo="5")
    two = shop.app.saga("child-handler-2", on="child-topic")
    log.step(two, "First child-2 step", "2b", undo="4b")
    log.step(two, "Second child-2 step", "3b", raises("My exception message", MyException), undo="never")

    handle, error = await shop.fail("parent-topic")

    entries = shop.journal.entries
    assert entries[0] == "1"
    assert [entry for entry in entries[1:6] if entry.endswith("a")] == ["2a", "3a"]
    assert [entry for entry in entries[1:6] if entry.endswith("b")] == ["2b", "3b", "4b"]
    assert entries[6:] == ["5", "6", "7"]
    root_cause = simulated("child-handler-2", "My exception message")._replace(type=f"{__name__}.MyException")
    failure = child_rolled_back("parent-handler", "First parent step", root_cause)
    assert shape(error.failure) == failure
    assert shape((await shop.only(handle, "child-handler-1")).failure) == parent_said_so("parent-handler", failure)
    assert set((await shop.states(handle)).values()) == {ROLLED_BACK}


async def test_seed_5_a_later_step_fails(shop: Shop, log: Log) -> None:
    parent = shop.app.saga("parent-handler", on="parent-topic")
    log.step(parent, "First parent step", "1", launches("child-topic"), undo="7")
    log.step(parent, "Second parent step", "4", raises("My exception message", MyException), undo="never")
    child = shop.app.saga("child-handler", on="child-topic")
    log.step(child, "First child step", "2", undo="6")
    log.step(child, "Second child step", "3", undo="5")

    handle, _ = await shop.fail("parent-topic")

    assert shop.journal == ["1", "2", "3", "4", "5", "6", "7"]
    assert await shop.states(handle) == {"parent-handler": ROLLED_BACK, "child-handler": ROLLED_BACK}


@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
async def test_seed_6_a_resource_is_given_back_behind_the_calculation(shop: Shop, log: Log, fails: bool) -> None:
    root = shop.app.saga("root", on="root-topic")
    log.step(root, "Calculate", "spin up", launches("do-intensive-calculation"), undo="undo", finally_="spin down")
    calculation = shop.app.saga("calculation", on="do-intensive-calculation")
    log.step(calculation, "first", "calculate", launches("below"), undo="calculate-rb")
    log.step(calculation, "second", "calculated", raises("no") if fails else None, undo="never")
    log.step(shop.app.saga("below", on="below"), "only", "below", undo="below-rb")

    await (shop.fail if fails else shop.run)("root-topic")

    undone = ["below-rb", "calculate-rb"] if fails else []
    assert shop.journal == [
        *("spin up", "calculate", "below", "calculated"),
        *(*undone, "spin down", *(["undo"] if fails else [])),
    ]


def declare_cluster(shop: Shop, log: Log, calculates: Any = None, closes: Any = None) -> None:
    """Declare the sagas of SEED-7: a cluster that is spun up for a calculation, and down behind it."""
    root = shop.app.saga("root", on="root-topic")
    log.step(root, "Spin up", "up?", launches("k8-spinup"), undo="root-rb0")
    log.step(root, "Calculate", "calculate?", launches("do-intensive-calculation"), undo="root-rb1")
    log.step(root, "Spin down", "down?", launches("k8-spindown"), undo="root-rb2")
    log.step(root, "Close", "close", closes, undo="never")
    log.step(shop.app.saga("spinup", on="k8-spinup"), "only", "up", undo="down again")
    calculation = shop.app.saga("calculation", on="do-intensive-calculation")
    log.step(calculation, "first", "calculate", undo="calculate-rb")
    log.step(calculation, "second", "calculated", calculates, undo="calculated-rb")
    log.step(shop.app.saga("spindown", on="k8-spindown"), "only", "down", undo="up again")


async def test_seed_7_a_resource_is_given_back_when_what_it_is_for_fails(shop: Shop, log: Log) -> None:
    declare_cluster(shop, log, calculates=raises("My exception message", MyException))

    handle, error = await shop.fail("root-topic")

    # The step whose child has failed had committed: it is compensated, too.
    assert shop.journal == [
        "up?", "up", "calculate?", "calculate", "calculated", "calculate-rb", "root-rb1", "down again", "root-rb0",
    ]  # fmt: skip
    root_cause = simulated("calculation", "My exception message")._replace(type=f"{__name__}.MyException")
    assert shape(error.failure) == child_rolled_back("root", "Calculate", root_cause)
    assert set(await shop.states(handle)) == {"root", "spinup", "calculation"}


async def test_seed_7_a_resource_that_was_given_back_is_there_again_for_the_compensations(shop: Shop, log: Log) -> None:
    declare_cluster(shop, log, closes=raises("My exception message", MyException))

    await shop.fail("root-topic")

    assert shop.journal == [
        "up?", "up", "calculate?", "calculate", "calculated", "down?", "down", "close",
        "up again", "root-rb2", "calculated-rb", "calculate-rb", "root-rb1", "down again", "root-rb0",
    ]  # fmt: skip


async def test_seed_8_the_global_scope(shop: Shop) -> None:
    launched: list[uuid.UUID] = []
    finished: list[bool] = []

    def emits(scope: Any, _: Any) -> None:
        launched.append(scope.launch_on_global_scope("some-topic", None))

    def waits_for_root(*_: Any) -> Iterator[Any]:
        # Does not return before the saga that launched it has committed: nobody waits for it.
        yield lambda: bool(finished)

    shop.saga("root", "R", emits, None)
    shop.saga("some", "some-topic", waits_for_root, launches("below"), raises("of the global scope"))
    shop.saga("below", "below", None)

    async with shop.running():
        handle = await shop.app.launch("R", None)
        await handle.wait(LONG)
        finished.append(True)
        with pytest.raises(DistributedError, match="of the global scope"):
            await shop.app.handle(launched[0]).wait(LONG)

    # Its failure is not reported to its launcher, and its own handlers cooperate.
    assert await shop.states(handle) == {"root": RunState.COMMITTED}
    assert shop.journal.of("some", "below") == [
        "some-0", "some-1", "below-0", "some-2", "below-rb0", "some-rb1", "some-rb0",
    ]  # fmt: skip
    assert shop.journal.of("root") == ["root-0", "root-1"]
    (run, _) = (await shop.app.status(launched[0])).runs
    assert len(run.lineage) == 1
    assert run.parent is None


async def test_seed_8_a_rollback_does_not_touch_the_global_scope(shop: Shop) -> None:
    launched: list[uuid.UUID] = []

    def emits(scope: Any, _: Any) -> None:
        launched.append(scope.launch_on_global_scope("some-topic", None))

    def after_it(*_: Any) -> Iterator[Any]:
        yield lambda: shop.journal.count("some-0")
        raise RuntimeError("of the root")

    shop.saga("root", "R", emits, after_it)
    shop.saga("some", "some-topic", None)

    handle, _ = await shop.fail("R")

    async def committed() -> bool:
        (run,) = (await shop.app.status(launched[0])).runs
        return run.state is RunState.COMMITTED

    await until(committed, LONG)
    assert sorted(shop.journal.entries) == ["root-0", "root-1", "root-rb0", "some-0"]
    assert await shop.states(handle) == {"root": ROLLED_BACK}
