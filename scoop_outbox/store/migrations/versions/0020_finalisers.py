"""Finalisers: the execution of a step whose finaliser is to be called, and the call whose children are waited for.

Revision 0020.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "0020"
down_revision = "0019"
locks = ("run",)


def upgrade() -> None:
    """Add columns; no row is touched."""
    schema = context.config.attributes["schema"]
    for name in ("body_seq", "finaliser_seq"):
        op.add_column("run", sa.Column(name, sa.Integer()), schema=schema)
