"""The server that is measured: one of our own, as durable as Postgres is by default, or one that is named."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from benchmarks.control import Control
from scoop_outbox.devservers.postgres import start_postgres
from scoop_outbox.store.migrate import migrate

SETTINGS = {"max_connections": "200"}
"""Everything else is Postgres's default: fsync, full_page_writes and synchronous_commit are on."""

T = TypeVar("T")

SMOKE = 25
LEAST = 4


@dataclass(frozen=True, slots=True)
class Bench:
    """What a benchmark is run with.

    Attributes:
        admin: the URL of a role that may create databases.
        runs: how often to measure.
        quick: whether to see only that everything works.
        smoke: whether to see only that it runs at all, as a test does.
        own: whether the server is ours, to be started again with other settings.
    """

    admin: str
    runs: int
    quick: bool
    own: bool
    smoke: bool = False

    def size(self, full: int, quick: int) -> int:
        """Return how much to measure; `quick` is divided further by `SMOKE`, where nobody looks at the numbers."""
        if self.smoke:
            return min(max(quick // SMOKE, LEAST), quick)
        return quick if self.quick else full

    def some(self, ways: Sequence[T]) -> Sequence[T]:
        """Return in which ways to measure: all of them, or the first where nobody looks at the numbers."""
        return ways[:1] if self.smoke else ways

    @asynccontextmanager
    async def database(self) -> AsyncIterator[Control]:
        """Lend a fresh database, migrated."""
        with new_database(self.admin) as url:
            async with Control.connect(url) as control:
                control.hurried = self.smoke
                yield control


@contextmanager
def server(url: str | None, settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """Yield the URL of the server that was named, or of one that lasts as long as the block."""
    with ExitStack() as stack:
        if url is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scoop-outbox-benchmarks-")))
            url = stack.enter_context(start_postgres(folder, settings=SETTINGS | dict(settings or {}))).url
        yield url


@contextmanager
def new_database(admin: str) -> Iterator[str]:
    """Yield the URL of a migrated database that is dropped afterwards."""
    name = f"scoop_outbox_benchmark_{secrets.token_hex(4)}"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {} template template0").format(sql.Identifier(name)))
    try:
        url = make_url(admin).set(database=name).render_as_string(hide_password=False)
        migrate(url)
        yield url
    finally:
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))
