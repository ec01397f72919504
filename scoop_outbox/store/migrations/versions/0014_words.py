"""Tables and columns are called by the words of the glossary: lane entry, expected root, via broker.

Processes of the version before do not know the new names: stop them first.

Revision 0014.
"""

import sqlalchemy as sa
from alembic import context, op

from scoop_outbox.store.ddl import defining

revision = "0014"
down_revision = "0013"
locks = ("subscription", "root", "turn")

# From Postgres 18 on what must not be null is a constraint, too, and has a name.
_CONSTRAINTS = sa.text("select conname from pg_constraint where conrelid = to_regclass(:table) and conname ^@ :prefix")


def upgrade() -> None:
    """Rename them; no row is touched."""
    schema, connection = context.config.attributes["schema"], op.get_bind()
    op.rename_table("root", "expected_root", schema=schema)
    op.rename_table("turn", "lane_entry", schema=schema)
    for index in ("lane", "held"):
        op.execute(defining(f"alter index %(table)s rename to lane_entry_{index}", connection, schema, f"turn_{index}"))
    op.execute(defining("alter sequence %(table)s rename to lane_entry_seq_seq", connection, schema, "turn_seq_seq"))
    op.alter_column("subscription", "brokered", new_column_name="via_broker", schema=schema)
    _rename_constraints(schema, "expected_root", "root", "expected_root")
    _rename_constraints(schema, "lane_entry", "turn", "lane_entry")
    _rename_constraints(schema, "subscription", "subscription_brokered", "subscription_via_broker")


def _rename_constraints(schema: str, table: str, before: str, after: str) -> None:
    connection = op.get_bind()
    quote = connection.dialect.identifier_preparer.quote_identifier
    regclass = f"{quote(schema)}.{table}".replace("%%", "%")
    for (name,) in connection.execute(_CONSTRAINTS, {"table": regclass, "prefix": before}).all():
        rename = f"alter table %(table)s rename constraint {name} to {after}{name.removeprefix(before)}"
        op.execute(defining(rename, connection, schema, table))
