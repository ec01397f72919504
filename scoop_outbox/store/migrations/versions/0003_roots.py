"""Roots that a broker carries: who is to handle them.

Revision 0003.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "0003"
down_revision = "0002"
locks: tuple[str, ...] = ()


def upgrade() -> None:
    """Add the table of roots."""
    op.create_table(
        "root",
        sa.Column("message_id", sa.Uuid(), nullable=False),
        sa.Column("services", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("sagas", sa.ARRAY(sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("message_id"),
        schema=context.config.attributes["schema"],
    )
