"""Operators ask what a run or a hierarchy waits for: `scoop-outbox explain`, and `Runs.explain`."""

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from scoop_outbox import Answer, DistributedError, Retry, RunState, Scoop, TransientError, UnknownMessage
from scoop_outbox.app import service_of
from scoop_outbox.operations import explain
from scoop_outbox.operations.runs import Cause, Explanation, Runs, Waiting
from tests.integration.seeing import announced, ask, command, launches, nothing, printed, raises, refused, shop
from tests.integration.test_show import AT, ID, fits
from tests.waiting import until


@pytest.fixture
def runs(database_url: str) -> Iterator[Runs]:
    with Runs(database_url) as opened:
        yield opened


class Gate:
    """A step that waits until it is let through."""

    def __init__(self) -> None:
        self.entered = 0
        self.opened = asyncio.Event()

    async def __call__(self, scope: Any, message: Any) -> None:
        self.entered += 1
        await self.opened.wait()


def one_step(url: str, step: Callable[..., Any] = nothing, **options: Any) -> Scoop:
    app = Scoop("shop", database=url)
    app.saga("place-order", on="orders", **options).add_step("pay", step)
    return app


@asynccontextmanager
async def taken_in(app: Scoop, *, count: int = 1) -> AsyncIterator[uuid.UUID]:
    """Messages on `orders` that have been taken in and nobody executes; the id of the first run."""
    url = service_of(app).home.url
    async with app.running(worker=False):
        for number in range(count):
            await app.launch("orders", number, key="k")
            await until(lambda: ask(url, "select count(*) from run") == [(number + 1,)])  # noqa: B023
    yield ask(url, "select id from run order by created_at")[0][0]


def causes(found: Explanation | Waiting) -> list[Cause]:
    waiting = found.waiting if isinstance(found, Explanation) else (found,)
    return [reason.cause for one in waiting for reason in one.reasons]


def texts(found: Explanation) -> list[str]:
    return [reason.text for one in found.waiting for reason in one.reasons]


async def test_a_message_in_the_outbox(database_url: str, runs: Runs) -> None:
    app = one_step(database_url)
    handle = await app.launch("orders", 1)
    await app.close()
    found = runs.explain(handle.id)
    assert causes(found) == [Cause.OUTBOX]
    (text,) = texts(found)
    assert re.fullmatch(rf"it is in the outbox, on topic 'orders', since {AT}; no relay is alive", text)
    ask(database_url, "update outbox_shard set expires_at = clock_timestamp() + interval '1 hour'")
    assert texts(runs.explain(handle.id))[0].endswith("; a relay is alive")
    assert fits(
        printed(database_url, "explain", str(handle.id)[:20]),
        rf"message {handle.id} has not been taken in",
        rf"  - it is in the outbox, on topic 'orders', since {AT}; a relay is alive",
    )


async def child_waiting(url: str) -> tuple[uuid.UUID, uuid.UUID]:
    """A run that waits for a child whose message nobody has taken in yet; both messages."""
    app = Scoop("shop", database=url)
    app.saga("place-order", on="orders").add_step("reserve", launches("reserve"))
    stock = Scoop("stock", database=url)
    stock.saga("take", on="reserve").add_step("only", nothing)
    await announced(stock)
    async with app.running(worker=False):
        handle = await app.launch("orders", 1)
        await until(lambda: ask(url, "select count(*) from run") == [(1,)])
    async with app.running(relay=False):
        await until(lambda: ask(url, "select count(*) from child") == [(1,)])
    ((child,),) = ask(url, "select message_id from child")
    return handle.id, child


async def test_a_child_that_has_not_begun(database_url: str, runs: Runs) -> None:
    message_id, child = await child_waiting(database_url)
    found = runs.explain(message_id)
    root, missing = sorted(found.waiting, key=lambda one: one.run_id is None)
    assert (root.children, root.reasons, root.next) == (1, (), None)
    assert (missing.message_id, missing.parent, missing.service, missing.saga) == (child, root.run_id, "stock", "take")
    assert causes(missing) == [Cause.OUTBOX]
    ask(database_url, "delete from outbox")
    found = runs.explain(message_id)
    assert causes(found) == [Cause.INTAKE, Cause.NO_WORKER]
    assert fits(
        printed(database_url, "explain", str(message_id)),
        rf"run {ID} of saga 'place-order', service 'shop': running, waits for 1 open child of step 'reserve' since .*",
        rf"  message {child} has not been taken in for saga 'take' of service 'stock'",
        r"    - it has left the outbox: service 'stock' takes it in from the broker",
        r"    - no worker of service 'stock' is alive",
    )
    stock = Scoop("stock", database=database_url)
    stock.saga("take", on="reserve").add_step("only", nothing)
    async with stock.running(relay=False):
        await until(lambda: causes(runs.explain(message_id)) == [Cause.INTAKE])


@pytest.mark.parametrize("origin, service", [("intake", "stock"), ("relay", None)])
async def test_a_child_that_was_given_up(database_url: str, runs: Runs, origin: str, service: str | None) -> None:
    message_id, child = await child_waiting(database_url)
    ask(database_url, "delete from outbox")
    ask(
        database_url,
        "insert into dead_letter (message_id, topic, body, content_type, headers, origin, reason, service) "
        "values (%s, 'reserve', '', '', '{}', %s, 'too large', %s)",
        child, origin, service,
    )  # fmt: skip
    found = runs.explain(message_id)
    (reason,) = (one for waiting in found.waiting for one in waiting.reasons if one.cause is Cause.DEAD_LETTER)
    assert reason.dead_letter == 1
    assert reason.text == "it is dead letter 1, see scoop-outbox dead-letters show 1: too large"
    assert Cause.OUTBOX not in causes(found)
    assert Cause.INTAKE not in causes(found)


async def test_nobody_who_could_execute_it(database_url: str, runs: Runs) -> None:
    app = one_step(database_url)
    async with taken_in(app) as run_id:
        found = runs.explain(run_id)
        assert causes(found) == [Cause.NO_WORKER]
        assert texts(found)[0] == "no worker of service 'shop' is alive"
        assert (found.run_id, found.waiting[0].run_id, found.waiting[0].state) == (run_id, run_id, RunState.RUNNING)
    other = Scoop("shop", database=database_url)
    other.saga("another", on="other").add_step("only", nothing)
    async with other.running(relay=False):
        await until(lambda: texts(runs.explain(run_id))[0].startswith("no living worker"))
        assert texts(runs.explain(run_id))[0] == "no living worker of service 'shop' has saga 'place-order'"


async def test_nobody_who_knows_its_step(database_url: str, runs: Runs) -> None:
    def version(*steps: str) -> Scoop:
        app = Scoop("shop", database=database_url)
        saga = app.saga("place-order", on="orders")
        for step in steps:
            saga.add_step(step, launches("elsewhere") if step == "first" else nothing)
        return app

    elsewhere = Scoop("elsewhere", database=database_url)
    elsewhere.saga("only", on="elsewhere").add_step("only", nothing)
    await announced(elsewhere)
    old = version("first", "old")
    async with old.running():
        handle = await old.launch("orders", 1)
        await until(lambda: ask(database_url, "select count(*) from child") == [(1,)])
    async with version("first", "new").running(), elsewhere.running(relay=False):
        expected = "no living worker of service 'shop' knows step 'old' of saga 'place-order'"
        await until(lambda: expected in texts(runs.explain(handle.id)))
        found = runs.explain(handle.id)
        assert found.waiting[0].next == "it needs step 'old'"


async def test_a_step_that_is_being_executed(database_url: str, runs: Runs) -> None:
    gate = Gate()
    app = one_step(database_url, gate)
    async with app.running():
        handle = await app.launch("orders", 1)
        await until(lambda: gate.entered)
        found = runs.explain(handle.id)
        (reason,) = found.waiting[0].reasons
        assert reason.cause is Cause.EXECUTING
        assert reason.process is not None
        assert reason.process.application == "scoop_outbox shop"
        assert reason.at == reason.process.since
        assert found.waiting[0].next == "step 'pay' is executed"
        gate.opened.set()
        await handle.wait(20)


async def test_a_row_that_somebody_else_has_locked(database_url: str, runs: Runs) -> None:
    app = one_step(database_url)
    async with taken_in(app) as run_id:
        with psycopg.connect(database_url, application_name="nightly report") as other:
            other.execute("select from scoop_outbox.run where id = %s for update", [run_id])
            async with app.running(relay=False):
                found = runs.explain(run_id)
                (reason,) = (one for one in found.waiting[0].reasons if one.cause is Cause.ROW_LOCK)
                assert reason.process is not None
                assert (reason.process.pid, reason.process.state) == (other.info.backend_pid, "idle in transaction")
                told = rf"its row is locked by pid {other.info.backend_pid} \(application 'nightly report', user '.*', "
                assert re.fullmatch(told + r"idle in transaction, in a transaction since .*, \d+ s\)", reason.text)
                other.rollback()
                await until(lambda: causes(runs.explain(run_id)) == [Cause.ENDED])


async def test_explaining_keeps_nobody_from_locking(database_url: str, runs: Runs) -> None:
    async with taken_in(one_step(database_url)) as run_id:
        before = ask(database_url, "select xmax::text, ctid::text from run")
        runs.explain(run_id)
        assert ask(database_url, "select xmax::text, ctid::text from run") == before


async def test_a_run_that_waits_for_its_turn(database_url: str, runs: Runs) -> None:
    gate = Gate()
    app = one_step(database_url, gate, ordered="key")
    async with taken_in(app, count=3) as first, app.running(relay=False):
        await until(lambda: gate.entered)
        ((last,),) = ask(database_url, "select id from run order by created_at desc limit 1")
        await until(lambda: causes(runs.explain(last)) == [Cause.LANE])  # a worker may be looking at it
        (reason,) = runs.explain(last).waiting[0].reasons
        assert (reason.cause, reason.run_id) == (Cause.LANE, first)
        assert reason.text == (
            f"it waits for its turn: run {first} comes first in its lane, and 2 were taken in before it"
        )
        gate.opened.set()
        await until(lambda: causes(runs.explain(last)) == [Cause.ENDED])


async def test_the_first_of_a_lane_waits_for_a_worker_only(database_url: str, runs: Runs) -> None:
    async with taken_in(one_step(database_url, ordered="key")) as run_id:
        assert causes(runs.explain(run_id)) == [Cause.NO_WORKER]


async def test_a_retry_that_is_due_later(database_url: str, runs: Runs) -> None:
    app = Scoop("shop", database=database_url)
    app.saga("place-order", on="orders").add_step("pay", raises("boom"), retry=Retry(attempts=3, backoff=600.0))
    async with app.running():
        handle = await app.launch("orders", 1)
        await until(lambda: ask(database_url, "select count(*) from step") == [(1,)])
        (reason,) = runs.explain(handle.id).waiting[0].reasons
    ((not_before,),) = ask(database_url, "select not_before from run")
    assert (reason.cause, reason.at) == (Cause.RETRY, not_before)
    assert re.fullmatch(rf"attempts that failed: 1; the next one is made in \d+\.\d s, at {AT}", reason.text)


async def test_an_interruption(database_url: str, runs: Runs) -> None:
    async def not_now(scope: Any, message: Any) -> None:
        raise TransientError("the bank is closed")

    app = one_step(database_url, not_now)
    async with app.running():
        handle = await app.launch("orders", 1)
        await until(lambda: ask(database_url, "select interruptions > 3 from run") == [(True,)])
    found = runs.explain(handle.id)
    assert causes(found) == [Cause.NO_WORKER, Cause.INTERRUPTED]
    told = r"it was interrupted \d+ times in a row, the last time: TransientError; it is executed again (in|at) .*"
    assert re.fullmatch(told, texts(found)[1])


async def test_a_run_that_is_parked(database_url: str, runs: Runs) -> None:
    async with taken_in(one_step(database_url)) as run_id:
        ask(database_url, "update run set state = 'parked', reason = 'broken', ended_at = clock_timestamp()")
        (reason,) = runs.explain(run_id).waiting[0].reasons
        assert (reason.cause, reason.text) == (Cause.PARKED, "it is parked: broken")
        ask(database_url, "update run set needs = 'pay'")
        text = "it is parked: broken (it needs step 'pay': no living worker knows it)"
        assert texts(runs.explain(run_id)) == [text]
        # One that executes it takes it on again at once, so it only says that it is alive.
        ask(
            database_url,
            "with known as (insert into saga_version (id, service, saga, steps, alive_until) "
            "values ('v', 'shop', 'place-order', array['pay'], clock_timestamp() + interval '1 hour') returning id) "
            "insert into worker (id, service, sagas, versions, alive_until) "
            "select gen_random_uuid(), 'shop', array['place-order'], array[id], clock_timestamp() + interval '1 hour' "
            "from known",
        )
        assert texts(runs.explain(run_id)) == [text.replace("no living", "a living")]


async def test_a_rollback_that_failed(database_url: str, runs: Runs) -> None:
    app = Scoop("shop", database=database_url)
    app.saga("place-order", on="orders").add_step("reserve", launches("reserve"))
    take = app.saga("take", on="reserve")
    take.add_step("only", nothing, compensate=raises("no way back"), compensate_retry=Retry(attempts=1))
    take.add_step("then", raises("out of stock"))
    async with app.running():
        handle = await app.launch("orders", 1)
        with pytest.raises(DistributedError):
            await handle.wait(20)
    found = runs.explain(handle.id)
    assert [(one.saga, one.state) for one in found.waiting] == [
        ("place-order", RunState.ROLLBACK_FAILED),
        ("take", RunState.ROLLBACK_FAILED),
    ]
    assert causes(found) == [Cause.ROLLBACK_FAILED] * 2
    stuck = found.waiting[1].run_id
    assert stuck is not None
    assert texts(found)[1] == (
        "it could not be rolled back: ValueError: no way back (saga 'take'); "
        "it was to be rolled back for: ValueError: out of stock (saga 'take'); "
        f"scoop-outbox retry {stuck}, skip or abandon it"
    )
    assert "root cause ValueError: no way back (saga 'take')" in texts(found)[0]
    assert runs.abandon(stuck, source="anna") is Answer.ACCEPTED
    assert texts(runs.explain(handle.id))[1].endswith("(saga 'take'); it was abandoned")


async def test_what_has_ended(database_url: str, runs: Runs) -> None:
    app = shop(database_url)
    failing = Scoop("failing", database=database_url)
    failing.saga("fails", on="failures").add_step("only", raises("boom"))
    async with app.running(), failing.running(relay=False):
        good, bad = await app.launch("orders", 1), await app.launch("failures", 1)
        await good.wait(20)
        with pytest.raises(DistributedError):
            await bad.wait(20)
    assert causes(runs.explain(good.id)) == [Cause.ENDED]
    assert re.fullmatch(rf"it has ended at {AT}", texts(runs.explain(good.id))[0])
    assert re.fullmatch(
        rf"it has ended at {AT}, for: ValueError: boom \(saga 'fails'\)", texts(runs.explain(bad.id))[0]
    )
    assert fits(
        printed(database_url, "explain", str(good.id)),
        rf"run {ID} of saga 'place-order', service 'shop': committed",
        rf"  - it has ended at {AT}",
    )


async def test_mail_that_is_missing_or_due(database_url: str, runs: Runs) -> None:
    gate = Gate()
    app = one_step(database_url, gate)
    async with app.running(slots=1):
        await app.launch("orders", 1)
        await until(lambda: gate.entered)
        waiting = await app.launch("orders", 2)
        await until(lambda: ask(database_url, "select count(*) from run") == [(2,)])
        (reason,) = runs.explain(waiting.id).waiting[0].reasons
        assert reason.cause is Cause.DUE
        assert re.fullmatch(r"it has been due for \d+\.\d s: it waits for a worker with a free slot", reason.text)
        ask(database_url, "update mailbox set due = clock_timestamp() + interval '1 hour'")
        (reason,) = runs.explain(waiting.id).waiting[0].reasons
        assert re.fullmatch(rf"a worker looks at it in 3\d\d\d\.\d s, at {AT}", reason.text)
        ask(database_url, "delete from mailbox where run_id = %s", runs.explain(waiting.id).waiting[0].run_id)
        (reason,) = runs.explain(waiting.id).waiting[0].reasons
        assert (reason.cause, reason.text) == (Cause.NO_MAIL, "no wake-up is posted for it: no worker looks at it")
        gate.opened.set()


async def test_the_way_down_to_the_leaves(database_url: str, runs: Runs) -> None:
    gate = Gate()
    app = Scoop("shop", database=database_url)
    app.saga("root", on="orders").add_step("down", launches("middle"))
    app.saga("middle", on="middle").add_step("further", launches("leaf"))
    app.saga("leaf", on="leaf").add_step("slow", gate)
    async with app.running():
        handle = await app.launch("orders", 1)
        await until(lambda: gate.entered)
        text = printed(database_url, "explain", str(handle.id))
        assert fits(
            text,
            rf"run {ID} of saga 'root', service 'shop': running, waits for 1 open child of step 'down' since .* s",
            rf"  run {ID} of saga 'middle', .*: running, waits for 1 open child of step 'further' since .* s",
            rf"    run {ID} of saga 'leaf', .*: running, has its first step due or at work since .* s",
            r"      - it is being executed, by pid \d+ \(application 'scoop_outbox shop', .*\)",
            r"      - next: step 'slow' is executed",
        ), text
        middle = next(one for one in runs.explain(handle.id).waiting if one.saga == "middle")
        below = runs.explain(middle.run_id or "")
        assert {one.saga for one in below.waiting} == {"middle", "leaf"}
        gate.opened.set()
        await handle.wait(20)


async def test_a_cancellation_that_is_not_carried_out_yet(database_url: str, runs: Runs) -> None:
    message_id, child = await child_waiting(database_url)
    assert runs.cancel(message_id, reason="sold", source="bob") is Answer.ACCEPTED
    root = next(one for one in runs.explain(message_id).waiting if one.run_id is not None)
    assert causes(root) == [Cause.CANCELLED]
    why = "CancellationRequested: sold"
    assert root.reasons[0].text.startswith(f"it has been asked to give up, and what is shielded ends first: {why}")
    assert root.next is not None
    assert root.next.startswith(f"its children are told to give up: {why}")
    ask(database_url, "update child set open = false, state = 'cancelled'")
    (root,) = runs.explain(message_id).waiting
    assert root.next is not None
    assert root.next.startswith("it gives up, and rolls back: GaveUp")
    assert f"cancelled before it began (message {child})" in printed(database_url, "show", str(message_id))
    ask(database_url, "update run set state = 'parked', reason = 'broken'")
    (root,) = runs.explain(message_id).waiting
    assert Cause.PARKED not in causes(root)
    assert root.next is not None
    assert root.next.startswith("it gives up, and rolls back: GaveUp")


async def test_a_run_that_gives_up_says_so(database_url: str, runs: Runs) -> None:
    gate = Gate()
    app = Scoop("shop", database=database_url)
    app.saga("place-order", on="orders").add_step("reserve", launches("reserve"))
    app.saga("take", on="reserve", shield=True).add_step("only", gate)
    async with app.running():
        handle = await app.launch("orders", 1)
        await until(lambda: gate.entered)
        runs.cancel(handle.id, reason="sold", source="bob")
        await until(
            lambda: "gives up for: CancellationRequested: sold" in printed(database_url, "show", str(handle.id))
        )
        assert Cause.CANCELLED in causes(runs.explain(handle.id))
        gate.opened.set()
        with pytest.raises(DistributedError):
            await handle.wait(20)


NEXT = [
    ("seq = 1, instance = 1, step = 'pay', next_step = null", "it commits"),
    ("state = 'rolling_back', undo_seq = 0", "it is rolled back: nothing is left to be undone"),
    ("state = 'rolling_back', undo_seq = 1", "step 'pay', execution 1, is undone"),
]


@pytest.mark.parametrize("changes, says", NEXT)
async def test_what_comes_next(database_url: str, runs: Runs, changes: str, says: str) -> None:
    async with taken_in(one_step(database_url)) as run_id:
        ask(
            database_url,
            "insert into step (run_id, seq, step, kind, iteration, attempt, state, started_at, ended_at, worker) "
            "values (%s, 1, 'pay', 'step', 0, 0, 'committed', now(), now(), 'w')",
            run_id,
        )
        ask(database_url, f"update run set {changes}")  # noqa: S608 - of our own
        assert runs.explain(run_id).waiting[0].next == says


CHILDREN = [
    ("running", "rolled_back", "the failure of its children is handled, or it rolls back: ChildRolledBack: "),
    ("rolling_back", "committed", "the children of step 'reserve', execution 1, are ordered to roll back"),
    ("rolling_back", "rollback_failed", "its code handles what could not be undone, or its rollback has failed: "),
]


@pytest.mark.parametrize("state, child, says", CHILDREN)
async def test_what_comes_next_when_children_have_ended(
    database_url: str, runs: Runs, state: str, child: str, says: str
) -> None:
    message_id, _ = await child_waiting(database_url)
    ask(database_url, "update child set open = false, state = %s, failed_at = now()", child)
    ask(database_url, "update run set state = %s, undo_seq = case when %s = 'rolling_back' then 1 end", state, state)
    told = runs.explain(message_id).waiting[0].next
    assert told is not None
    assert told.startswith(says)


async def test_json_is_one_object(database_url: str) -> None:
    async with taken_in(one_step(database_url)) as run_id:
        with psycopg.connect(database_url, application_name="holder") as other:
            other.execute("select from scoop_outbox.run where id = %s for update", [run_id])
            (line,) = printed(database_url, "explain", str(run_id), "--json").splitlines()
    found = json.loads(line)
    (waiting,) = found.pop("waiting")
    assert (found["run_id"], found["left_out"]) == (str(run_id), 0)
    lock, worker = waiting.pop("reasons")
    assert waiting.pop("text").startswith(f"run {run_id} of saga 'place-order'")
    assert waiting == {
        "run_id": str(run_id), "message_id": found["message_id"], "parent": None, "service": "shop",
        "saga": "place-order", "state": "running", "next": "its first step is executed", "children": 0,
        "home": None,
    }  # fmt: skip
    assert (worker["cause"], worker["process"]) == ("no_worker", None)
    assert (lock["cause"], lock["process"]["application"]) == ("row_lock", "holder")
    assert lock["at"] == lock["process"]["since"]


async def test_no_more_is_explained_than_can_be_read(
    database_url: str, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain, "MOST", 2)
    app = Scoop("shop", database=database_url)
    for name in ("a", "b", "c"):
        app.saga(name, on="orders").add_step("only", nothing)
    async with app.running(worker=False):
        handle = await app.launch("orders", 1)
        await until(lambda: ask(database_url, "select count(*) from run") == [(3,)])
    found = runs.explain(handle.id)
    assert (len(found.waiting), found.left_out) == (2, 1)
    result = command(database_url, "explain", str(handle.id))
    assert result.stderr == "and 1 more: scoop-outbox show shows all of them\n"


def test_who_is_unknown_is_not_explained(database_url: str, runs: Runs) -> None:
    unknown = uuid.uuid4()
    with pytest.raises(UnknownMessage):
        runs.explain(unknown)
    assert f"begins with {unknown}" in refused(database_url, "explain", str(unknown))
