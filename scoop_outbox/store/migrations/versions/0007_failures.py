"""Failures are rows of their own, each once: runs, executions and children refer to them, and so do other failures.

Revision 0007.
"""

import sqlalchemy as sa
from alembic import context, op

from scoop_outbox.store.ddl import defining

revision = "0007"
down_revision = "0006"
locks = ("run", "step", "child")

# What a row of each table is told apart by; the id of its failure is made of that.
_KEYS = {"run": "id", "step": "concat_ws(' ', run_id, seq)", "child": "concat_ws(' ', message_id, service, saga)"}

# A document that was stored whole stays whole: its causes are inside. Its texts are found as they are escaped.
_COPY = """
    insert into %(schema)s.failure (id, causes, type, message, source, document)
    select md5('%(name)s ' || %(key)s)::uuid, array[]::uuid[],
           coalesce(left(substring(failure::text from '"type": "(([^"\\\\]|\\\\.)*)"'), 200), '<unknown type>'),
           left(substring(failure::text from '^[{]"message": "(([^"\\\\]|\\\\.)*)"'), 200),
           coalesce(left(substring(failure::text from '"source": "(([^"\\\\]|\\\\.)*)"'), 200), '<unknown source>'),
           failure
    from %(table)s
    where failure is not null
"""
_REFER = """
    alter table %(table)s
    alter column failure type uuid using case when failure is not null then md5('%(name)s ' || %(key)s)::uuid end
"""


def upgrade() -> None:
    """Move what is stored, and tell why a run failed from why it could not be rolled back."""
    schema = context.config.attributes["schema"]
    op.create_table(
        "failure",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("causes", sa.ARRAY(sa.Uuid()), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("message", sa.Text()),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        schema=schema,
    )
    for table, key in _KEYS.items():
        for statement in (_COPY, _REFER):
            op.execute(defining(statement, op.get_bind(), schema, table, name=table, key=key))
    op.add_column("run", sa.Column("obstacle", sa.Uuid()), schema=schema)
    op.add_column("run", sa.Column("handler_seq", sa.Integer()), schema=schema)
    op.add_column("child", sa.Column("obstacle", sa.Uuid()), schema=schema)
    delivered: sa.Column[bool] = sa.Column("delivered", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    op.add_column("child", delivered, schema=schema)
