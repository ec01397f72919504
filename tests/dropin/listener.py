"""A service for these tests: its sagas note what comes, and it runs and ends within a test as often as needed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from scoop_outbox import Message, Scoop, Topic
from scoop_outbox.daemon.daemons import Daemons
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from tests.waiting import until


class Listener:
    """A service with one saga for each topic.

    Args:
        database: its home.
        broker: the broker's URL.
        service: its name.
        topics: what its sagas listen on.
        group: its group or queue.
        start: where the group begins.
        settings: of the broker's client.

    Attributes:
        app: the service.
        seen: the messages that were handled, in order.
    """

    def __init__(
        self,
        database: str,
        broker: str,
        service: str,
        *topics: str | Topic[Any],
        group: str | None = None,
        start: str | None = None,
        settings: dict[str, object] | None = None,
    ) -> None:
        self.seen: list[Message] = []
        self._database = database
        self.app = Scoop(
            service, database=database, broker=broker, group=group or service, start=start, broker_settings=settings
        )
        for number, topic in enumerate(topics):
            self.app.saga(f"note {number}", on=topic).add_step("only", self._note)

    async def _note(self, _: object, message: Message) -> None:
        self.seen.append(message)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Daemons]:
        async with self.app.running() as daemons:
            yield daemons

    async def sees(self, count: int) -> list[Message]:
        """Wait until so many messages were handled; there are no more."""
        await until(lambda: len(self.seen) >= count, 30)
        assert len(self.seen) == count, self.seen
        return self.seen

    @property
    def bodies(self) -> list[bytes]:
        return [message.body for message in self.seen]

    def ask(self, question: str) -> list[tuple[Any, ...]]:
        """Ask the home."""
        with psycopg.connect(self._database, options=f"-c search_path={DEFAULT_SCHEMA}") as connection:
            return connection.execute(question.encode()).fetchall()

    @property
    def runs(self) -> int:
        """How many runs were ever started."""
        return int(self.ask("select count(*) from run")[0][0])

    @property
    def dead_letters(self) -> list[tuple[bytes, str]]:
        """What could not be taken in or published: body and reason."""
        return [(body, reason) for body, reason in self.ask("select body, reason from dead_letter order by id")]
