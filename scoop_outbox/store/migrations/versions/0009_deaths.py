"""What parks a run is counted apart from what it asked for, and the marks of a worker that leaves are found.

Revision 0009.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "0009"
down_revision = "0008"
locks = ("run",)


def upgrade() -> None:
    """Count, and index what is written only where a process may have died."""
    schema = context.config.attributes["schema"]
    unwanted: sa.Column[int] = sa.Column("unwanted", sa.Integer(), server_default=sa.text("0"), nullable=False)
    op.add_column("run", unwanted, schema=schema)
    taken = sa.text("taken_by is not null")
    op.create_index("run_taken", "run", ["taken_by"], schema=schema, postgresql_where=taken)
