"""Requests to roll back: some of them wait until what they are about has ended.

Revision 0017.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "0017"
down_revision = "0016"
locks = ("request",)


def upgrade() -> None:
    """Add what has become of a request, and find those that wait."""
    schema = context.config.attributes["schema"]
    op.add_column("request", sa.Column("outcome", sa.Text()), schema=schema)
    waiting = sa.text("kind = 'rollback' and outcome is null")
    op.create_index("request_waiting", "request", ["target"], schema=schema, postgresql_where=waiting)
