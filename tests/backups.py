"""A database is backed up, and restored, as operators do it: with pg_dump and pg_restore."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from scoop_outbox.devservers._errors import ServerNotFoundError
from scoop_outbox.devservers._postgres_installation import candidates
from tests.servers import skip_without


def back_up(url: str, file: Path) -> None:
    """Write a backup of a database, whatever goes on in it meanwhile."""
    _run("pg_dump", "--format=custom", f"--file={file}", f"--dbname={_plain(url)}")


def restore(url: str, file: Path) -> None:
    """Put a backup in the place of a database: what has happened there since is lost."""
    parsed = make_url(url)
    name = sql.Identifier(str(parsed.database))
    with psycopg.connect(_plain(parsed.set(database="postgres").render_as_string(hide_password=False))) as connection:
        connection.autocommit = True
        connection.execute(sql.SQL("drop database {} with (force)").format(name))
        connection.execute(sql.SQL("create database {} template template0").format(name))
    _run("pg_restore", "--exit-on-error", f"--dbname={_plain(url)}", str(file))


def _plain(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def _run(program: str, *arguments: str) -> None:
    done = subprocess.run([_find(program), *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def _find(program: str) -> str:
    """Return where a program of Postgres is: beside the server's, if that is of this machine."""
    for one in candidates():
        if os.access(one.folder / program, os.X_OK):
            return str(one.folder / program)
    found = shutil.which(program)
    if found is None:
        skip_without(ServerNotFoundError(f"{program} is not installed: apt-get install postgresql-client"))
    return found
