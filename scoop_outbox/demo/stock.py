"""Stock: reserves items. Plain SQL on a psycopg connection, in plain functions."""

from __future__ import annotations

from scoop_outbox import BlockingScope, Message, Scoop
from scoop_outbox.demo.names import group, topic
from scoop_outbox.demo.tables import SCHEMA

app = Scoop("stock", schema=SCHEMA, group=group("stock"), start="earliest")


class OutOfStock(Exception):
    """There are fewer items on the shelf than were ordered."""


reserve = app.saga("reserve", on=topic("stock.reserve"))


@reserve.step
def take_from_shelf(scope: BlockingScope, message: Message) -> None:
    """Take items from the shelf for an order."""
    wanted = message.payload
    # Looking and taking are one statement, so two orders cannot take the same item. `scope.connection` is in the
    # step's transaction: there is nothing to commit here, and nothing to undo when we raise.
    taken = scope.connection.execute(
        """
        update demo_shop.items
        set on_shelf = on_shelf - %(quantity)s
        where sku = %(sku)s and on_shelf >= %(quantity)s
        """,
        wanted,
    )
    if taken.rowcount == 0:
        # An ordinary exception. It rolls back this saga, then the one that launched the message, and so on up.
        raise OutOfStock(f"fewer than {wanted['quantity']} of {wanted['sku']} are left")
    scope.connection.execute(
        """
        insert into demo_shop.reservations (order_id, sku, quantity, status)
        values (%(order_id)s, %(sku)s, %(quantity)s, 'reserved')
        """,
        wanted,
    )


@take_from_shelf.compensate
def put_back(scope: BlockingScope, message: Message, _error: Exception) -> None:
    """Put the items back."""
    scope.connection.execute(
        "update demo_shop.items set on_shelf = on_shelf + %(quantity)s where sku = %(sku)s", message.payload
    )
    scope.connection.execute(
        "update demo_shop.reservations set status = 'released' where order_id = %(order_id)s and sku = %(sku)s",
        message.payload,
    )
