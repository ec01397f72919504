"""Orders: accepts an order and sees it through.

The saga `place-order` reads from top to bottom like a function that calls the other services. That is what it may be
read as: a step does not start before every handler of every message launched by the step above it has finished, in
whatever service, and everything that those launched too.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from scoop_outbox import AsyncScope, BlockingScope, Handle, Message, Scoop
from scoop_outbox.demo.names import group, topic
from scoop_outbox.demo.tables import SCHEMA, Mail, Order

# The URLs of database and broker come from the environment: SCOOP_OUTBOX_DATABASE and SCOOP_OUTBOX_BROKER.
app = Scoop("orders", schema=SCHEMA, group=group("orders"), start="earliest")


async def place(session: AsyncSession, order: dict[str, Any]) -> Handle:
    """Accept an order: what the shop's website calls."""
    session.add(
        Order(
            id=order["id"],
            customer=order["customer"]["name"],
            units=sum(item["quantity"] for item in order["items"]),
            total_cents=_total(order),
            status="placed",
        )
    )
    # In the transaction that writes the order: there will never be the one without the other.
    return await app.launch(topic("orders.place"), order, key=order["id"], session=session)


place_order = app.saga("place-order", on=topic("orders.place"))


@place_order.step
async def reserve_stock(scope: AsyncScope, message: Message) -> None:
    """Confirm the order, and have each of its items reserved; all of them at the same time."""
    order = message.payload
    await _set_status(scope, order, "confirmed")
    for item in order["items"]:
        wanted = {"order_id": order["id"], "sku": item["sku"], "quantity": item["quantity"]}
        # Nothing is sent here. The messages are written with the step: if it fails, nobody ever hears of them.
        scope.launch(topic("stock.reserve"), wanted)


@reserve_stock.compensate
async def cancel_order(scope: AsyncScope, message: Message, _error: Exception) -> None:
    """Cancel the order. By now everything that came after has been undone, in the other services too."""
    await _set_status(scope, message.payload, "cancelled")


@place_order.step
async def take_payment(scope: AsyncScope, message: Message) -> None:
    """Have the card charged: every item has been reserved, or we would not be here."""
    order = message.payload
    # A service is told what it needs to know, and no more.
    charge = {"order_id": order["id"], "card": order["card"], "amount_cents": _total(order)}
    scope.launch(topic("payments.charge"), charge)


@place_order.step
async def ship(scope: AsyncScope, message: Message) -> None:
    """Have the parcel sent: it has been paid for.

    If that fails, the payment is refunded and the stock released before `cancel_order` is called. Nothing here says
    so: these services know how to undo what they did.
    """
    order = message.payload
    address = order["address"]
    scope.launch(topic("shipping.ship"), {"order_id": order["id"], "customer": order["customer"], "address": address})


@place_order.step
async def complete_order(scope: AsyncScope, message: Message) -> None:
    """Close the order: the parcel is on its way."""
    await _set_status(scope, message.payload, "completed")


async def _set_status(scope: AsyncScope, order: dict[str, Any], status: str) -> None:
    # `scope.session` is in the step's transaction. It commits, or vanishes, with the step.
    (await scope.session.get_one(Order, order["id"])).status = status


def _total(order: dict[str, Any]) -> int:
    return sum(int(item["quantity"] * item["price_cents"]) for item in order["items"])


notify_customer = app.saga("notify-customer", on=topic("customers.notify"))


@notify_customer.step
def send_mail(scope: BlockingScope, message: Message) -> None:
    """Tell the customer. A plain `def`: it runs in a thread and has a blocking session."""
    scope.session.add(Mail(order_id=message.payload["order_id"], subject=message.payload["subject"]))


@send_mail.compensate
def send_correction(scope: BlockingScope, message: Message, _error: Exception) -> None:
    """Tell the customer that it was not so: what undoes a mail is another mail."""
    scope.session.add(Mail(order_id=message.payload["order_id"], subject="We are sorry: your order is cancelled"))
