"""Other homes, seen from here: when a child was last heard of, and by how much a home's clock may differ.

Revision 0025.
"""

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0025"
down_revision = "0024"
locks = ("peer", "child")


def upgrade() -> None:
    """Add columns; no row is touched."""
    schema = context.config.attributes["schema"]
    op.add_column("peer", sa.Column("lag", sa.Interval()), schema=schema)
    op.add_column("child", sa.Column("reported_at", TIMESTAMP(timezone=True)), schema=schema)
