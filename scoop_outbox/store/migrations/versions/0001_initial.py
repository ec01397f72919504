"""The first schema.

Revision 0001.
"""

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects import postgresql

from scoop_outbox.store.ddl import storing

revision = "0001"
down_revision = None
locks: tuple[str, ...] = ()

SHARDS = 8  # as they were then: a migration does not change with the code around it
_UPDATED = {"fillfactor": "80"}
_QUEUE = {
    "autovacuum_vacuum_scale_factor": "0",
    "autovacuum_vacuum_threshold": "5000",
    "autovacuum_vacuum_cost_delay": "0",
}
_STORED = {"child": _UPDATED, "run": _UPDATED, "mailbox": _QUEUE, "outbox": _QUEUE}


def upgrade() -> None:
    """Create the tables, this database's identity, and the shards of the outbox."""
    schema = context.config.attributes["schema"]
    op.create_table(
        "child",
        sa.Column("message_id", sa.Uuid(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("saga", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("open", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'waiting'"), nullable=False),
        sa.Column("child_run", sa.Uuid(), nullable=True),
        sa.Column("result", postgresql.JSON(), nullable=True),
        sa.Column("failure", postgresql.JSON(), nullable=True),
        sa.Column("failed_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("consumed", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("message_id", "service", "saga"),
        schema=schema,
    )
    op.create_index("child_of_instance", "child", ["run_id", "seq"], unique=False, schema=schema)
    op.create_index("child_open", "child", ["run_id"], unique=False, schema=schema, postgresql_where="open")
    op.create_table(
        "dead_letter",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("message_id", sa.Uuid(), nullable=True),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("content_type", sa.Text(), nullable=False),
        sa.Column("headers", postgresql.JSON(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id"),
        schema=schema,
    )
    op.create_table(
        "home",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id"),
        schema=schema,
    )
    op.create_table(
        "mailbox",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("saga", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("due", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        schema=schema,
    )
    op.create_index("mailbox_due", "mailbox", ["service", "due"], unique=False, schema=schema)
    op.create_index("mailbox_run", "mailbox", ["run_id"], unique=False, schema=schema)
    op.create_table(
        "message",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("content_type", sa.Text(), nullable=False),
        sa.Column("headers", postgresql.JSON(), nullable=False),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id"),
        schema=schema,
    )
    op.create_table(
        "outbox",
        sa.Column("shard", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("message_id", sa.Uuid(), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("content_type", sa.Text(), nullable=False),
        sa.Column("headers", postgresql.JSON(), nullable=False),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("shard", "seq"),
        schema=schema,
    )
    op.create_table(
        "outbox_shard",
        sa.Column("shard", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("owner", sa.Uuid(), nullable=True),
        sa.Column("epoch", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("expires_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("shard"),
        schema=schema,
    )
    op.create_table(
        "run",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("message_id", sa.Uuid(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("saga", sa.Text(), nullable=False),
        sa.Column("lineage", sa.ARRAY(sa.Uuid()), nullable=False),
        sa.Column("parent_run", sa.Uuid(), nullable=True),
        sa.Column("state", sa.Text(), server_default=sa.text("'running'"), nullable=False),
        sa.Column("step", sa.Text(), nullable=True),
        sa.Column("next_step", sa.Text(), nullable=True),
        sa.Column("seq", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("instance", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("iteration", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("handled", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("not_before", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("undo_seq", sa.Integer(), nullable=True),
        sa.Column("compensation_seq", sa.Integer(), nullable=True),
        sa.Column("context", postgresql.JSON(), nullable=True),
        sa.Column("inherited", postgresql.JSON(), nullable=True),
        sa.Column("failure", postgresql.JSON(), nullable=True),
        sa.Column("failed_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("result", postgresql.JSON(), nullable=True),
        sa.Column("launched_at", postgresql.JSON(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("ended_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state in ('running', 'rolling_back', 'committed', 'rolled_back', 'rollback_failed', 'parked')",
            name="run_state",
        ),
        sa.PrimaryKeyConstraint("id"),
        schema=schema,
    )
    op.create_index("run_once", "run", ["message_id", "service", "saga"], unique=True, schema=schema)
    op.create_table(
        "step",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("iteration", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("failure", postgresql.JSON(), nullable=True),
        sa.Column("undoes", sa.Integer(), nullable=True),
        sa.Column("started_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("ended_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "seq"),
        schema=schema,
    )
    op.create_table(
        "subscription",
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("saga", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("topic", "service", "saga"),
        schema=schema,
    )
    for table, settings in _STORED.items():
        op.execute(storing(settings, op.get_bind(), schema, table))

    quoted = sa.sql.quoted_name(schema, quote=True)
    home = sa.table("home", sa.column("id", sa.Uuid()), schema=quoted)
    op.execute(sa.insert(home).values(id=sa.func.gen_random_uuid()))
    shards = sa.table("outbox_shard", sa.column("shard"), sa.column("expires_at"), schema=quoted)
    op.execute(
        sa.insert(shards).from_select(
            ["shard", "expires_at"],
            sa.select(sa.func.generate_series(0, SHARDS - 1), sa.text("'-infinity'::timestamptz")),
        )
    )
