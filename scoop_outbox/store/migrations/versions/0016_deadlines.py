"""Until when runs and children have to commit, and rollbacks to end.

Revision 0016.
"""

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects.postgresql import JSON, TIMESTAMP

revision = "0016"
down_revision = "0015"
locks = ("run", "child")


def upgrade() -> None:
    """Add the columns, and what finds children that may be late without looking at the others."""
    schema = context.config.attributes["schema"]
    op.add_column("run", sa.Column("deadlines", JSON()), schema=schema)
    op.add_column("run", sa.Column("own_deadline", JSON()), schema=schema)
    op.add_column("run", sa.Column("rollback_by", TIMESTAMP(timezone=True)), schema=schema)
    op.add_column("child", sa.Column("deadline", TIMESTAMP(timezone=True)), schema=schema)
    late = sa.text("state = 'waiting' and deadline is not null")
    op.create_index("child_deadline", "child", ["run_id", "deadline"], schema=schema, postgresql_where=late)
