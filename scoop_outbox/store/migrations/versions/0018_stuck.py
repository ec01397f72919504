"""What people do about runs that are stuck: who retried, skipped or abandoned one, and which children are undone again.

Revision 0018.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "0018"
down_revision = "0017"
locks = ("run", "child", "request")


def upgrade() -> None:
    """Add columns; no row is touched."""
    schema = context.config.attributes["schema"]
    op.add_column("run", sa.Column("abandoned", sa.Boolean(), server_default=sa.false(), nullable=False), schema=schema)
    op.add_column("child", sa.Column("healing", sa.Boolean(), server_default=sa.false(), nullable=False), schema=schema)
    op.alter_column("request", "failure", nullable=True, schema=schema)
    for name, kind in (("note", sa.Text()), ("source", sa.Text()), ("seq", sa.Integer())):
        op.add_column("request", sa.Column(name, kind), schema=schema)
    actions = sa.text("kind in ('retry', 'skip', 'abandon')")
    op.create_index("request_action", "request", ["target"], schema=schema, postgresql_where=actions)
