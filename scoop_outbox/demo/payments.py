"""Payments: charges cards, in two steps as card payments go. Plain SQL on an async psycopg connection."""

from __future__ import annotations

import uuid
from typing import Any

from scoop_outbox import AsyncScope, Message, Scoop
from scoop_outbox.demo.names import group, topic
from scoop_outbox.demo.tables import SCHEMA

app = Scoop("payments", schema=SCHEMA, group=group("payments"), start="earliest")


class CardDeclined(Exception):
    """The customer's bank does not pay."""


charge = app.saga("charge", on=topic("payments.charge"))


@charge.step
async def authorize(scope: AsyncScope, message: Message) -> None:
    """Have the bank set the amount aside."""
    # The bank is no part of our transaction: a crash between its answer and our commit has us ask again. It knows the
    # question by this key, which stays the same however often this step is tried.
    number = await ask_bank(message.payload["card"], scope.idempotency_key)
    await scope.connection.execute(
        """
        insert into demo_shop.payments (order_id, bank_number, authorized_cents, captured_cents, status)
        values (%(order_id)s, %(bank_number)s, %(amount_cents)s, 0, 'open')
        """,
        message.payload | {"bank_number": number},
    )


@authorize.compensate
async def void(scope: AsyncScope, message: Message, _error: Exception) -> None:
    """Give up what was set aside. Not called when `authorize` itself failed: then nothing was."""
    await scope.connection.execute(
        "update demo_shop.payments set status = 'void' where order_id = %(order_id)s", message.payload
    )


@charge.step
async def capture(scope: AsyncScope, message: Message) -> None:
    """Collect the amount."""
    await scope.connection.execute(
        "update demo_shop.payments set captured_cents = authorized_cents where order_id = %(order_id)s",
        message.payload,
    )


@capture.compensate
async def refund(scope: AsyncScope, message: Message, _error: Exception) -> None:
    """Pay the amount back. Each compensation undoes its own step only; `void` is called after this one."""
    await scope.connection.execute(
        "update demo_shop.payments set captured_cents = 0 where order_id = %(order_id)s", message.payload
    )


async def ask_bank(card: dict[str, Any], idempotency_key: str) -> str:
    """Stand in for a bank, which would be asked over the network.

    Returns:
        The number of the authorization: to the same key, always the same one.

    Raises:
        CardDeclined: the card is one of those that exist to test this.
    """
    reasons = {"0002": "no reason given", "9995": "insufficient funds", "0069": "the card has expired"}
    if card["last4"] in reasons:
        # Not the card's number: the text of an exception ends up in logs.
        raise CardDeclined(f"the bank has declined the card: {reasons[card['last4']]}")
    return str(uuid.uuid5(uuid.NAMESPACE_URL, idempotency_key))
