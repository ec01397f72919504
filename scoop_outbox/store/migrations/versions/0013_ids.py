"""Ids that callers give their messages: each is launched once.

Revision 0013.
"""

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0013"
down_revision = "0012"
locks: tuple[str, ...] = ()


def upgrade() -> None:
    """Add the table; messages that were launched before have no row in it."""
    op.create_table(
        "launched",
        sa.Column("message_id", sa.Uuid(), primary_key=True),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("created_at", TIMESTAMP(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        schema=context.config.attributes["schema"],
    )
