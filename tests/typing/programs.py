"""What users may write, in every way: type checkers have nothing to say of it."""

import asyncio
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, assert_type

from pydantic import BaseModel
from typing_extensions import TypedDict

from scoop_outbox import (
    AsyncScope,
    BlockingScope,
    ChildRolledBack,
    DistributedError,
    Draft,
    GoTo,
    Message,
    Repeat,
    Retry,
    Saga,
    Scoop,
    Scope,
    Step,
    Topic,
)


@dataclass(frozen=True)
class Order:
    sku: str
    quantity: int


class Refund(BaseModel):
    reason: str


class Address(TypedDict):
    city: str


ORDERS = Topic("orders", Order)
REFUNDS = Topic("refunds", Refund, require_handlers=True)
ADDRESSES = Topic("addresses", Address)
LISTS = Topic("lists", list[Order])
EITHER: Topic[Order | Refund] = Topic("either", Order | Refund)
UNKNOWN: Topic = Topic("unknown", Order | Refund)

app = Scoop("shop")
orders = app.saga("orders", on=ORDERS, ordered="key")
plain = app.saga("plain", on="plain")
either = app.saga("either", on=EITHER)
kept: Saga = app.saga("kept", on="kept")

assert_type(ORDERS, Topic[Order])
assert_type(LISTS, Topic[list[Order]])
assert_type(orders, Saga[Order])
assert_type(plain, Saga[Any])


@orders.step
async def reserve(scope: AsyncScope, message: Message[Order]) -> None:
    assert_type(message.payload, Order)
    await scope.connection.execute("select 1")
    scope.launch(REFUNDS, Refund(reason=message.payload.sku), key=b"key", context={"a": 1})
    scope.launch(ADDRESSES, Address(city="Berlin"))
    scope.launch(LISTS, [message.payload])
    scope.launch(LISTS, [])
    scope.launch(EITHER, Refund(reason="late"))
    scope.launch(UNKNOWN, message.payload)
    scope.launch("anything", {"n": [1, None, "two"]}, handled_by=[orders, "plain"])
    scope.launch_on_global_scope(ORDERS, message.payload)


@reserve.compensate
async def release(scope: AsyncScope, message: Message[Order], error: Exception) -> None: ...


@reserve.on_child_failure
def lenient(scope: Scope, message: Message, error: DistributedError) -> GoTo | None:
    return GoTo(pay) if isinstance(error, ChildRolledBack) else None


@reserve.on_child_rollback_failure
def report(scope: BlockingScope, message: Message[Order], error: BaseException) -> None: ...


@orders.step("pay", retry=Retry(attempts=3))
def pay(scope: BlockingScope, message: Message[Order]) -> Repeat | GoTo | None:
    scope.session.get(Order, 1)
    return Repeat() if message.payload.quantity else GoTo("reserve")


@orders.step()
async def for_both(scope: Scope, message: Message[Order | Refund]) -> None: ...


@plain.step
async def anything(scope: Scope, message: Message) -> None:
    assert_type(message, Message[Any])
    print(message.payload["whatever"].it.holds)


@plain.step
def with_a_promise(scope: Scope, message: Message[Order]) -> None: ...


@either.step
def one_of_two(scope: BlockingScope, message: Message[Order | Refund]) -> None:
    match message.payload:
        case Order(sku=sku):
            print(sku)
        case Refund():
            print(message.payload.reason)


async def with_more(scope: AsyncScope, message: Message[Order], more: int) -> None: ...


class Handlers:
    async def __call__(self, scope: AsyncScope, message: Message[Order]) -> Repeat:
        return Repeat()

    def undo(self, scope: BlockingScope, message: Message[Order], error: DistributedError) -> None: ...


orders.add_step("partial", functools.partial(with_more, more=1))
orders.add_step("object", Handlers(), compensate=Handlers().undo, on_child_failure=lenient)
orders.add_step("lambda", lambda scope, message: None, compensate=lambda scope, message, error: None)
plain.add_step("any of them", lambda *_: None)
first: Step = orders.add_step("first", reserve.invoke)
second: Step[Order] = orders.add_step("second", reserve.invoke)


def drafts() -> Iterator[Draft]:
    yield Draft(ORDERS, Order("a", 1))
    yield Draft("plain", None, key="k")


async def launch() -> None:
    handle = await app.launch(ORDERS, Order("a", 1), key="k")
    await handle.wait(10)
    await app.launch("plain", 1, detached=True)
    await app.launch_many([Draft(ORDERS, Order("a", 1)), Draft("plain", [1]), Draft(LISTS, [])])
    await app.launch_many(drafts())
    await asyncio.gather(*(app.launch(ORDERS, Order("a", number)) for number in range(3)))
    await asyncio.to_thread(app.launch_sync, ORDERS, Order("a", 1))
    assert_type(await app.message(handle.id), Message[Any])


def launch_blocking() -> None:
    app.launch_sync(ADDRESSES, Address(city="Berlin"))
    app.launch_many_sync(Draft(LISTS, [Order("a", number)]) for number in range(3))


async def test_a_step_by_itself(scope: AsyncScope, message: Message[Order]) -> None:
    assert_type(await reserve(scope, message), None)
    assert_type(await release(scope, message, error=ValueError("what happened")), None)
    assert_type(lenient(scope=scope, message=message, error=DistributedError.__new__(DistributedError)), GoTo | None)
