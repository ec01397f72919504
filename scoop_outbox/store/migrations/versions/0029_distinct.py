"""How many runs there are in `child` and `step`, as the planner shall see it, whatever it has found.

Revision 0029.
"""

from alembic import context, op

from scoop_outbox.store.ddl import counting_distinct

revision = "0029"
down_revision = "0028"
locks = ("child", "step")


def upgrade() -> None:
    """Set an option of two columns; no row is touched. It counts from the next look of autovacuum on."""
    connection, schema = op.get_bind(), context.config.attributes["schema"]
    for table in locks:
        op.execute(counting_distinct("run_id", "-0.2", connection, schema, table))
