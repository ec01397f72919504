"""Shipping: packs parcels, labels them and hands them over. SQLAlchemy sessions, in both colours."""

from __future__ import annotations

from scoop_outbox import AsyncScope, BlockingScope, Message, Scoop
from scoop_outbox.demo.names import group, topic
from scoop_outbox.demo.tables import SCHEMA, Shipment

app = Scoop("shipping", schema=SCHEMA, group=group("shipping"), start="earliest")

CARRIERS = {
    "Alpenpost": {"AT", "CH", "DE", "IT"},
    "Nordfracht": {"BE", "DK", "NL", "PL"},
    "Sudexpress": {"ES", "FR"},
}


class CannotDeliver(Exception):
    """No carrier goes where the customer lives."""


ship = app.saga("ship", on=topic("shipping.ship"))


@ship.step
def pack(scope: BlockingScope, message: Message) -> None:
    """Pack the parcel; have it labelled, and the customer told, at the same time."""
    order_id = message.payload["order_id"]
    scope.session.add(Shipment(order_id=order_id, status="packed"))
    scope.launch(topic("shipping.label"), {"order_id": order_id, "address": message.payload["address"]})
    # Who handles this is not our business. It happens to be `orders`, the service that launched us.
    scope.launch(topic("customers.notify"), {"order_id": order_id, "subject": "Your parcel is packed"})


@pack.compensate
def unpack(scope: BlockingScope, message: Message, _error: Exception) -> None:
    """Unpack the parcel. The customer has been told before: what a step launched is undone before the step is."""
    scope.session.get_one(Shipment, message.payload["order_id"]).status = "cancelled"


@ship.step
def hand_over(scope: BlockingScope, message: Message) -> None:
    """Hand the labelled parcel to its carrier."""
    shipment = scope.session.get_one(Shipment, message.payload["order_id"])
    # What handlers of our messages have left for us with `set_result`.
    (shipment.tracking,) = (result.value for result in scope.results if result.saga == print_label.name)
    shipment.status = "handed over"


print_label = app.saga("print-label", on=topic("shipping.label"))


@print_label.step
async def choose_carrier(scope: AsyncScope, message: Message) -> None:
    """Find a carrier, and number the parcel for it."""
    country = message.payload["address"]["country"]
    carrier = next((name for name, countries in CARRIERS.items() if country in countries), None)
    if carrier is None:
        raise CannotDeliver(f"no carrier delivers to {country}")
    scope.set_result(f"{carrier} {message.payload['order_id']}")
