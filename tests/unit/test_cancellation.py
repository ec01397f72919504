"""Whose cancellation it is: the task's own goes through, another one is an error."""

from __future__ import annotations

import asyncio

import pytest

from scoop_outbox._cancellation import StrayCancellationError, own_cancellation_only


async def test_what_was_awaited_and_cancelled_is_an_error() -> None:
    waited_for = asyncio.get_running_loop().create_future()
    waited_for.cancel()
    with pytest.raises(StrayCancellationError), own_cancellation_only():
        await waited_for


async def test_the_cancellation_of_the_task_goes_through_also_when_something_else_is_cancelled_with_it() -> None:
    waited_for = asyncio.get_running_loop().create_future()

    async def wait() -> None:
        with own_cancellation_only():
            await waited_for

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    waited_for.cancel()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_time_limit_is_no_cancellation() -> None:
    with pytest.raises(TimeoutError), own_cancellation_only():
        async with asyncio.timeout(0):
            await asyncio.get_running_loop().create_future()


async def test_a_time_limit_that_has_passed_does_not_excuse_what_comes_later() -> None:
    with pytest.raises(TimeoutError), own_cancellation_only():
        async with asyncio.timeout(0):
            await asyncio.get_running_loop().create_future()
    with pytest.raises(StrayCancellationError), own_cancellation_only():
        raise asyncio.CancelledError


async def test_what_is_not_cancelled_is_left_alone() -> None:
    with own_cancellation_only():
        await asyncio.sleep(0)
    with pytest.raises(KeyError), own_cancellation_only():
        raise KeyError
