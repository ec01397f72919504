"""Workers and versions of sagas are known in the database, and so is what keeps a run from being executed.

Revision 0006.
"""

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP

revision = "0006"
down_revision = "0005"
locks = ("run", "mailbox")

_NOW = sa.text("clock_timestamp()")


def upgrade() -> None:
    """Add the registry, and to runs and mail which version of their saga they are for."""
    schema = context.config.attributes["schema"]
    op.create_table(
        "worker",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("sagas", ARRAY(sa.Text()), nullable=False),
        sa.Column("versions", ARRAY(sa.Text()), nullable=False),
        sa.Column("backend", sa.Integer(), nullable=False),
        sa.Column("started_at", TIMESTAMP(timezone=True), nullable=False, server_default=_NOW),
        sa.Column("alive_until", TIMESTAMP(timezone=True), nullable=False),
        schema=schema,
    )
    op.create_index("worker_of_service", "worker", ["service"], schema=schema)
    op.create_table(
        "saga_version",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("saga", sa.Text(), nullable=False),
        sa.Column("steps", ARRAY(sa.Text()), nullable=False),
        sa.Column("number", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("created_at", TIMESTAMP(timezone=True), nullable=False, server_default=_NOW),
        sa.Column("alive_until", TIMESTAMP(timezone=True), nullable=False),
        schema=schema,
    )
    op.create_index("saga_version_of_saga", "saga_version", ["service", "saga"], schema=schema)
    for table in ("run", "mailbox"):
        version: sa.Column[str] = sa.Column("version", sa.Text(), server_default=sa.text("''"), nullable=False)
        op.add_column(table, version, schema=schema)
    interruptions: sa.Column[int] = sa.Column(
        "interruptions", sa.Integer(), server_default=sa.text("0"), nullable=False
    )
    op.add_column("run", interruptions, schema=schema)
    op.add_column("run", sa.Column("interruption", sa.Text()), schema=schema)
    op.add_column("run", sa.Column("taken_by", sa.Uuid()), schema=schema)
    op.add_column("run", sa.Column("needs", sa.Text()), schema=schema)
    op.drop_index("mailbox_due", "mailbox", schema=schema)
    op.create_index("mailbox_due", "mailbox", ["service", "saga", "due"], schema=schema)
    parked, interrupted = sa.text("reason is not null"), sa.text("interruptions > 0")
    op.create_index("run_parked", "run", ["service", "saga"], schema=schema, postgresql_where=parked)
    op.create_index("run_interrupted", "run", ["service"], schema=schema, postgresql_where=interrupted)
