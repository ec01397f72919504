"""The services' own tables.

Each service writes only its own. They are in one module, and in schemas of one name, so that the demonstration can make
them anew and count what is in them at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import psycopg
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from scoop_outbox.demo import names
from scoop_outbox.errors import DatabaseError
from scoop_outbox.store import migrate
from scoop_outbox.store.connect import blocking_engine

SCHEMA = "demo_shop"
"""The schema of everything: a database of yours that is lent to the demonstration keeps its own tables."""

STOCK = {
    "KETTLE-STEEL": 150,
    "LAMP-BRASS": 6,  # fewer than are ordered
    "MUG-BLUE": 150,
    "MUG-WHITE": 150,
    "SPOON-SET-6": 150,
    "TEA-ASSAM-250": 150,
    "TEA-SENCHA-100": 150,
    "TEAPOT-IRON": 150,
    "TRAY-OAK": 150,
}

_OURS = "made by scoop-outbox demo"
# Arbitrary, but the same in every process: who holds it is the only demonstration in a database.
_LOCK = 0x5C00_DE30


class Base(DeclarativeBase):
    """The tables, in their schema."""

    metadata = sa.MetaData(schema=SCHEMA)


class Order(Base):
    """An order, as `orders` knows it: placed, confirmed, completed or cancelled."""

    __tablename__ = "orders"

    id: Mapped[str] = mapped_column(primary_key=True)
    customer: Mapped[str]
    units: Mapped[int]
    total_cents: Mapped[int]
    status: Mapped[str]


class Mail(Base):
    """A mail to a customer; belongs to `orders`."""

    __tablename__ = "mails"

    id: Mapped[int] = mapped_column(sa.Identity(), primary_key=True)
    order_id: Mapped[str]
    subject: Mapped[str]


class Item(Base):
    """What `stock` has on its shelf, and how much was delivered to it."""

    __tablename__ = "items"

    sku: Mapped[str] = mapped_column(primary_key=True)
    delivered: Mapped[int]
    on_shelf: Mapped[int] = mapped_column(sa.CheckConstraint("on_shelf >= 0"))


class Reservation(Base):
    """What `stock` has taken from the shelf for an order: reserved or released."""

    __tablename__ = "reservations"

    order_id: Mapped[str] = mapped_column(primary_key=True)
    sku: Mapped[str] = mapped_column(primary_key=True)
    quantity: Mapped[int]
    status: Mapped[str]


class Payment(Base):
    """What `payments` has authorized and captured for an order: open or void."""

    __tablename__ = "payments"

    order_id: Mapped[str] = mapped_column(primary_key=True)
    bank_number: Mapped[str]
    authorized_cents: Mapped[int]
    captured_cents: Mapped[int]
    status: Mapped[str]


class Shipment(Base):
    """A parcel of `shipping`: packed, handed over or cancelled."""

    __tablename__ = "shipments"

    order_id: Mapped[str] = mapped_column(primary_key=True)
    tracking: Mapped[str | None]
    status: Mapped[str]


OWN: Mapping[str, tuple[type[Base], ...]] = MappingProxyType(
    {"orders": (Order, Mail), "stock": (Item, Reservation), "payments": (Payment,), "shipping": (Shipment,)}
)
"""The services, and which tables are whose."""


def create(url: str, service: str | None = None) -> None:
    """Make the schema anew, with the tables of scoop_outbox and of the services, and fill the shelves.

    Args:
        url: the database.
        service: whose tables; None is those of all of them. A service that has a database of its own is a home that
            other homes know, under topics that are called as all of this demonstration's are.

    Raises:
        DatabaseError: somebody else's schema has this name, or the database cannot be used.
    """
    owners = OWN if service is None else {service: OWN[service]}
    theirs = [Base.metadata.tables[f"{SCHEMA}.{one.__tablename__}"] for own in owners.values() for one in own]
    engine = blocking_engine(url)
    try:
        with engine.begin() as connection:
            found = connection.execute(
                sa.text("select obj_description(oid, 'pg_namespace') from pg_namespace where nspname = :schema"),
                {"schema": SCHEMA},
            ).first()
            if found is not None and found[0] != _OURS:
                raise DatabaseError(
                    f"the database has a schema {SCHEMA!r} that the demonstration did not make: use another database"
                )
            connection.execute(sa.schema.DropSchema(SCHEMA, cascade=True, if_exists=True))
            connection.execute(sa.schema.CreateSchema(SCHEMA))
            connection.execute(sa.text(f"comment on schema {SCHEMA} is '{_OURS}'"))
        migrate.migrate(url, SCHEMA)
        with engine.begin() as connection:
            Base.metadata.create_all(connection, theirs)
            if "stock" in owners:
                shelf = [{"sku": sku, "delivered": n, "on_shelf": n} for sku, n in STOCK.items()]
                connection.execute(sa.insert(Item), shelf)
            if service is not None:
                connection.execute(
                    sa.text(f"update {SCHEMA}.home set prefix = :prefix"),  # noqa: S608 - a constant
                    {"prefix": names.topic("")},
                )
    finally:
        engine.dispose()


async def claim(connection: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
    """Keep other demonstrations out of the database for as long as the connection lasts.

    Raises:
        DatabaseError: one is there already.
    """
    cursor = await connection.execute("select pg_try_advisory_lock(%s)", [_LOCK])
    if await cursor.fetchone() != (True,):
        raise DatabaseError("another demonstration is using this database: let it end, or use another database")
