"""A topic that can be written in several ways has names, not a regular expression: those are slow to compare.

Revision 0010.
"""

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0010"
down_revision = "0009"
locks = ("subscription",)


def upgrade() -> None:
    """Add the names; services say them when they start, and take back the expression."""
    schema = context.config.attributes["schema"]
    names: sa.Column[list[str]] = sa.Column("names", ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False)
    op.add_column("subscription", names, schema=schema)
