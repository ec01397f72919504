"""Behind a pooler no process of the server's stands for a worker.

Revision 0011.
"""

from alembic import context, op

revision = "0011"
down_revision = "0010"
locks = ("worker",)


def upgrade() -> None:
    """Let a worker have none."""
    op.alter_column("worker", "backend", nullable=True, schema=context.config.attributes["schema"])
