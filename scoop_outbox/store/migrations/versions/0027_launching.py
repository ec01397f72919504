"""Which transactions may still launch for another home that is being drained.

Revision 0027.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "0027"
down_revision = "0026"
locks = ("peer",)


def upgrade() -> None:
    """Add a column; no row is touched."""
    op.add_column("peer", sa.Column("launching", sa.ARRAY(sa.Text())), schema=context.config.attributes["schema"])
