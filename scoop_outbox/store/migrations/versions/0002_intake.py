"""Intake from a broker: dead letters of a service, and runs of a key one after the other.

Revision 0002.
"""

import sqlalchemy as sa
from alembic import context, op

from scoop_outbox.store.ddl import storing

revision = "0002"
down_revision = "0001"
locks = ("subscription", "run", "dead_letter")

_QUEUE = {
    "autovacuum_vacuum_scale_factor": "0",
    "autovacuum_vacuum_threshold": "5000",
    "autovacuum_vacuum_cost_delay": "0",
}


def upgrade() -> None:
    """Add where dead letters stood and whose they are, and the turns of ordered sagas."""
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
    ordered: sa.Column[bool] = sa.Column("ordered", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    op.add_column("subscription", ordered, schema=schema)
    op.add_column("run", sa.Column("lane", sa.Uuid(), nullable=True), schema=schema)
    op.create_table(
        "turn",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("lane", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("held", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("run_id"),
        schema=schema,
    )
    op.execute(storing(_QUEUE, op.get_bind(), schema, "turn"))
    op.create_index("turn_lane", "turn", ["lane", "seq"], unique=False, schema=schema)
    op.create_index("turn_held", "turn", ["lane"], unique=True, schema=schema, postgresql_where=sa.text("held"))
