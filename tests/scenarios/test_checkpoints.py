"""Q62: a step asks in the middle of its work whether its run gives up."""

import asyncio
import contextlib
from typing import Any

import pytest

from scoop_outbox import DefinitionError, GaveUp, RunCancelled, Saga
from tests.scenarios.cancelling import cancelled_at, gave_up
from tests.scenarios.conftest import MakeShop
from tests.scenarios.shop import COLOURS, LONG, Gate, Shop, events, raises
from tests.waiting import until


@pytest.mark.parametrize("colour", COLOURS[:2], indirect=True)
async def test_if_05_q62_a_step_asks_at_a_checkpoint(shop: Shop) -> None:
    gate = Gate()

    def asks(scope: Any, _: Any) -> Any:
        yield scope.checkpoint()
        shop.journal("root-goes on")
        yield from gate()
        yield scope.checkpoint()
        shop.journal("root-never")

    shop.saga("root", "R", None, asks)

    handle, error = await cancelled_at(gate, shop)

    assert gave_up(error.failure, "root")
    assert shop.journal == ["root-0", "root-1", "root-goes on", "root-rb0"]  # nothing was executed again
    assert await events(shop.app, handle) == ["root 0 step compensated", "root 0 compensation committed"]


@pytest.mark.parametrize("colour", COLOURS[:2], indirect=True)
async def test_q62_a_checkpoint_sees_a_deadline_and_may_be_in_a_group(shop: Shop) -> None:
    async def waits(scope: Any) -> None:
        while True:
            await scope.checkpoint()

    async def grouped(scope: Any, _: Any) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(waits(scope))
            group.create_task(asyncio.sleep(LONG))

    def loops(scope: Any, _: Any) -> None:
        while True:
            scope.checkpoint()

    root = shop.app.saga("root", "R")
    root.add_step("0", grouped if next(shop.colours) == "async" else loops)

    async with shop.running():
        handle = await shop.app.launch("R", None, timeout=0.2)
        with pytest.raises(GaveUp) as caught:
            await handle.wait(LONG)

    assert [cause.type for cause in caught.value.failure.causes] == ["MissedHappyPathDeadline"]


async def test_q62_a_step_that_may_be_interrupted_is_cancelled_at_its_next_await(make_shop: MakeShop) -> None:
    shop = make_shop("async")
    seen: list[str] = []

    async def waits(scope: Any, _: Any) -> None:
        await scope.connection.execute("create table written ()")
        seen.append("waits")
        try:
            await asyncio.Event().wait()  # for ever, unless it is cancelled
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    root = shop.app.saga("root", "R")
    shop.step(root, "0")
    root.add_step("1", waits, interrupt=True)

    async with shop.running():
        handle = await shop.app.launch("R", None)
        await until(lambda: seen, LONG)
        await shop.app.cancel(handle.id, reason="enough", source="test")
        with pytest.raises(GaveUp):
            await handle.wait(LONG)

    assert seen == ["waits", "cancelled"]
    assert shop.journal == ["root-0", "root-rb0"]
    assert await shop.ask("select to_regclass('written')") == [(None,)]


async def test_q62_a_statement_is_interrupted_too_when_a_deadline_is_over(make_shop: MakeShop) -> None:
    shop = make_shop("async")

    async def waits(scope: Any, _: Any) -> None:
        await scope.connection.execute("select pg_sleep(3600)")

    root = shop.app.saga("root", "R")
    root.add_step("0", waits, interrupt=True)
    shop.saga("other", "O", None)

    async with shop.running(slots=1):
        handle = await shop.app.launch("R", None, timeout=0.5)
        with pytest.raises(GaveUp):
            await handle.wait(LONG)
        await (await shop.app.launch("O", None)).wait(LONG)  # its slot is free


async def test_q62_a_step_that_swallows_the_interruption_is_discarded_all_the_same(make_shop: MakeShop) -> None:
    shop = make_shop("async")
    began = asyncio.Event()

    async def swallows(scope: Any, _: Any) -> None:
        began.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()  # for ever, unless it is cancelled
        scope.launch("C", None)

    root = shop.app.saga("root", "R")
    root.add_step("0", swallows, interrupt=True)
    shop.saga("child", "C", None)

    async with shop.running():
        handle = await shop.app.launch("R", None)
        await began.wait()
        await shop.app.cancel(handle.id, reason="enough", source="test")
        with pytest.raises(GaveUp):
            await handle.wait(LONG)

    assert shop.journal == []


def test_q62_what_cannot_be_interrupted_is_refused() -> None:
    async def step(scope: Any, message: Any) -> None: ...

    with pytest.raises(DefinitionError, match="interrupt=True cancels an async def"):
        Saga("s", "t").add_step("0", lambda scope, message: None, interrupt=True)
    with pytest.raises(DefinitionError, match="interrupt=True contradicts"):
        Saga("s", "t").add_step("0", step, interrupt=True, shield=True)


async def test_what_looks_like_a_cancellation_and_is_none_is_a_failure(mixed: Shop) -> None:
    mixed.saga("root", "R", None, raises("of my own", RunCancelled))

    _, error = await mixed.fail("R")

    assert (error.failure.type, error.failure.message) == ("scoop_outbox.errors.RunCancelled", "of my own")
    assert mixed.journal == ["root-0", "root-1", "root-rb0"]
