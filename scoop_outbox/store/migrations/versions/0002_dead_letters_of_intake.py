"""Dead letters of intake: whose they are, and where they stood.

Revision 0002.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add service and position, and recognise a message that comes again."""
    schema = context.config.attributes["schema"]
    op.add_column("dead_letter", sa.Column("service", sa.Text(), nullable=True), schema=schema)
    op.add_column("dead_letter", sa.Column("position", sa.Text(), nullable=True), schema=schema)
    op.create_index(
        "dead_letter_once",
        "dead_letter",
        ["message_id", "service"],
        unique=True,
        schema=schema,
        postgresql_where=sa.text("origin = 'intake'"),
    )
