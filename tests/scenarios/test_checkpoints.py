"""Q62: a step asks in the middle of its work whether its run gives up."""

import asyncio
from typing import Any

import pytest

from scoop_outbox import GaveUp, RunCancelled
from tests.scenarios.cancelling import cancelled_at, gave_up
from tests.scenarios.shop import COLOURS, LONG, Gate, Shop, events, raises


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


async def test_what_looks_like_a_cancellation_and_is_none_is_a_failure(mixed: Shop) -> None:
    mixed.saga("root", "R", None, raises("of my own", RunCancelled))

    _, error = await mixed.fail("R")

    assert (error.failure.type, error.failure.message) == ("scoop_outbox.errors.RunCancelled", "of my own")
    assert mixed.journal == ["root-0", "root-1", "root-rb0"]
