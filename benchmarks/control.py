"""The connection from which a benchmark prepares work, lets it go and watches it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import psycopg

SEARCH_PATH = "-c search_path=scoop_outbox,public"


class Control:
    """A connection in autocommit that knows how many transactions are its own.

    Attributes:
        url: the database's.
        hurried: whether to let vacuum and checkpointer come when they like.
    """

    hurried = False

    def __init__(self, url: str, connection: psycopg.AsyncConnection[Any]) -> None:
        self.url = url
        self._connection = connection
        self._commits = 0

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str) -> AsyncIterator[Control]:
        connection = await psycopg.AsyncConnection.connect(url, autocommit=True, options=SEARCH_PATH)
        async with connection:
            yield cls(url, connection)

    async def all(self, query: str, params: Mapping[str, Any] | None = None) -> list[Any]:
        """Execute a statement, or several without parameters, and return the rows."""
        self._commits += 1
        cursor = await self._connection.execute(query.encode(), params)
        return [] if cursor.description is None else await cursor.fetchall()

    async def one(self, query: str, params: Mapping[str, Any] | None = None) -> Any:
        """Return the first column of the first row."""
        return (await self.all(query, params))[0][0]

    async def settle(self, *tables: str) -> None:
        """Leave nothing for vacuum and checkpointer to do while something is measured."""
        if self.hurried:
            return
        for table in tables:
            await self.all(f"vacuum (analyze) {table}")
        await self.all("checkpoint")

    async def commits(self) -> int:
        """Return how many transactions others have committed in this database; they must have disconnected."""
        others = (
            "select count(*) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'"
        )
        while await self.one(others):
            await asyncio.sleep(0.02)
        await self.all("select pg_stat_force_next_flush()")
        before = self._commits
        return (
            int(await self.one("select xact_commit from pg_stat_database where datname = current_database()")) - before
        )
