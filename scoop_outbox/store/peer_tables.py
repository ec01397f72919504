"""The tables of cooperation with other homes; see `schema` for how they belong together.

A run lives in one home for ever; a parent and its child may live in different ones. The parent's home holds a row of
`child`, as it does for its own, that says in which home the child is. The child's home holds a row of `foreign_child`,
which says where news of the run is to go. What is said goes through the outbox: docs/protocol.md.
"""

from __future__ import annotations

from sqlalchemy import ARRAY, BigInteger, Boolean, Column, Index, Integer, Interval, MetaData, Table, Text, Uuid, text

from scoop_outbox.store.run_tables import time_column


def peer_tables(metadata: MetaData) -> None:
    """Declare the tables of other homes."""
    # Another home that has been heard of: where it is told something, which revision of its subscriptions is known
    # here, and which revision of ours it has confirmed. How much later it was by our clock, when what it said had been
    # taken in, than by its clock when it was written: what is on its way is late, and clocks differ.
    Table(
        "peer",
        metadata,
        Column("id", Uuid, primary_key=True),
        Column("name", Text, nullable=False),
        Column("reply_to", Text, nullable=False),
        Column("revision", BigInteger, nullable=False, server_default=text("0")),
        Column("confirmed", BigInteger, nullable=False, server_default=text("0")),
        time_column("heard_at", nullable=False, default=True),
        Column("lag", Interval),
        # Whether it is being drained, and for how many children here it has said last that it waits, and messages are
        # on their way, up to a thousand each.
        Column("draining", Boolean, nullable=False, server_default=text("false")),
        Column("waiting", Integer),
        # Transactions that were open when it was first asked, behind that, who waits for it: they may launch for it.
        Column("launching", ARRAY(Text)),
    )

    # Who listens in other homes, as they have said it. As `subscription` is for this home.
    Table(
        "peer_subscription",
        metadata,
        Column("home", Uuid, primary_key=True),
        Column("topic", Text, primary_key=True),
        Column("service", Text, primary_key=True),
        Column("saga", Text, primary_key=True),
        Column("pattern", Text),
        Column("names", ARRAY(Text), nullable=False, server_default=text("'{}'")),
        Column("formerly", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    )

    # A run here, or one that is never to be, which another home waits for. The generation grows with each report. One
    # that was cancelled before its message came starts nothing when it does. Whoever takes the message in and whoever
    # cancels write this row first: one of them finds the other's.
    foreign_child = Table(
        "foreign_child",
        metadata,
        Column("message_id", Uuid, primary_key=True),
        Column("service", Text, primary_key=True),
        Column("saga", Text, primary_key=True),
        Column("run_id", Uuid, nullable=False),
        Column("home", Uuid, nullable=False),
        Column("generation", Integer, nullable=False, server_default=text("1")),
        Column("cancelled", Boolean, nullable=False, server_default=text("false")),
        time_column("created_at", nullable=False, default=True),
    )
    Index("foreign_child_cancelled", foreign_child.c.created_at, postgresql_where=foreign_child.c.cancelled)
