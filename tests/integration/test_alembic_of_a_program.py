"""The Alembic of a program: its autogenerate proposes what the program needs, and leaves our tables alone."""

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from scoop_outbox.store.migrate import migrate

ENV = """
import os
import sqlalchemy as sa
from alembic import context
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
{imports}

class Base(DeclarativeBase): ...

class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)

class Parcel(Base):
    __tablename__ = "parcels"
    __table_args__ = {{"schema": "shipping"}}
    id: Mapped[int] = mapped_column(primary_key=True)

engine = sa.create_engine(os.environ["URL"].replace("postgresql://", "postgresql+psycopg://"))
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata, include_schemas=True{filtered})
    with context.begin_transaction():
        context.run_migrations()
"""
TEMPLATE = '''
"""${message}"""
import sqlalchemy as sa
from alembic import op
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
def upgrade():
    ${upgrades if upgrades else "pass"}
def downgrade():
    ${downgrades if downgrades else "pass"}
'''


@pytest.fixture
def project(tmp_path: Path, database_url: str) -> Path:
    """A program's own migrations, in a database that holds our tables in two schemas."""
    migrate(database_url, "shop_outbox")
    with psycopg.connect(database_url) as connection:
        connection.execute("create schema shipping")
        connection.execute("create table run (id integer primary key)")  # a name that we have, too, and not ours
    (tmp_path / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/own\n")
    (tmp_path / "own" / "versions").mkdir(parents=True)
    (tmp_path / "own" / "script.py.mako").write_text(TEMPLATE)
    return tmp_path


def alembic(project: Path, url: str, *arguments: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=project,
        env=os.environ | {"URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def proposal(project: Path, url: str, imports: str, filtered: str) -> str:
    (project / "own" / "env.py").write_text(ENV.format(imports=imports, filtered=filtered))
    alembic(project, url, "revision", "--autogenerate", "-m", "one")
    (made,) = (project / "own" / "versions").glob("*_one.py")
    return made.read_text()


@pytest.mark.parametrize(
    "imports, filtered, left_alone",
    [
        ("", "", ()),
        ("from scoop_outbox.migrations import include_name", ", include_name=include_name", ("scoop_outbox",)),
        ("from scoop_outbox.migrations import include_object", ", include_object=include_object", ("scoop_outbox",)),
        (
            "from scoop_outbox.migrations import Without, include_name",
            ", include_name=lambda *asked: include_name(*asked) and Without('shop_outbox').include_name(*asked)",
            ("scoop_outbox", "shop_outbox"),
        ),
    ],
)
def test_autogenerate_proposes_nothing_about_our_tables(
    project: Path, database_url: str, imports: str, filtered: str, left_alone: tuple[str, ...]
) -> None:
    text = proposal(project, database_url, imports, filtered)
    up = text.partition("def downgrade")[0]
    assert "op.create_table('orders'" in up
    assert "op.create_table('parcels'" in up
    assert "op.drop_table('run')" in up, "a table of the program's own schema is the program's"
    for schema in ("scoop_outbox", "shop_outbox"):
        assert (f"op.drop_table('run', schema='{schema}')" in up) == (schema not in left_alone)
        assert (schema in text) == (schema not in left_alone)


def test_the_programs_migrations_and_ours_do_not_meet(project: Path, database_url: str) -> None:
    proposal(project, database_url, "from scoop_outbox.migrations import include_name", ", include_name=include_name")
    alembic(project, database_url, "upgrade", "head")
    migrate(database_url)
    with psycopg.connect(database_url) as connection:
        found = connection.execute("select to_regclass('orders'), to_regclass('scoop_outbox.run')").fetchone()
    assert found == ("orders", "scoop_outbox.run")
