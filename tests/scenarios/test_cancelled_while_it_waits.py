"""Runs that wait for a retry, a lane, a slot or an operator, and are cancelled meanwhile."""

from typing import Any

import pytest

from scoop_outbox import Answer, GaveUp, Handle, Retry, RunState
from tests.scenarios.cancelling import FEELZ, cancelled_at, is_parked
from tests.scenarios.shop import LONG, Gate, Shop, launches, raises
from tests.waiting import until


async def test_a_run_that_waits_for_a_retry_gives_up_at_once(mixed: Shop) -> None:
    root = mixed.saga("root", "R", None)
    mixed.step(root, "1", raises("not yet"), retry=Retry(attempts=2, backoff=3600.0, max_backoff=3600.0))

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: mixed.journal.count("root-1"), LONG)
        await until(lambda: _has_failed(mixed, handle), LONG)
        assert await mixed.app.cancel(handle.id, **FEELZ) is Answer.ACCEPTED
        with pytest.raises(GaveUp):
            await handle.wait(LONG)

    assert mixed.journal == ["root-0", "root-1", "root-rb0"]


async def _has_failed(shop: Shop, handle: Handle) -> bool:
    return any(step.state == "failed" for step in (await shop.only(handle, "root")).steps)


async def test_a_run_that_waits_for_its_lane_gives_up_at_once(mixed: Shop) -> None:
    gate = Gate()
    root = mixed.app.saga("root", "R", ordered="key")
    mixed.step(root, "0", gate)

    async with mixed.running():
        first, second, third = [await mixed.app.launch("R", None, key="k") for _ in range(3)]
        await until(lambda: gate.entered, LONG)
        assert await mixed.app.cancel(second.id, **FEELZ) is Answer.ACCEPTED
        with pytest.raises(GaveUp):
            await second.wait(LONG)
        assert mixed.journal == ["root-0"]
        gate.open = True
        await first.wait(LONG)
        await third.wait(LONG)

    assert mixed.journal == ["root-0", "root-0"]


async def test_a_parked_run_gives_up(mixed: Shop) -> None:
    mixed.saga("root", "R", launches("C"))
    child = mixed.saga("child", "C", None)
    mixed.step(child, "1", raises(kind=MemoryError))

    async with mixed.running(max_interruptions=1):
        handle = await mixed.app.launch("R", None)
        await until(lambda: mixed.journal.count("child-1"), LONG)
        await until(lambda: is_parked(mixed, handle), LONG)
        assert await mixed.app.cancel(handle.id, **FEELZ) is Answer.ACCEPTED
        with pytest.raises(GaveUp):
            await handle.wait(LONG)

    assert mixed.journal == ["root-0", "child-0", "child-1", "child-rb0", "root-rb0"]


async def test_many_children_are_cancelled_those_that_run_and_those_that_wait(mixed: Shop) -> None:
    gate = Gate()

    def launches_many(scope: Any, _: Any) -> None:
        for number in range(100):
            scope.launch("C", number)

    mixed.saga("root", "R", launches_many)
    mixed.saga("child", "C", gate)

    async with mixed.running(slots=4):
        handle = await mixed.app.launch("R", None)
        await until(lambda: len(mixed.journal.entries) > 4, LONG)
        assert await mixed.app.cancel(handle.id, **FEELZ) is Answer.ACCEPTED
        gate.open = True  # there is no slot for the parent before
        with pytest.raises(GaveUp):
            await handle.wait(LONG)

    assert mixed.journal.count("child-0") < 50  # the parent does not wait until all mail before its own is seen to
    assert {run.state for run in await mixed.runs(handle)} == {RunState.ROLLED_BACK}


async def test_a_run_that_is_cancelled_while_it_is_parked_gives_up(mixed: Shop) -> None:
    gate = Gate()

    def dies(*_: object) -> Any:
        yield from gate()
        raise MemoryError

    mixed.saga("root", "R", launches("C"))
    child = mixed.app.saga("child", "C")
    mixed.step(child, "0")
    mixed.step(child, "1", dies)

    await cancelled_at(gate, mixed, told=True, max_interruptions=1)

    assert mixed.journal == ["root-0", "child-0", "child-1", "child-rb0", "root-rb0"]
