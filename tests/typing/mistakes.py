"""Mistakes that type checkers report, each at its line, and nothing else."""

from dataclasses import dataclass
from typing import TypedDict

from pydantic import BaseModel

from scoop_outbox import Answer, AsyncScope, BlockingScope, Draft, GoTo, Message, RunStatus, Scoop, Scope, Topic


@dataclass(frozen=True)
class Order:
    sku: str


class Refund(BaseModel):
    reason: str


class Address(TypedDict):
    city: str


ORDERS = Topic("orders", Order)
REFUNDS = Topic("refunds", Refund)
ADDRESSES = Topic("addresses", Address)
LISTS = Topic("lists", list[Order])
EITHER: Topic[Order | Refund] = Topic("either", Order | Refund)

app = Scoop("shop")
orders = app.saga("orders", on=ORDERS)


@orders.step
async def launches(scope: AsyncScope, message: Message[Order]) -> None:
    scope.launch(ORDERS, Refund(reason="late"))  # error: mypy, pyright
    scope.launch(REFUNDS, {"reason": "late"})  # error: mypy, pyright
    scope.launch(ADDRESSES, {"city": 1})  # error: mypy, pyright
    scope.launch(LISTS, [Refund(reason="late")])  # error: mypy, pyright
    scope.launch(EITHER, "late")  # error: mypy, pyright
    scope.launch(ORDERS, message)  # error: mypy, pyright
    scope.launch(ORDERS, message.payload, key=7)  # error: mypy, pyright
    scope.launch_on_global_scope(REFUNDS, message.payload)  # error: mypy, pyright
    print(message.payload.price)  # error: mypy, pyright
    scope.session.query(Order)  # error: mypy, pyright


async def launch() -> None:
    await app.launch(ORDERS, Refund(reason="late"))  # error: mypy, pyright
    await app.launch(ORDERS, Order("a"), key=7)  # error: mypy, pyright
    await app.launch_many([Draft(ORDERS, Refund(reason="late"))])  # error: mypy, pyright
    await app.launch_many([Draft("plain", 1), Draft(ORDERS, 1)])  # error: mypy, pyright
    await app.launch_many(Draft(ORDERS, number) for number in range(3))  # error: mypy, pyright
    await app.launch_many([Order("a")])  # error: mypy, pyright


def launch_blocking() -> None:
    app.launch_sync(ORDERS, Refund(reason="late"))  # error: mypy, pyright
    app.launch_many_sync([Draft(LISTS, Order("a"))])  # error: mypy, pyright


@app.on_stuck  # error: mypy, pyright
def looks_at_another_value(run: RunStatus) -> None: ...


@orders.step  # error: mypy, pyright
def blocking_with_an_async_scope(scope: AsyncScope, message: Message[Order]) -> None: ...


@orders.step  # error: mypy, pyright
async def async_with_a_blocking_scope(scope: BlockingScope, message: Message[Order]) -> None: ...


@orders.step  # error: mypy, pyright
def of_another_topic(scope: Scope, message: Message[Refund]) -> None: ...


@orders.step("named")  # error: mypy, pyright
async def of_another_topic_too(scope: Scope, message: Message[Refund]) -> None: ...


@orders.step  # error: mypy, pyright
def takes_the_payload(scope: Scope, message: Order) -> None: ...


@orders.step  # error: mypy, pyright
async def takes_no_message(scope: AsyncScope) -> None: ...


@orders.step  # error: mypy, pyright
def returns_a_number(scope: Scope, message: Message[Order]) -> int:
    return 1


@orders.step("named", compensate_retry=None)  # error: mypy, pyright
async def is_tried_by_nothing(scope: AsyncScope, message: Message[Order]) -> None: ...


@orders.step()  # error: mypy, pyright
async def returns_text(scope: AsyncScope, message: Message[Order]) -> str:
    return "launches"


@orders.compensate  # error: mypy, pyright
def of_a_saga(scope: Scope, message: Message[Order], error: Exception) -> None: ...


@launches.compensate  # error: mypy, pyright
def without_an_error(scope: Scope, message: Message[Order]) -> None: ...


@launches.compensate  # error: mypy, pyright
async def undoes_another_topic(scope: AsyncScope, message: Message[Refund], error: Exception) -> None: ...


@launches.compensate  # error: mypy, pyright
def goes_elsewhere(scope: Scope, message: Message[Order], error: Exception) -> GoTo:
    return GoTo("launches")


@launches.on_child_failure  # error: mypy, pyright
def expects_another_error(scope: Scope, message: Message[Order], error: ValueError) -> None: ...


@launches.on_child_failure  # error: mypy, pyright
def answers(scope: Scope, message: Message[Order], error: Exception) -> bool:
    return True


@launches.on_child_rollback_failure  # error: mypy, pyright
def in_the_wrong_colour(scope: AsyncScope, message: Message[Order], error: Exception) -> None: ...


def undo(scope: Scope, message: Message[Refund], error: Exception) -> None: ...


orders.add_step("undone", launches.invoke, compensate=undo)  # error: mypy, pyright
orders.add_step("called", undo)  # error: mypy, pyright
app.saga("none", on=Order)  # error: mypy, pyright
GoTo(undo)  # error: mypy, pyright


async def test_a_step(scope: AsyncScope, message: Message[Refund]) -> None:
    await launches(scope, message)  # error: mypy, pyright


async def asks(run: RunStatus) -> bool:
    return await app.rollback(run.id) is Answer.ACCEPTED  # error: mypy
