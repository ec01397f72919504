"""External participants: who is one, and what somebody outside has said about the work of one.

Revision 0023.
"""

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects.postgresql import JSON

revision = "0023"
down_revision = "0022"
locks = ("subscription", "request")


def upgrade() -> None:
    """Add columns, and an index of rows that there are none of yet; no row is touched."""
    schema = context.config.attributes["schema"]
    external: sa.Column[bool] = sa.Column("external", sa.Boolean(), nullable=False, server_default=sa.text("false"))
    op.add_column("subscription", external, schema=schema)
    op.add_column("request", sa.Column("result", JSON()), schema=schema)
    said = sa.text("kind in ('complete', 'fail')")
    op.create_index("request_outside", "request", ["target"], unique=True, schema=schema, postgresql_where=said)
