"""Subscriptions at a broker: which topics a pattern stands for, and who is served by a broker at all.

Revision 0005.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "0005"
down_revision = "0004"
locks = ("subscription",)


def upgrade() -> None:
    """Add what is known of a subscription's broker; services say it when they start."""
    schema = context.config.attributes["schema"]
    op.add_column("subscription", sa.Column("pattern", sa.Text(), nullable=True), schema=schema)
    brokered: sa.Column[bool] = sa.Column("brokered", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    op.add_column("subscription", brokered, schema=schema)
