"""RF, Q45, Q59, Q73: children that failed and could not be undone, who is told of it, and what can be done about it."""

import traceback
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from scoop_outbox import DistributedError, Failure, Retry, RunState, Scoop, StepKind
from scoop_outbox.app import service_of
from scoop_outbox.failure import Stored
from scoop_outbox.policy import ROLLBACK_HANDLER_CALLS
from tests.scenarios.rollback_helpers import (
    Shape,
    child_rollback_failed,
    child_rolled_back,
    children_of,
    fails,
    parent_said_so,
    shape,
    simulated,
)
from tests.scenarios.shop import Shop, launches, nothing, raises

pytestmark = pytest.mark.parametrize("colour", ["async", "blocking"])

COMMITTED = RunState.COMMITTED
ROLLED_BACK = RunState.ROLLED_BACK
ROLLBACK_FAILED = RunState.ROLLBACK_FAILED


def because(saga: str, *causes: Shape) -> Shape:
    """How a parent tells why children failed of which some could not be undone."""
    return Shape("ChildRolledBack", saga, None, causes)


def breaks(shop: Shop, name: str, topic: str, why: str | None = None) -> None:
    """Declare a saga that cannot be undone; with `why`, it fails by itself, too."""
    saga = shop.app.saga(name, topic)
    shop.step(saga, "0", compensate=raises(f"rb {name}"))
    if why is not None:
        shop.step(saga, "1", raises(why))


def texts(failure: Failure) -> list[str | None]:
    return [failure.message, *(text for cause in failure.causes for text in texts(cause))]


# Both: why it failed, and why it could not be undone ----------------------------------------------------------------


@pytest.mark.everywhere
async def test_rf_03_q59_a_child_tells_why_it_failed_and_why_it_could_not_be_undone(shop: Shop) -> None:
    delivered: list[Any] = []

    def handles(_: Any, __: Any, error: Any) -> None:
        delivered.append(error)
        raise error

    root = shop.app.saga("root", "R")
    shop.step(root, "emit", launches("C"), on_child_failure=handles)
    breaks(shop, "child", "C", "boom 1")

    handle, error = await shop.fail("R")

    expected = child_rollback_failed(
        "root", "emit", simulated("child", "rb child"), because("root", simulated("child", "boom 1"))
    )
    assert [shape(one.failure) for one in delivered] == [expected]
    assert shape(error.failure) == expected
    root_run, child = (await shop.status(handle)).runs
    assert shape(root_run.failure) == expected
    assert shape(child.failure) == simulated("child", "rb child")
    assert shape(child.rollback_reason) == simulated("child", "boom 1")
    assert "boom 1" in "".join(traceback.format_exception(error))


async def test_q59_every_child_that_could_not_be_undone_is_named_with_both(shop: Shop) -> None:
    shop.saga("root", "R", launches("A", "B", "C", "D"))
    breaks(shop, "one", "A", "why one")
    breaks(shop, "two", "B", "why two")
    shop.saga("clean", "C", None, raises("why clean"))
    shop.saga("fine", "D", None)

    handle, error = await shop.fail("R")

    assert await shop.states(handle) == {
        "root": ROLLBACK_FAILED, "one": ROLLBACK_FAILED, "two": ROLLBACK_FAILED, "clean": ROLLED_BACK,
        "fine": ROLLED_BACK,
    }  # fmt: skip
    first, second, why = shape(error.failure).causes
    assert sorted((first, second)) == [simulated("one", "rb one"), simulated("two", "rb two")]
    assert why[:3] == because("root")[:3]
    assert sorted(why.causes) == sorted(simulated(name, f"why {name}") for name in ("one", "two", "clean"))
    assert [cause.saga for cause in why.causes if cause.saga != "clean"] == [first.saga, second.saga]


async def test_q59_siblings_that_committed_are_undone_before_the_parent_has_failed(shop: Shop) -> None:
    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("A", "B"), on_child_failure=True, on_child_rollback_failure=True)
    breaks(shop, "broken", "A", "why broken")
    shop.saga("fine", "B", None, None)

    handle, error = await shop.fail("R")

    assert shop.journal.of("root", "fine") == ["root-0", "fine-0", "fine-1", "root-hcf0", "fine-rb1", "fine-rb0"]
    assert await shop.states(handle) == {"root": ROLLBACK_FAILED, "broken": ROLLBACK_FAILED, "fine": ROLLED_BACK}
    reason = child_rollback_failed(
        "root", "0", simulated("broken", "rb broken"), because("root", simulated("broken", "why broken"))
    )
    assert shape(error.failure) == reason
    assert shape((await shop.only(handle, "fine")).failure) == parent_said_so("root", reason)


async def test_q59_a_sibling_that_cannot_be_undone_either_is_told_of_with_the_first(shop: Shop) -> None:
    delivered: list[Any] = []

    def handles(_: Any, __: Any, error: Any) -> None:
        delivered.append(error)
        raise error

    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("A", "B"), on_child_failure=True, on_child_rollback_failure=handles)
    breaks(shop, "failed", "A", "why failed")
    breaks(shop, "told", "B")

    handle, error = await shop.fail("R")

    assert shop.journal.of("root") == ["root-0", "root-hcf0", "root-hcrf0"]
    assert await shop.states(handle) == dict.fromkeys(("root", "failed", "told"), ROLLBACK_FAILED)
    why = because("root", simulated("failed", "why failed"))
    reason = child_rollback_failed("root", "0", simulated("failed", "rb failed"), why)
    failure = shape(error.failure)
    assert failure[:3] == child_rollback_failed("root", children_of("0"))[:3]
    assert [cause.message for cause in failure.causes[:2]] == ["rb failed", "rb told"]
    # Whatever is in there twice is shown once.
    assert failure.causes[-1][:3] == reason[:3]
    assert texts(error.failure).count("why failed") >= 1
    assert [one.failure for one in delivered] == [error.failure]


async def test_rf_02_waiting_tells_why_it_was_to_be_undone_too(shop: Shop) -> None:
    root = shop.app.saga("root", "R")
    shop.step(root, "0", compensate=raises("Geronimo again!", ValueError))
    shop.step(root, "1", raises("Geronimo!"))

    handle, error = await shop.fail("R")

    assert shape(error.failure) == Shape("ValueError", "root", "Geronimo again!")
    assert isinstance(error.__context__, DistributedError)
    assert shape(error.__context__.failure) == simulated("root", "Geronimo!")
    assert [note for note in error.__notes__ if "RuntimeError: Geronimo!" in note]
    with pytest.raises(DistributedError) as again:
        shop.app.handle(handle.id).wait_sync(0)
    assert str(again.value.__context__) == str(error.__context__)
    run = await shop.only(handle, "root")
    assert (shape(run.failure), shape(run.rollback_reason)) == (shape(error.failure), simulated("root", "Geronimo!"))


async def test_rf_02_an_obstacle_that_names_the_reason_as_its_cause_tells_it_once(shop: Shop) -> None:
    def undo(_: Any, __: Any, error: Any) -> None:
        raise ValueError("rb") from error

    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("C"))
    child = shop.app.saga("child", "C")
    shop.step(child, "0", compensate=undo)
    shop.step(child, "1", raises("why"))

    _, error = await shop.fail("R")

    obstacle = Shape("ValueError", "child", "rb", (simulated("child", "why"),))
    assert shape(error.failure) == child_rollback_failed("root", "0", obstacle)


# Once, whatever its length -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", [True, False])
@pytest.mark.parametrize("length", [1, 70_000])
async def test_q5_the_same_failures_are_delivered_once_however_long_they_are(
    shop: Shop, length: int, handler: bool
) -> None:
    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches(*["C"] * 12), on_child_failure=handler, on_child_rollback_failure=True)
    child = shop.app.saga("child", "C")
    shop.step(child, "0", compensate=raises("rb " + "x" * length))
    shop.step(child, "1", raises("why " + "x" * length))

    handle, error = await shop.fail("R")

    assert shop.journal.of("root") == ["root-0", *["root-hcf0"] * handler]
    assert await shop.states(handle) == {"root": ROLLBACK_FAILED, "child": [ROLLBACK_FAILED] * 12}
    told = [text or "" for text in texts(error.failure)]
    assert [sum(text.startswith(word) for text in told) for word in ("rb x", "why x")] == [12, 12]


async def test_q5_an_equal_failure_of_another_child_is_another_failure(shop: Shop) -> None:
    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("A"), on_child_rollback_failure=nothing)
    shop.step(root, "1", launches("A"), on_child_failure=nothing)
    shop.step(root, "2", fails)
    child = shop.app.saga("child", "A")
    shop.step(child, "0", compensate=raises("the same"))

    handle, _ = await shop.fail("R")

    # The newer one could not be undone and nobody handles it: the older one is not asked.
    assert shop.journal.of("root") == ["root-0", "root-1", "root-2"]
    assert await shop.states(handle) == {"root": ROLLBACK_FAILED, "child": [COMMITTED, ROLLBACK_FAILED]}


# What the handler of rollback failures launches -----------------------------------------------------------------------


def repairs(calls: list[Any], *, until: int, then: Any = None) -> Any:
    """The body of a handler that launches a repair at each call before call `until`, and then does something else."""

    def body(scope: Any, _: Any, error: Any) -> None:
        calls.append((scope.attempt, scope.iteration, scope.idempotency_key, error.failure))
        if scope.attempt < until:
            scope.launch("repairs", None)
        elif then is None:
            raise error
        else:
            then()

    return body


async def test_rf_04_lp_09_what_a_handler_launched_fails_and_it_is_called_again(shop: Shop) -> None:
    calls: list[Any] = []
    root = shop.saga("root", "R", None)
    shop.step(root, "s", launches("C"), on_child_rollback_failure=repairs(calls, until=1))
    shop.step(root, "f", fails)
    breaks(shop, "child", "C")
    shop.saga("gc", "repairs", raises("gc boom"))

    handle, error = await shop.fail("R")

    assert shop.journal == [
        "root-0", "root-s", "child-0", "root-f", "child-rb0", "root-hcrfs", "gc-0", "root-hcrfs",
    ]  # fmt: skip
    assert await shop.states(handle) == {"root": ROLLBACK_FAILED, "child": ROLLBACK_FAILED, "gc": ROLLED_BACK}
    first = child_rollback_failed("root", children_of("s"), simulated("child", "rb child"), simulated("root"))
    second = child_rollback_failed("root", children_of("s"), simulated("gc", "gc boom"), first)
    assert [shape(failure) for *_, failure in calls] == [first, second]
    assert [attempt for attempt, *_ in calls] == [0, 1]
    assert len({key for _, _, key, _ in calls}) == 1
    assert shape(error.failure) == second
    run = await shop.only(handle, "root")
    assert shape(run.rollback_reason) == simulated("root")
    assert [(step.attempt, step.state) for step in run.steps if step.kind is StepKind.CHILD_FAILURE_HANDLER] == [
        (0, "committed"),
        (1, "failed"),
    ]


async def test_q73_a_repair_that_succeeds_in_the_end_counts_as_compensated(shop: Shop) -> None:
    calls: list[Any] = []
    tries: list[int] = []

    def repair(*_: Any) -> None:
        tries.append(len(tries))
        if len(tries) < 3:
            raise RuntimeError(f"not yet {len(tries)}")

    root = shop.saga("root", "R", None)
    shop.step(root, "s", launches("C", "C"), on_child_rollback_failure=repairs(calls, until=9))
    shop.step(root, "f", fails)
    breaks(shop, "child", "C")
    shop.saga("gc", "repairs", repair)

    handle, error = await shop.fail("R")

    assert shop.journal.of("root") == ["root-0", "root-s", "root-f", *["root-hcrfs"] * 3, "root-rbs", "root-rb0"]
    assert [attempt for attempt, *_ in calls] == [0, 1, 2]
    assert (await shop.only(handle, "root")).state is ROLLED_BACK
    # What the last call launched is not undone: it is what a compensation did.
    assert [run.state for run in await shop.runs(handle, "gc")] == [ROLLED_BACK, ROLLED_BACK, COMMITTED]
    assert shape(error.failure) == simulated("root")
    assert [texts(failure).count("rb child") for *_, failure in calls] == [2, 2, 2]


@pytest.mark.parametrize("launched", [1, 0])
async def test_q73_returning_without_a_launch_counts_as_compensated(shop: Shop, launched: int) -> None:
    calls: list[Any] = []
    root = shop.saga("root", "R", None)
    shop.step(root, "s", launches("C"), on_child_rollback_failure=repairs(calls, until=launched, then=nothing))
    shop.step(root, "f", fails)
    breaks(shop, "child", "C")
    shop.saga("gc", "repairs", fails)

    handle, _ = await shop.fail("R")

    assert len(calls) == launched + 1
    assert shop.journal.of("root")[-2:] == ["root-rbs", "root-rb0"]
    assert (await shop.only(handle, "root")).state is ROLLED_BACK


async def test_q73_a_repair_that_nobody_listens_to_is_not_waited_for(shop: Shop) -> None:
    calls: list[Any] = []
    root = shop.saga("root", "R", None)
    shop.step(root, "s", launches("C"), on_child_rollback_failure=repairs(calls, until=9))
    shop.step(root, "f", fails)
    breaks(shop, "child", "C")

    handle, _ = await shop.fail("R")

    assert [attempt for attempt, *_ in calls] == [0]
    assert (await shop.only(handle, "root")).state is ROLLED_BACK


async def test_q73_a_repair_that_always_fails_ends(shop: Shop) -> None:
    calls: list[Any] = []
    root = shop.saga("root", "R", None)
    shop.step(root, "s", launches("C"), on_child_rollback_failure=repairs(calls, until=1000))
    shop.step(root, "f", fails)
    breaks(shop, "child", "C")
    shop.saga("gc", "repairs", raises("gc boom"))

    handle, error = await shop.fail("R")

    assert [attempt for attempt, *_ in calls] == list(range(ROLLBACK_HANDLER_CALLS))
    assert (await shop.only(handle, "root")).state is ROLLBACK_FAILED
    told = texts(error.failure)
    assert {"gc boom", "rb child"} <= set(told)
    assert told.count("gc boom") == ROLLBACK_HANDLER_CALLS


async def test_q73_a_repair_that_cannot_be_undone_tells_both(shop: Shop) -> None:
    calls: list[Any] = []
    root = shop.saga("root", "R", None)
    shop.step(root, "s", launches("C"), on_child_rollback_failure=repairs(calls, until=1))
    shop.step(root, "f", fails)
    breaks(shop, "child", "C")
    breaks(shop, "gc", "repairs", "gc boom")

    handle, error = await shop.fail("R")

    assert (await shop.only(handle, "root")).state is ROLLBACK_FAILED
    assert [texts(error.failure).count(text) for text in ("rb gc", "gc boom", "rb child")] == [1, 1, 1]


async def test_q45_a_replacement_of_the_second_failure_keeps_it_as_its_cause(shop: Shop) -> None:
    calls: list[Any] = []
    root = shop.saga("root", "R", None)
    replace = repairs(calls, until=1, then=raises("replaced", ValueError))
    shop.step(root, "s", launches("C"), on_child_rollback_failure=replace)
    shop.step(root, "f", fails)
    breaks(shop, "child", "C")
    shop.saga("gc", "repairs", raises("gc boom"))

    _, error = await shop.fail("R")

    failure = shape(error.failure)
    assert failure[:3] == ("ValueError", "root", "replaced")
    assert failure.causes == (shape(calls[1][-1]),)


@pytest.mark.parametrize("broken", [True, False])
async def test_rf_06_q23_the_same_where_a_compensation_launched_the_child(shop: Shop, broken: bool) -> None:
    calls: list[Any] = []
    root = shop.saga("root", "R", None)
    shop.step(root, "s", compensate=launches("C"), on_child_rollback_failure=repairs(calls, until=1))
    shop.step(root, "f", fails)
    if broken:
        breaks(shop, "child", "C", "child boom")
    else:
        shop.saga("child", "C", raises("child boom"))
    shop.saga("gc", "repairs", raises("gc boom"))

    handle, error = await shop.fail("R")

    assert shop.journal.of("root", "gc") == [
        "root-0", "root-s", "root-f", "root-rbs", "root-hcrfs", "gc-0", "root-hcrfs",
    ]  # fmt: skip
    assert (await shop.only(handle, "root")).state is ROLLBACK_FAILED
    tell = child_rollback_failed if broken else child_rolled_back
    first, second = (shape(failure) for *_, failure in calls)
    assert first[:3] == tell("root", "Rollback of s[0]")[:3]
    assert second == tell("root", "Rollback of s[0]", simulated("gc", "gc boom"), first)
    assert shape(error.failure) == second
    assert "child boom" in texts(error.failure)


async def test_q44_calls_are_counted_for_an_instance_over_both_of_its_phases(shop: Shop) -> None:
    calls: list[Any] = []

    def handles(scope: Any, _: Any, __: Any) -> None:
        calls.append((scope.step, scope.attempt))

    root = shop.app.saga("root", "R")
    for name in ("0", "1"):
        shop.step(root, name, launches("C"), compensate=launches("D"), on_child_rollback_failure=handles)
    shop.step(root, "2", fails)
    breaks(shop, "child", "C")
    shop.saga("other", "D", fails)

    handle, _ = await shop.fail("R")

    assert calls == [("1", 0), ("1", 1), ("0", 0), ("0", 1)]
    assert (await shop.only(handle, "root")).state is ROLLED_BACK


# Stored once ----------------------------------------------------------------------------------------------------------


@pytest.mark.one_home("it looks at what one database stores")
async def test_d39_each_failure_of_a_fan_out_is_stored_once(shop: Shop, database_url: str) -> None:
    def fails_when_odd(_: Any, message: Any) -> None:
        if message.payload % 2:
            raise RuntimeError(f"{message.payload} " + "x" * 2000)

    def fans_out(scope: Any, _: Any) -> None:
        for number in range(40):
            scope.launch("C", number)

    told: list[Any] = []

    def undo(_: Any, __: Any, error: Any) -> None:
        told.append(error)

    shop.saga("root", "R", fans_out)
    child = shop.app.saga("child", "C")
    shop.step(child, "0", compensate=undo)
    shop.step(child, "1", fails_when_odd)

    handle, error = await shop.fail("R")

    assert len(error.causes) == 20
    reasons = [one for one in told if one.type == "ParentSaidSo"]
    assert len(reasons) == 20
    assert {tuple(cause.message for cause in one.causes[0].causes) for one in reasons} == {
        tuple(cause.message for cause in error.causes)
    }
    with psycopg.connect(database_url) as connection:
        counted = connection.execute("select type, count(*) from scoop_outbox.failure group by type").fetchall()
        # One of each child that failed, the root's, and what it told its other children.
        assert sorted(counted) == [("ChildRolledBack", 1), ("ParentSaidSo", 1), ("RuntimeError", 20)]
        (size,) = connection.execute("select max(octet_length(r::text)) from scoop_outbox.run r").fetchone() or (0,)
    assert size < 2000
    # Another process, which knows none of it.
    other = Scoop("shop", database=database_url)
    status = await other.status(handle.id)
    await other.close()
    assert [run.failure for run in status.runs] == [run.failure for run in (await shop.status(handle)).runs]
    assert status.runs[0].failure == error.failure


@pytest.mark.one_home("it looks at what one database stores")
async def test_fs_03_a_failure_that_is_kept_elsewhere_is_copied(shop: Shop) -> None:
    below = Failure("Below", "as it was", "there[1]", stored=Stored(uuid4(), uuid4()))
    foreign = Failure("Foreign", "from afar", "there[2]", causes=(below,), stored=Stored(uuid4(), uuid4()))

    def passes_on(*_: Any) -> None:
        raise foreign.to_exception()

    shop.saga("root", "R", launches("C"))
    shop.saga("child", "C", passes_on)

    handle, error = await shop.fail("R")

    assert error.failure.causes == (foreign,)
    other = Scoop("shop", database=service_of(shop.app).home.url)
    (root, child) = (await other.status(handle.id)).runs
    await other.close()
    assert (root.failure, child.failure) == (error.failure, foreign)


@pytest.mark.one_home("it looks at what one database stores")
async def test_fs_03_a_failure_that_was_removed_is_still_a_failure(shop: Shop, database_url: str) -> None:
    shop.saga("root", "R", launches("C"))
    shop.saga("child", "C", fails)
    handle, error = await shop.fail("R")
    with psycopg.connect(database_url) as connection:
        connection.execute("delete from scoop_outbox.failure where type = 'RuntimeError'")

    other = Scoop("shop", database=database_url)
    with pytest.raises(DistributedError) as caught:
        await other.handle(handle.id).wait(5)
    root, child = (await other.status(handle.id)).runs
    await other.close()

    assert (caught.value.type, caught.value.message) == (error.type, error.message)
    assert [cause.type for cause in caught.value.causes] == ["CausesLeftOut"]
    assert root.failure == caught.value.failure
    assert child.failure is not None
    assert child.failure.type == "FailureRemoved"


async def test_d35_nul_and_lone_surrogates_are_stored(shop: Shop) -> None:
    text = "nul \0, lone \ud800, ordinary"
    shop.saga("root", "R", launches("C"))
    child = shop.app.saga("child", "C")
    shop.step(child, "0", compensate=raises(f"rb {text}"), compensate_retry=Retry(attempts=1))
    shop.step(child, "1", raises(f"why {text}"))

    handle, error = await shop.fail("R")

    assert {f"rb {text}", f"why {text}"} <= set(texts(error.failure))
    other = Scoop("shop", database=service_of(shop.app).home.url)
    assert (await other.status(handle.id)).runs[0].failure == error.failure
    await other.close()
