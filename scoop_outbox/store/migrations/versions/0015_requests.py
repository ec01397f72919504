"""What people, and parents, ask of a run that goes on: a row of its own, for a step holds the lock of the run's.

Revision 0015.
"""

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0015"
down_revision = "0014"
locks = ("run",)


def upgrade() -> None:
    """Add the table, and to runs why they give up."""
    schema = context.config.attributes["schema"]
    op.create_table(
        "request",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), primary_key=True),
        sa.Column("target", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("failure", sa.Uuid(), nullable=False),
        sa.Column("created_at", TIMESTAMP(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        schema=schema,
    )
    cancellations = sa.text("kind = 'cancel'")
    op.create_index("request_cancel", "request", ["target"], unique=True, schema=schema, postgresql_where=cancellations)
    op.add_column("run", sa.Column("giving_up", sa.Uuid()), schema=schema)
