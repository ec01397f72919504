"""The built-in broker: publishing is taking in, for relay and intake meet in the home's own database."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from scoop_outbox._log import get_logger
from scoop_outbox.broker.protocol import ACKNOWLEDGED, PublishStatus, Receipt
from scoop_outbox.core.plans.claim import Hints
from scoop_outbox.core.plans.intake import take_in
from scoop_outbox.daemon.bisection import bisect
from scoop_outbox.message import Envelope
from scoop_outbox.store.faults import DATABASE_ERRORS, words
from scoop_outbox.store.home import Home
from scoop_outbox.store.reconnecting import ReconnectingDriver

log = get_logger(__name__)


class HomePublisher:
    """Publishes into the home itself: a message becomes runs of the sagas that handle it, in one transaction a batch.

    Args:
        home: where messages come from and go to.
        hints: told which runs have mail.
    """

    def __init__(self, home: Home, hints: Hints) -> None:
        """Connect at the first batch."""
        self._database = ReconnectingDriver(home.url, home.connect, "built-in broker", log)
        self._hints = hints

    async def publish(self, batch: Sequence[Envelope]) -> Sequence[Receipt]:
        """See `Publisher.publish`."""
        try:
            receipts = await self._publish(batch)
        except DATABASE_ERRORS as error:
            # Not the messages' fault, as far as we know: they stay where they are, until the relay tries again.
            await self._database.failed(error)
            return [Receipt(PublishStatus.RETRIABLE, type(error).__name__)] * len(batch)
        self._database.answered()
        return receipts

    async def _publish(self, batch: Sequence[Envelope]) -> Sequence[Receipt]:
        receipts: list[Receipt] = []

        async def store(part: Sequence[Envelope]) -> None:
            driver = await self._database.connect()
            await driver.run(take_in(part, self._hints))
            receipts.extend([ACKNOWLEDGED] * len(part))

        async def refused(envelope: Envelope, error: psycopg.Error) -> None:
            log.warning(
                "relay: message refused (message %s cannot be taken in: %s)",
                *(envelope.id, type(error).__name__),
                extra={"message_id": envelope.id},
            )
            receipts.append(Receipt(PublishStatus.PERMANENT, words(error)))

        await bisect(batch, store, refused)
        return receipts

    async def probe(self) -> str | None:
        """Return None: here the broker is the database, and whether that answers is known."""
        return None

    async def close(self) -> None:
        """See `Publisher.close`."""
        await self._database.close()
