"""A database that is opened by its URL, for what needs no application: operators' commands and their programs."""

from __future__ import annotations

from types import TracebackType
from typing import Self, TypeVar

from scoop_outbox.core.statement import Plan
from scoop_outbox.store.home import Home
from scoop_outbox.store.schema import checked_schema

T = TypeVar("T")


class OpenedDatabase:
    """One database, for code without an event loop. Use it in a `with` block, or close it.

    Args:
        database: a PostgreSQL URL.
        schema: the schema of our tables.
        name: what the server's list of connections shows.

    Raises:
        DatabaseError: the URL is not usable. Every method raises it too, when the database cannot be used.
        DefinitionError: the name of the schema is not usable.
    """

    def __init__(self, database: str, schema: str, name: str) -> None:
        """Open nothing yet."""
        self._home = Home(database, checked_schema(schema), f"scoop_outbox {name}")

    def __enter__(self) -> Self:
        """Return itself, to be closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection; what is used afterwards opens anew."""
        self._home.dispose_blocking()

    def _run(self, plan: Plan[T]) -> T:
        with self._home.blocking_driver() as driver:
            return driver.run(plan)


class AsyncOpenedDatabase:
    """One database, for coroutines. Use it in an `async with` block, or close it.

    Any number of coroutines may use it at the same time, in any number of event loops: each has a connection of its own
    while it asks, 10 at most in each loop.

    Args:
        database: a PostgreSQL URL.
        schema: the schema of our tables.
        name: what the server's list of connections shows.

    Raises:
        DatabaseError: the URL is not usable. Every method raises it too, when the database cannot be used.
        DefinitionError: the name of the schema is not usable.
    """

    def __init__(self, database: str, schema: str, name: str) -> None:
        """Open nothing yet."""
        self._home = Home(database, checked_schema(schema), f"scoop_outbox {name}")

    async def __aenter__(self) -> Self:
        """Return itself, to be closed at the end of the block."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self.close()

    async def close(self) -> None:
        """Close the connections of the running event loop; what is used afterwards opens anew."""
        await self._home.dispose()

    async def _run(self, plan: Plan[T]) -> T:
        async with self._home.driver() as driver:
            return await driver.run(plan)
