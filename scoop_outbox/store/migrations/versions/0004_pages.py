"""Queues keep their pages, so that Postgres never plans for a queue that has none.

Revision 0004.
"""

import uuid

import sqlalchemy as sa
from alembic import context, op

from scoop_outbox.store.ddl import defining, storing

revision = "0004"
down_revision = "0003"
locks = ("turn", "mailbox", "outbox")

_NOBODY = uuid.UUID(int=0)
# So wide that a few fill a page, and not so wide that they are stored elsewhere.
_WIDE = "-" * 1800


def upgrade() -> None:
    """Give each queue half a megabyte that vacuum does not take away, by rows that nobody ever sees."""
    schema = context.config.attributes["schema"]
    metadata = sa.MetaData(schema=schema)
    outbox = sa.Table(
        "outbox",
        metadata,
        *(sa.Column(name) for name in ("shard", "message_id", "topic", "body", "content_type", "headers")),
    )
    mailbox = sa.Table("mailbox", metadata, *(sa.Column(name) for name in ("service", "saga", "run_id", "due")))
    turn = sa.Table("turn", metadata, sa.Column("run_id"), sa.Column("lane"))
    fillers: list[tuple[sa.Table, int, dict[str, object], sa.ColumnElement[bool]]] = [
        (
            outbox,
            260,
            {
                "shard": -1,
                "message_id": sa.func.gen_random_uuid(),
                "topic": "",
                "body": sa.func.convert_to(_WIDE, "UTF8"),
                "content_type": "",
                "headers": sa.cast("{}", sa.JSON),
            },
            outbox.c.shard == -1,
        ),
        (
            mailbox,
            260,
            {"service": "", "saga": _WIDE, "run_id": _NOBODY, "due": sa.func.now()},
            mailbox.c.service == "",
        ),
        (turn, 7000, {"run_id": sa.func.gen_random_uuid(), "lane": _NOBODY}, turn.c.lane == _NOBODY),
    ]
    for table, count, values, ours in fillers:
        op.execute(storing({"vacuum_truncate": "false"}, op.get_bind(), schema, table.name))
        rows = sa.select(*(_literal(value) for value in values.values())).select_from(
            sa.func.generate_series(1, count).table_valued("n")
        )
        op.execute(sa.insert(table).from_select(list(values), rows))
        op.execute(sa.delete(table).where(ours))
        # Or the pages would be taken for full ones, until vacuum comes.
        op.execute(defining("analyze %(table)s", op.get_bind(), schema, table.name))


def _literal(value: object) -> sa.ColumnElement[object]:
    return value if isinstance(value, sa.ColumnElement) else sa.literal(value)
