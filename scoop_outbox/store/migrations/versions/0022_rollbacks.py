"""Rollbacks that go on past what cannot be undone: where that began, and why it could not be.

Revision 0022.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "0022"
down_revision = "0021"
locks = ("run",)


def upgrade() -> None:
    """Add columns; no row is touched."""
    schema = context.config.attributes["schema"]
    op.add_column("run", sa.Column("undo_from", sa.Integer()), schema=schema)
    op.add_column("run", sa.Column("unresolved", sa.Uuid()), schema=schema)
