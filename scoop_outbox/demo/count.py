"""Counting in the services' own tables: while orders are handled, and the closing count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
Connections = Mapping[str, Connection]
"""Of each service, one to its database; services that share it may share the connection."""


# Only this module, and that of the databases, look into everybody's tables: a service never does.
_PROGRESS: Mapping[str, LiteralString] = {
    "orders": """
        select count(*) filter (where status in ('placed', 'confirmed')), count(*) filter (where status = 'completed'),
               count(*) filter (where status = 'cancelled')
        from demo_shop.orders
    """,
    "stock": """
        select 0, count(*) filter (where status = 'reserved'), count(*) filter (where status = 'released')
        from demo_shop.reservations
    """,
    "payments": """
        select count(*) filter (where status = 'open' and captured_cents = 0),
               count(*) filter (where status = 'open' and captured_cents > 0), count(*) filter (where status = 'void')
        from demo_shop.payments
    """,
    "shipping": """
        select count(*) filter (where status = 'packed'), count(*) filter (where status = 'handed over'),
               count(*) filter (where status = 'cancelled')
        from demo_shop.shipments
    """,
}
_ORDERS = "select id, status, units, total_cents from demo_shop.orders order by id"
# What another service knows of an order, by its id.
_BOOKS: Mapping[str, LiteralString] = {
    "stock": """
        select order_id, sum(quantity)::integer from demo_shop.reservations where status = 'reserved' group by order_id
    """,
    "payments": """
        select order_id, count(*) filter (where status = 'open'), sum(captured_cents)::integer
        from demo_shop.payments group by order_id
    """,
    "shipping": """
        select order_id, count(*) filter (where status <> 'cancelled'), count(*) filter (where status = 'handed over')
        from demo_shop.shipments group by order_id
    """,
}
_SHELF = """
    select i.sku, i.delivered, i.on_shelf, coalesce(sum(r.quantity) filter (where r.status = 'reserved'), 0)::integer
    from demo_shop.items i
    left join demo_shop.reservations r on r.sku = i.sku
    group by i.sku
    order by i.sku
"""


@dataclass(frozen=True, slots=True)
class Progress:
    """How much of its work a service has under way, done, and undone."""

    service: str
    open: int
    done: int
    undone: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The orders of one status: how many there are, and how many of them have what.

    Attributes:
        units: how many pieces are reserved for them.
        cents: how much has been collected for them.
    """

    status: str
    orders: int
    reserved: int
    units: int
    paid: int
    cents: int
    shipped: int


@dataclass(frozen=True, slots=True)
class ClosingCount:
    """What the tables say at the end.

    Attributes:
        problems: whatever does not add up, as sentences.
    """

    ended: tuple[Ended, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Books:
    """What all services together know of one order."""

    id: str
    status: str
    units: int
    total_cents: int
    reserved: int
    open_payments: int
    paid_cents: int
    open_shipments: int
    shipments: int


async def read_progress(connections: Connections) -> list[Progress]:
    """Return where each service stands."""
    return [
        Progress(service, *row)
        for service, query in _PROGRESS.items()
        for row in await _ask(connections[service], query)
    ]


async def read_handled(connections: Connections) -> set[str]:
    """Return the ids of all messages that services have taken in."""
    query: LiteralString = "select id::text from demo_shop.message"
    return {row[0] for one in set(connections.values()) for row in await _ask(one, query)}


async def read_closing_count(
    connections: Connections, committed: Collection[str], failed: Collection[str]
) -> ClosingCount:
    """Count, and compare.

    Args:
        connections: of each service, one to its database.
        committed: the orders whose saga has committed, as those who launched them were told.
        failed: the orders whose saga has failed.
    """
    known = {
        service: {row[0]: row[1:] for row in await _ask(connections[service], query)}
        for service, query in _BOOKS.items()
    }
    books = [
        _Books(
            *order,
            *known["stock"].get(order[0], (0,)),
            *known["payments"].get(order[0], (0, 0)),
            *known["shipping"].get(order[0], (0, 0)),
        )
        for order in await _ask(connections["orders"], _ORDERS)
    ]
    shelf = await _ask(connections["stock"], _SHELF)
    by_id = {book.id: book for book in books}
    problems = [f"order {name} was launched and is in no table" for name in sorted({*committed, *failed} - {*by_id})]
    for book in books:
        expected = "completed" if book.id in committed else "cancelled" if book.id in failed else "launched"
        if book.status != expected:
            problems.append(f"order {book.id} is {book.status}, but its launcher was told that it is {expected}")
        problems += [f"order {book.id} is {book.status}, but {problem}" for problem in _problems(book)]
    problems += [
        f"of {sku}, {delivered} were delivered, but {on_shelf} are on the shelf and {reserved} reserved"
        for sku, delivered, on_shelf, reserved in shelf
        if delivered != on_shelf + reserved
    ]
    counts = Counter(book.status for book in books)
    statuses = [*dict.fromkeys(("completed", "cancelled", *counts))]
    return ClosingCount(tuple(_sum(status, books) for status in statuses), tuple(problems))


async def _ask(connection: Connection, query: LiteralString) -> list[tuple[Any, ...]]:
    return await (await connection.execute(query)).fetchall()


def _problems(book: _Books) -> list[str]:
    """Return what one service says of an order that does not agree with what another says."""
    if book.status == "completed":
        checks = {
            f"{book.reserved} of its {book.units} pieces are reserved": book.reserved == book.units,
            f"{_euros(book.paid_cents)} of {_euros(book.total_cents)} are paid": book.paid_cents == book.total_cents,
            f"it has {book.shipments} shipments": book.shipments == book.open_shipments == 1,
        }
    else:
        checks = {
            f"{book.reserved} pieces are still reserved": book.reserved == 0,
            f"{_euros(book.paid_cents)} are not refunded": book.paid_cents == 0,
            f"{book.open_payments} payments are still open": book.open_payments == 0,
            f"{book.open_shipments} shipments are not cancelled": book.open_shipments == 0,
        }
    return [problem for problem, holds in checks.items() if not holds]


def _sum(status: str, books: list[_Books]) -> Ended:
    of_status = [book for book in books if book.status == status]
    return Ended(
        status,
        orders=len(of_status),
        reserved=sum(book.reserved > 0 for book in of_status),
        units=sum(book.reserved for book in of_status),
        paid=sum(book.paid_cents > 0 for book in of_status),
        cents=sum(book.paid_cents for book in of_status),
        shipped=sum(book.shipments > 0 for book in of_status),
    )


def _euros(cents: int) -> str:
    return f"EUR {cents // 100:,}.{cents % 100:02}"
