"""Children that failed are found among many others: for steps that fail fast.

Revision 0019.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "0019"
down_revision = "0018"
locks = ("child",)


def upgrade() -> None:
    """Index them: most children commit."""
    failed = sa.text("state in ('rolled_back', 'rollback_failed')")
    schema = context.config.attributes["schema"]
    columns = ["run_id", "seq", "failed_at"]
    op.create_index("child_failed", "child", columns, schema=schema, postgresql_where=failed)
