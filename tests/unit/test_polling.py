"""Adaptive polling."""

import asyncio
import time

from scoop_outbox.daemon.polling import AdaptivePolling


async def slept(pace: AdaptivePolling, at_most: float | None = None) -> float:
    began = time.monotonic()
    await pace.sleep(at_most)
    return time.monotonic() - began


async def test_nt_the_longer_nothing_happens_the_longer_it_sleeps() -> None:
    pace = AdaptivePolling(shortest=0.01, longest=0.04)
    planned = []
    for _ in range(4):
        planned.append(pace._interval)
        await pace.sleep(0.0)
    assert planned == [0.01, 0.02, 0.04, 0.04]


async def test_work_makes_it_quick_again() -> None:
    pace = AdaptivePolling(shortest=0.01, longest=10)
    for _ in range(5):
        await pace.sleep(0.0)
    pace.busy()
    assert await slept(pace) < 5


async def test_a_wake_ends_the_sleep() -> None:
    pace = AdaptivePolling(shortest=60, longest=60)
    sleep = asyncio.create_task(slept(pace))
    await asyncio.sleep(0)
    pace.wake()
    assert await sleep < 30


async def test_a_wake_that_finds_nobody_asleep_ends_the_next_sleep_and_only_that() -> None:
    pace = AdaptivePolling(shortest=60, longest=60)
    pace.wake()
    pace.wake()
    assert await slept(pace) < 30
    sleep = asyncio.create_task(slept(pace))
    done, _ = await asyncio.wait([sleep], timeout=0.05)
    assert not done
    sleep.cancel()


async def test_what_was_done_since_the_last_sleep_counts() -> None:
    pace = AdaptivePolling(shortest=60, longest=60)
    pace._looked -= 60
    assert await slept(pace) < 30
    sleep = asyncio.create_task(slept(pace))
    done, _ = await asyncio.wait([sleep], timeout=0.05)
    assert not done
    sleep.cancel()


async def test_what_is_known_to_be_due_ends_the_sleep() -> None:
    pace = AdaptivePolling(shortest=60, longest=60)
    assert await slept(pace, 0.01) < 30
    assert await slept(pace, -5.0) < 30
