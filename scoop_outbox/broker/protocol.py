"""The seam to a broker: narrow, and all that an adapter may import besides `scoop_outbox.message`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from scoop_outbox.message import Envelope


class Verdict(Enum):
    """What a broker says of one message."""

    ACKNOWLEDGED = auto()  # it is the broker's now, durably
    FAILED_FOR_NOW = auto()  # the same message may go through later: no connection, no leader, no room
    FAILED_FOR_GOOD = auto()  # it will never go through: too large, no such topic, not permitted


@dataclass(frozen=True, slots=True)
class Receipt:
    """The verdict on one message, with the broker's reason when it failed."""

    verdict: Verdict
    reason: str = ""


ACKNOWLEDGED = Receipt(Verdict.ACKNOWLEDGED)


class Publisher(Protocol):
    """Publishes. One relay uses one publisher, one batch at a time."""

    async def publish(self, batch: Sequence[Envelope]) -> Sequence[Receipt]:
        """Publish messages in order, and return a receipt for each, in the same order.

        A message that fails for now takes the later messages of its key with it: they are not published, and get
        the same verdict, so that the order within a key is kept when the relay tries again. A message may reach the
        broker more than once; it must never be acknowledged without having reached it.
        """

    async def close(self) -> None:
        """Let go of connections. What was not acknowledged will be published again."""


class Delivery(Protocol):
    """A message that a broker handed over and has not yet been told about."""

    @property
    def envelope(self) -> Envelope:
        """The message."""


class Consumer(Protocol):
    """Receives for one service: every message reaches each service, and one process of it."""

    async def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        """Return up to `limit` messages, waiting at most `wait` seconds for the first."""

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Tell the broker that these are stored durably and need not come again."""

    async def close(self) -> None:
        """Leave; what was not acknowledged is delivered again, to this service."""


class Broker(Protocol):
    """What an adapter's entry point returns for a URL."""

    async def publisher(self) -> Publisher:
        """Open a publisher.

        Raises:
            BrokerError: the settings are wrong; a broker that is merely down is no error here.
        """

    async def consumer(self, topics: Sequence[str], group: str) -> Consumer:
        """Open a consumer of `topics` for the service `group`.

        Raises:
            BrokerError: the settings are wrong; a broker that is merely down is no error here.
        """
