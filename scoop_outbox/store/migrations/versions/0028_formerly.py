"""Which names sagas had before, in this home and in others: a service may be renamed home by home.

Revision 0028.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "0028"
down_revision = "0027"
locks = ("subscription", "peer_subscription")


def upgrade() -> None:
    """Add columns; no row is touched."""
    for table in locks:
        op.add_column(
            table,
            sa.Column("formerly", sa.ARRAY(sa.Text()), nullable=False, server_default=sa.text("'{}'")),
            schema=context.config.attributes["schema"],
        )
