"""Several homes of one service: which of them are being drained, and who still waits for what is in them.

Revision 0026.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "0026"
down_revision = "0025"
locks = ("home", "peer")


def upgrade() -> None:
    """Add columns; no row is touched."""
    schema = context.config.attributes["schema"]
    for table in ("home", "peer"):
        op.add_column(
            table,
            sa.Column("draining", sa.Boolean(), nullable=False, server_default=sa.text("false")),
            schema=schema,
        )
    op.add_column("peer", sa.Column("waiting", sa.Integer()), schema=schema)
