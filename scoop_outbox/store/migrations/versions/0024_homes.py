"""Cooperation across homes: who else there is, who listens there, and which runs belong to parents that live there.

Revision 0024.
"""

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP

revision = "0024"
down_revision = "0023"
locks = ("home", "outbox", "run", "child")


def upgrade() -> None:
    """Add columns and tables; no row is touched, but for the one of `home`."""
    schema = context.config.attributes["schema"]
    for column in (
        sa.Column("name", sa.Text()),
        sa.Column("prefix", sa.Text(), nullable=False, server_default="scoop."),
        sa.Column("revision", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("announced", sa.Text()),
        sa.Column("place", sa.Text()),
    ):
        op.add_column("home", column, schema=schema)
    op.add_column("outbox", sa.Column("expects", sa.Text()), schema=schema)
    op.add_column("run", sa.Column("parent_home", sa.Uuid()), schema=schema)
    op.add_column("child", sa.Column("home", sa.Uuid()), schema=schema)
    generation: sa.Column[int] = sa.Column("generation", sa.Integer(), nullable=False, server_default=sa.text("0"))
    op.add_column("child", generation, schema=schema)
    clock = sa.text("clock_timestamp()")
    op.create_table(
        "peer",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("reply_to", sa.Text(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("confirmed", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("heard_at", TIMESTAMP(timezone=True), nullable=False, server_default=clock),
        schema=schema,
    )
    op.create_table(
        "peer_subscription",
        sa.Column("home", sa.Uuid(), primary_key=True),
        sa.Column("topic", sa.Text(), primary_key=True),
        sa.Column("service", sa.Text(), primary_key=True),
        sa.Column("saga", sa.Text(), primary_key=True),
        sa.Column("pattern", sa.Text()),
        sa.Column("names", ARRAY(sa.Text()), nullable=False, server_default=sa.text("'{}'")),
        schema=schema,
    )
    op.create_table(
        "foreign_child",
        sa.Column("message_id", sa.Uuid(), primary_key=True),
        sa.Column("service", sa.Text(), primary_key=True),
        sa.Column("saga", sa.Text(), primary_key=True),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("home", sa.Uuid(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False, server_default=sa.text("1")),
        sa.Column("cancelled", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.Column("created_at", TIMESTAMP(timezone=True), nullable=False, server_default=clock),
        schema=schema,
    )
    where = sa.text("cancelled")
    op.create_index("foreign_child_cancelled", "foreign_child", ["created_at"], schema=schema, postgresql_where=where)
