"""Pruning: where finished hierarchies begin, which have been pruned, and how long sagas want theirs to be kept.

Revision 0021.
"""

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0021"
down_revision = "0020"
locks = ("subscription", "message", "run", "request")


def upgrade() -> None:
    """Add columns, of which no row is touched, and index the runs at the top of hierarchies."""
    schema = context.config.attributes["schema"]
    for name in ("retention", "retain_payload"):
        op.add_column("subscription", sa.Column(name, sa.Interval()), schema=schema)
    for name in ("emptied_at", "forget_at"):
        op.add_column("message", sa.Column(name, TIMESTAMP(timezone=True)), schema=schema)
    op.add_column("run", sa.Column("erased", sa.Boolean(), server_default=sa.false(), nullable=False), schema=schema)
    for name, table, columns, where in (
        ("message_pruned", "message", ["forget_at"], "forget_at is not null"),
        ("run_root", "run", ["service", "saga", "created_at"], "parent_run is null and not late"),
        ("request_closed", "request", ["target"], "kind = 'rollback' and outcome is not null"),
    ):
        op.create_index(name, table, columns, schema=schema, postgresql_where=sa.text(where))
