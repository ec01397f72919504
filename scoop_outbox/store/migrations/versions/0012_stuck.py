"""Runs that could not be rolled back are counted without looking at all that has ended.

Revision 0012.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "0012"
down_revision = "0011"
locks = ("run",)


def upgrade() -> None:
    """Index them: there are few, or should be."""
    schema = context.config.attributes["schema"]
    op.create_index("run_stuck", "run", ["service"], schema=schema, postgresql_where=sa.text("obstacle is not null"))
