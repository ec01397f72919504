"""${message}"""

import sqlalchemy as sa
from alembic import context, op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    """Apply."""
    schema = context.config.attributes["schema"]
    ${upgrades if upgrades else "pass"}
