"""Peers: the workers of one service, and which part of its mail each of them sees to first.

It is a hint: whoever counts wrong is late, and nothing is lost. See decision 0008.
"""

from __future__ import annotations

import time

from scoop_outbox.core.statement import ask, statement
from scoop_outbox.daemon.signals import mail_channel
from scoop_outbox.store.aio import AsyncDriver
from scoop_outbox.store.home import Home

_EVERY = 5.0


class Peers:
    """The workers of one service, as one of them sees them in the server's list of connections.

    Args:
        home: the database, and the schema: another one may have a service of the same name.
        service: whose workers.

    Attributes:
        part: which part of the mail is ours, from 0, and how many parts there are.
    """

    def __init__(self, home: Home, service: str) -> None:
        """Believe to be alone."""
        # Names may be longer than Postgres shows.
        self._name = f"scoop_outbox feeder {mail_channel(f'{home.schema}.{service}')}"
        self._counted_at = 0.0
        self.part = (0, 1)

    async def introduce(self, driver: AsyncDriver) -> None:
        """Give a connection the name by which others count it."""
        await driver.run(ask(statement("name_connection", name=self._name)))

    async def count(self, driver: AsyncDriver) -> bool:
        """Look how many there are, if it is time to; answer whether our part is another one than before."""
        now = time.monotonic()
        if now < self._counted_at + _EVERY:
            return False
        self._counted_at = now
        (rows,) = await driver.run(ask(statement("count_workers", name=self._name)))
        mine = [index for index, (_, is_me) in enumerate(rows) if is_me]
        before, self.part = self.part, ((mine[0], len(rows)) if mine else (0, 1))
        return self.part != before
