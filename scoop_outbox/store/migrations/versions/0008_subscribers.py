"""Who is subscribed: sagas that had other names, and runs that nobody waits for.

Revision 0008.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "0008"
down_revision = "0007"
locks = ("subscription", "run")


def upgrade() -> None:
    """Add former names of sagas, late runs, and how late runs are found."""
    schema = context.config.attributes["schema"]
    op.add_column("subscription", sa.Column("lane", sa.Text(), nullable=True), schema=schema)
    op.create_table(
        "renamed",
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("former", sa.Text(), nullable=False),
        sa.Column("saga", sa.Text(), nullable=False),
        sa.Column(
            "created_at", sa.TIMESTAMP(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("service", "former", "saga"),
        schema=schema,
    )
    late: sa.Column[bool] = sa.Column("late", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    op.add_column("run", late, schema=schema)
    op.create_index(
        "run_late",
        "run",
        [sa.text("(lineage[cardinality(lineage) - 1])")],
        unique=False,
        schema=schema,
        postgresql_where=sa.text("late"),
    )
