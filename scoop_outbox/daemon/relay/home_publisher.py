"""The built-in broker: publishing is taking in, for relay and intake meet in the home's own database."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import psycopg

from scoop_outbox.broker.protocol import ACKNOWLEDGED, PublishStatus, Receipt
from scoop_outbox.core.plans.claim import Hints
from scoop_outbox.core.plans.intake import take_in
from scoop_outbox.message import Envelope
from scoop_outbox.store.faults import DATABASE_ERRORS
from scoop_outbox.store.home import Home
from scoop_outbox.store.reconnecting import ReconnectingDriver

log = logging.getLogger(__name__)


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
        driver = await self._database.connect()
        try:
            await driver.run(take_in(batch, self._hints))
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            # One message that cannot be stored must not stop the others: halve the batch until it is alone.
            if len(batch) == 1:
                log.warning(
                    "relay: message became a dead letter (message %s cannot be taken in: %s)",
                    batch[0].id,
                    type(error).__name__,
                    extra={"message_id": batch[0].id},
                )
                return [Receipt(PublishStatus.PERMANENT, str(error))]
            middle = len(batch) // 2
            return [*await self._publish(batch[:middle]), *await self._publish(batch[middle:])]
        return [ACKNOWLEDGED] * len(batch)

    async def probe(self) -> str | None:
        """Return None: here the broker is the database, and whether that answers is known."""
        return None

    async def close(self) -> None:
        """See `Publisher.close`."""
        await self._database.close()
