"""What operators do, by coroutines: `AsyncRuns`, `AsyncHandlers` and `AsyncDeadLetters` do what their twins do."""

import asyncio
import contextlib
import inspect
import threading
import uuid
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from scoop_outbox import (
    AmbiguousId,
    Answer,
    AsyncDeadLetters,
    AsyncHandlers,
    AsyncRuns,
    DatabaseError,
    DeadLetters,
    DefinitionError,
    DistributedError,
    Handle,
    Handlers,
    Runs,
    RunState,
    Scoop,
    UnknownMessage,
)
from scoop_outbox.operations import runs as operations
from scoop_outbox.operations.dead_letters import ReplayStatus, Selection
from scoop_outbox.operations.explanation import Cause
from scoop_outbox.operations.handlers import ForgetStatus, Pending, _Removal
from scoop_outbox.store.pools import LENT
from tests.integration.seeing import announced, ask, launches, nothing, raises, shop
from tests.waiting import until

TWINS = [(Runs, AsyncRuns), (Handlers, AsyncHandlers), (DeadLetters, AsyncDeadLetters)]


def public(of: type[Any]) -> dict[str, Any]:
    return {name: one for name, one in inspect.getmembers(of, inspect.isfunction) if not name.startswith("_")}


@pytest.mark.parametrize("blocking, twin", TWINS)
def test_twins_do_the_same_and_are_called_alike(blocking: type[Any], twin: type[Any]) -> None:
    def called(one: Any) -> list[tuple[str, Any, Any]]:
        return [(name, each.kind, each.default) for name, each in inspect.signature(one).parameters.items()]

    ours, theirs = public(blocking), public(twin)
    assert ours.keys() == theirs.keys()
    assert called(blocking) == called(twin)
    for name, method in theirs.items():
        assert called(ours[name]) == called(method), name
        assert inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method), name
        assert inspect.iscoroutinefunction(ours[name]) is False
    assert ("Async" + blocking.__name__) == twin.__name__


def broken(url: str) -> Scoop:
    """A service whose runs cannot be rolled back."""
    app = Scoop("shop", database=url)
    saga = app.saga("order", on="orders")
    saga.add_step("first", nothing, compensate=raises("no way back"))
    saga.add_step("second", raises("boom"))
    return app


async def failed(app: Scoop, *, count: int = 1) -> list[Handle]:
    async with app.running():
        handles = [await app.launch("orders", n) for n in range(count)]
        for handle in handles:
            with contextlib.suppress(DistributedError):
                await handle.wait(20)
    return handles


async def test_runs_are_looked_at_and_acted_on(database_url: str) -> None:
    app = broken(database_url)
    first, second, third = await failed(app, count=3)
    async with AsyncRuns(database_url) as runs:
        listed = await runs.list(stuck=True, saga="order")
        assert [run.message_id for run in listed] == [third.id, second.id, first.id]
        assert await runs.list(states=["committed"], older_than=timedelta(0)) == []
        ids = {run.message_id: run.id for run in listed}
        assert (await runs.show(first.id)).runs[0].state is RunState.ROLLBACK_FAILED
        (waiting,) = (await runs.explain(first.id)).waiting
        assert [reason.cause for reason in waiting.reasons] == [Cause.ROLLBACK_FAILED]
        assert await runs.parked("shop") == []
        assert await runs.find_run(str(ids[first.id])) == ids[first.id]
        assert await runs.find_target(str(first.id)) == first.id
        assert await runs.skip(ids[first.id], note="by hand", source="anna") is Answer.ACCEPTED
        assert await runs.abandon(str(ids[second.id])[:30], source="anna") is Answer.ACCEPTED
        assert await runs.retry(ids[third.id], source="anna") is Answer.ACCEPTED
        assert await runs.cancel(uuid.uuid4(), source="anna") is Answer.UNKNOWN
        assert (await runs.rollback(second.id, source="anna")).answer is Answer.ABANDONED
        assert await runs.complete(str(first.id), "order", result=1, source="anna") is Answer.NOT_EXTERNAL
        assert await runs.fail(uuid.uuid4(), "order", reason="no", source="anna") is Answer.UNKNOWN
        (action,) = (await runs.show(first.id)).runs[0].actions
        assert (action.kind, action.note, action.source) == ("skip", "by hand", "anna")
        with pytest.raises(UnknownMessage):
            await runs.cancel("ffffffff", source="anna")
        with pytest.raises(DefinitionError):
            await runs.skip("no id", source="anna")
        with pytest.raises(ValueError, match="nonsense"):
            await runs.list(states=["nonsense"])
    async with app.running():
        with pytest.raises(DistributedError, match="boom"):
            await first.wait(20)


async def test_what_coroutines_do_at_the_same_time_does_not_mix(database_url: str) -> None:
    app = shop(database_url)
    ids = [uuid.UUID(f"01a20d49-27f9-7a10-8f3c-{n:012x}") for n in range(3 * LENT)]
    for one in ids:
        await app.launch("orders", 1, id=one)
    await app.close()
    async with AsyncRuns(database_url) as runs:
        answers = await asyncio.gather(*(runs.cancel(one, source="me") for one in ids))
        assert answers == [Answer.ACCEPTED] * len(ids)
        again = await asyncio.gather(*(runs.cancel(str(one), source="me") for one in ids))
        assert again == [Answer.ALREADY_REQUESTED] * len(ids)
        shown = await asyncio.gather(*map(runs.show, ids))
        assert [one.message_id for one in shown] == ids
        mixed: Any = await asyncio.gather(
            *(runs.cancel("01a20d", source="me"), runs.show(ids[0]), runs.find_run("01a20d")), return_exceptions=True
        )
        assert [type(one) for one in mixed[::2]] == [AmbiguousId, UnknownMessage]
        assert mixed[1].message_id == ids[0]


async def test_a_run_that_somebody_decides_about_is_asked_for_again(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (handle,) = await failed(broken(database_url))
    async with AsyncRuns(database_url) as runs:
        (run,) = await runs.list(stuck=True)
        with psycopg.connect(database_url) as holder:
            holder.execute("select from scoop_outbox.run where id = %s for update", [run.id])
            assert await runs.retry(run.id, source="anna") is Answer.BUSY
            monkeypatch.setattr(operations, "PAUSES", (0.01,) * 1000)
            retrying = asyncio.create_task(runs.retry(run.id, source="anna"))
            await asyncio.sleep(0)
            assert (await runs.show(handle.id)).runs, "the loop and the other connections go on meanwhile"
            holder.rollback()
            assert await retrying is Answer.ACCEPTED


def test_each_event_loop_has_connections_of_its_own(database_url: str) -> None:
    runs = AsyncRuns(database_url)

    async def asked() -> None:
        assert await asyncio.gather(*(runs.list() for _ in range(3))) == [[]] * 3
        await runs.close()

    threads = [threading.Thread(target=lambda: asyncio.run(asked())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(asked())


async def test_who_is_subscribed_is_told_and_forgotten(database_url: str) -> None:
    gone = Scoop("gone", database=database_url)
    gone.saga("reserve", on="reserve").add_step("only", nothing)
    await announced(gone)
    app = Scoop("shop", database=database_url)
    app.saga("order", on="orders").add_step("only", launches("reserve"))
    async with app.running():
        handle = await app.launch("orders", 1)
        async with AsyncHandlers(database_url) as handlers:

            async def waits() -> bool:
                return any(one.pending for one in await handlers.read("gone"))

            await until(waits)
            refused, unknown = await asyncio.gather(handlers.forget("gone"), handlers.forget("nobody"))
            assert (refused.status, unknown.status) == (ForgetStatus.REFUSED_PENDING, ForgetStatus.UNKNOWN)
            answer = await handlers.forget("gone", pending=Pending.SKIP)
            pending = answer.waiting + answer.unstarted
            assert (answer.status, pending, answer.left, answer.open) == (ForgetStatus.FORGOTTEN, 1, 0, False)
            assert [one.saga for one in answer.handlers] == ["reserve"]
            assert await handlers.read("gone") == []
        assert await handle.wait(20) is None


async def test_what_a_transaction_adds_that_saw_the_subscription_is_waited_for(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Any] = []
    retire = _Removal.retire

    def look(removal: _Removal) -> Any:
        looks.append(removal)
        return retire(removal)

    monkeypatch.setattr(_Removal, "retire", look)
    gone = Scoop("gone", database=database_url)
    gone.saga("reserve", on="reserve").add_step("only", nothing)
    await announced(gone)
    with psycopg.connect(database_url) as connection:
        connection.execute("select pg_current_xact_id()")  # it has an id, and may launch
        async with AsyncHandlers(database_url) as handlers:
            forgetting = asyncio.create_task(handlers.forget("gone"))
            await until(lambda: len(looks) > 2)
            assert not forgetting.done()
            connection.rollback()
            assert (await forgetting).status is ForgetStatus.FORGOTTEN


async def test_dead_letters_are_read_replayed_and_dropped(database_url: str) -> None:
    for n in range(5):
        ask(
            database_url,
            "insert into dead_letter (message_id, topic, body, content_type, headers, origin, reason) "
            "values (%s, 'orders', '1', 'application/json', '{}', 'relay', 'too large') returning id",
            uuid.UUID(int=n + 1),
        )
    async with AsyncDeadLetters(database_url) as letters:
        page = await letters.page(Selection(topic="orders"), limit=3)
        assert [one.message_id for one in page] == [uuid.UUID(int=n) for n in (1, 2, 3)]
        numbers = [number async for number in letters.numbers()]
        assert numbers[:3] == [one.id for one in page]
        assert len(numbers) == 5
        found = await letters.read(numbers[0])
        assert found is not None
        assert found.body == b"1"
        assert await letters.read(10**6) is None
        replayed = await asyncio.gather(*(letters.replay(number) for number in (*numbers[:2], 10**6)))
        assert [one.status for one in replayed] == [ReplayStatus.REPLAYED] * 2 + [ReplayStatus.UNKNOWN]
        assert await letters.drop([*numbers, 10**6]) == numbers[2:]
        assert [number async for number in letters.numbers()] == []


async def test_a_database_that_cannot_be_used_says_why() -> None:
    async with AsyncRuns("postgresql://nobody@127.0.0.1:1/nothing") as runs:
        with pytest.raises(DatabaseError):
            await runs.list()
    with pytest.raises(DefinitionError):
        AsyncHandlers("postgresql://nobody@127.0.0.1:1/nothing", schema="")
