"""Typed topics from the launch to the step: what was launched, or a failure in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from scoop_outbox import DistributedError, Message, RunState, Scope, Topic
from tests.scenarios.conftest import MakeShop
from tests.scenarios.shop import LONG


@dataclass(frozen=True)
class Line:
    sku: str
    price: Decimal


@dataclass(frozen=True)
class Order:
    number: int
    at: datetime
    lines: list[Line] = field(default_factory=list)


ORDERS = Topic("orders", Order)
ORDER = Order(1, datetime(2026, 11, 29, tzinfo=UTC), [Line("tea", Decimal("1.50"))])


def told(seen: list[object], *, coroutines: bool) -> Callable[..., Any]:
    async def step(scope: object, message: Message) -> None:
        seen.append(message.payload)

    def blocking_step(scope: object, message: Message) -> None:
        seen.append(message.payload)

    return step if coroutines else blocking_step


@pytest.mark.parametrize("coroutines", [True, False])
async def test_bug_11_nested_classes_arrive_as_they_were_launched(make_shop: MakeShop, coroutines: bool) -> None:
    app = make_shop("shop").app
    seen: list[object] = []

    def launch(scope: Scope, message: Message) -> None:
        scope.launch(ORDERS, ORDER)

    app.saga("first", on="start").add_step("launch", launch)
    app.saga("second", on=ORDERS).add_step("see", told(seen, coroutines=coroutines))
    async with app.running():
        await (await app.launch("start", None)).wait(LONG)
        await (await app.launch(ORDERS, ORDER)).wait(LONG)
    assert seen == [ORDER, ORDER]


async def test_a_message_that_does_not_fit_fails_its_run_with_the_fields_and_without_values(
    make_shop: MakeShop,
) -> None:
    app = make_shop("shop").app
    seen: list[object] = []
    app.saga("only", on=ORDERS).add_step("see", told(seen, coroutines=True))
    async with app.running():
        # As a version of the launcher would that knows another type.
        handle = await app.launch("orders", {"number": "s3cret", "at": "s3cret", "lines": []})
        with pytest.raises(DistributedError) as failed:
            await handle.wait(LONG)
        (run,) = (await app.status(handle.id)).runs
    assert (run.state, seen) == (RunState.ROLLED_BACK, [])
    assert "does not fit Order: number: Input should be a valid integer; at: " in str(failed.value)
    assert run.failure is not None
    assert "s3cret" not in run.failure.dumps()
