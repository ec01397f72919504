"""Three services whose sagas write down what they do, for processes that are killed while they do it.

Each execution of a callback inserts one row into `effect`, which has no constraint: what is done twice shows up twice.
Everything that goes wrong on purpose is decided by the payload's `n`, so that the end of every run is known.
"""

from __future__ import annotations

import asyncio
import os
import time

from sqlalchemy import text

from scoop_outbox import AsyncScope, BlockingScope, Message, Scoop
from scoop_outbox.scope import Scope

EFFECT_TABLE = """
create table effect (
    id bigint generated always as identity primary key,
    run_id uuid not null, saga text not null, step text not null, kind text not null, key text not null,
    pid int not null
)
"""
_INSERT = "insert into effect (run_id, saga, step, kind, key, pid) values "
_RAW = _INSERT + "(%s, %s, %s, %s, %s, %s)"
_BOUND = _INSERT + "(:run, :saga, :step, :kind, :key, :pid)"

PREFIX = os.environ.get("SCOOP_TEST_PREFIX", "")
"""What topics and groups begin with, on a broker that others use too."""


def service(name: str) -> Scoop:
    return Scoop(f"crash {name}", group=f"{PREFIX}crash {name}", start="earliest")


orders = service("orders")
stock = service("stock")
billing = service("billing")
SERVICES = {"orders": orders, "stock": stock, "billing": billing}


class Refusal(Exception):
    """What the payload asked for."""


def _row(scope: Scope, kind: str) -> tuple[object, ...]:
    return (scope.run_id, scope.saga, scope.step, kind, scope.idempotency_key, os.getpid())


async def note(scope: AsyncScope, kind: str) -> None:
    """Write an effect through the session, and linger over it so that a kill can hit it."""
    columns = ("run", "saga", "step", "kind", "key", "pid")
    await scope.session.execute(text(_BOUND), dict(zip(columns, _row(scope, kind), strict=True)))
    await asyncio.sleep(0.002)


def note_blocking(scope: BlockingScope, kind: str) -> None:
    """Write an effect through the connection, and linger over it so that a kill can hit it."""
    scope.connection.execute(_RAW, _row(scope, kind))
    time.sleep(0.002)


def fails_in_grandchild(n: int) -> bool:
    """Tell whether the ledger refuses: its failure reaches the order through the bill."""
    return n % 5 == 0


def is_handled(n: int) -> bool:
    """Tell whether the order shrugs off the failure of its bill."""
    return n % 10 == 0


def fails_in_last_step(n: int) -> bool:
    """Tell whether the order itself refuses at its end, when everything below it has committed."""
    return n % 7 == 0


def writes_undone_on_purpose(n: int) -> int:
    """Return how many effects of the order with this number are undone by a callback that raises."""
    unpaid, handled = fails_in_grandchild(n), is_handled(n)
    in_last_step = fails_in_last_step(n) and (handled or not unpaid)
    return unpaid + (unpaid and not handled) + in_last_step


def expected_ends(n: int) -> dict[str, str]:
    """Return how each saga ends for the order with this number."""
    unpaid = fails_in_grandchild(n)
    back = fails_in_last_step(n) or (unpaid and not is_handled(n))
    return {
        "order": "rolled_back" if back else "committed",
        "reserve": "rolled_back" if back else "committed",
        "bill": "rolled_back" if back or unpaid else "committed",
        "book": "rolled_back" if back or unpaid else "committed",
    }


order = orders.saga("order", on=PREFIX + "order.placed")


@order.step
async def accept(scope: AsyncScope, message: Message) -> None:
    await note(scope, "step")


@accept.compensate
def reject(scope: BlockingScope, message: Message, error: Exception) -> None:
    note_blocking(scope, "compensation")


@order.step
def request(scope: BlockingScope, message: Message) -> None:
    note_blocking(scope, "step")
    scope.launch(PREFIX + "stock.requested", message.payload, key=str(message.payload["n"] % 8))
    scope.launch(PREFIX + "bill.requested", message.payload)


@request.compensate
async def withdraw(scope: AsyncScope, message: Message, error: Exception) -> None:
    await note(scope, "compensation")


@request.on_child_failure
async def shrug(scope: AsyncScope, message: Message, error: Exception) -> None:
    await note(scope, "child_failure_handler")
    if not is_handled(message.payload["n"]):
        raise error


@order.step
async def confirm(scope: AsyncScope, message: Message) -> None:
    await note(scope, "step")
    if fails_in_last_step(message.payload["n"]):
        raise Refusal("the order cannot be confirmed")


@confirm.compensate
async def revoke(scope: AsyncScope, message: Message, error: Exception) -> None:
    await note(scope, "compensation")


reserve = stock.saga("reserve", on=PREFIX + "stock.requested")


@reserve.step
def pick(scope: BlockingScope, message: Message) -> None:
    note_blocking(scope, "step")


@pick.compensate
def put_back(scope: BlockingScope, message: Message, error: Exception) -> None:
    note_blocking(scope, "compensation")


@reserve.step
async def pack(scope: AsyncScope, message: Message) -> None:
    await note(scope, "step")


@pack.compensate
async def unpack(scope: AsyncScope, message: Message, error: Exception) -> None:
    await note(scope, "compensation")


bill = billing.saga("bill", on=PREFIX + "bill.requested")


@bill.step
async def invoice(scope: AsyncScope, message: Message) -> None:
    await note(scope, "step")
    scope.launch(PREFIX + "ledger.entry", message.payload)


@invoice.compensate
async def void(scope: AsyncScope, message: Message, error: Exception) -> None:
    await note(scope, "compensation")


book = stock.saga("book", on=PREFIX + "ledger.entry")


@book.step
async def open_entry(scope: AsyncScope, message: Message) -> None:
    await note(scope, "step")


@open_entry.compensate
async def strike_out(scope: AsyncScope, message: Message, error: Exception) -> None:
    await note(scope, "compensation")


@book.step
def close_entry(scope: BlockingScope, message: Message) -> None:
    note_blocking(scope, "step")
    if fails_in_grandchild(message.payload["n"]):
        raise Refusal("the ledger is closed")


@close_entry.compensate
def reopen(scope: BlockingScope, message: Message, error: Exception) -> None:
    note_blocking(scope, "compensation")
