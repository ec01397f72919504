"""Membership: the place of one member in the consumer group of its service, and what it was handed there."""

from __future__ import annotations

from collections.abc import Sequence

from scoop_outbox._cancellation import own_cancellation_only
from scoop_outbox._log import get_logger
from scoop_outbox.broker.protocol import Broker, Consumer, Delivery, Subscription

log = get_logger(__name__)

BATCH = 500
BATCH_BYTES = 32 * 1024 * 1024
"""Most bytes of bodies in one transaction: a parameter that holds more than a gigabyte ends the connection."""


class Membership:
    """A place in a consumer group that is taken, kept and left.

    It owns the consumer, and the deliveries of which the broker has not been told yet: the first ones may be in the
    database already. It is used by one task.

    Args:
        broker: where the group is.
        subscription: what the group receives.

    Attributes:
        paused: whether the broker is asked for nothing more for now.
    """

    def __init__(self, broker: Broker, subscription: Subscription) -> None:
        """Have no place yet."""
        self._broker = broker
        self._subscription = subscription
        self._consumer: Consumer | None = None
        self._received: list[Delivery] = []  # the broker has not been told of these
        self._stored = 0  # so many of them, the first ones, are in the database
        self.paused = False

    @property
    def joined(self) -> bool:
        """Whether there is a place."""
        return self._consumer is not None

    @property
    def problem(self) -> str | None:
        """What keeps messages from being received just now; None when nothing does, or there is no place."""
        return None if self._consumer is None else self._consumer.problem

    @property
    def received(self) -> bool:
        """Whether there is something of which the broker has not been told."""
        return bool(self._received)

    async def join(self) -> None:
        """Take a place.

        Raises:
            BrokerError: there is none; why, and how to mend it.
        """
        self._consumer = await self._broker.consumer(self._subscription)

    async def receive(self, seconds: float) -> None:
        """Wait so long for deliveries. Also when paused: it keeps the place, and what was sent already comes in."""
        self._received += await self._held().receive(BATCH, seconds)

    def next_portion(self) -> Sequence[Delivery]:
        """Return the deliveries that are stored next, in one transaction; none when all are stored."""
        portion: list[Delivery] = []
        size = 0
        for one in self._received[self._stored : self._stored + BATCH]:
            size += len(one.envelope.body)
            if portion and size > BATCH_BYTES:
                break
            portion.append(one)
        return portion

    def stored(self, count: int) -> None:
        """Note that the next deliveries are in the database."""
        self._stored += count

    async def acknowledge(self) -> None:
        """Tell the broker of everything that was received: it is stored."""
        if self._received:
            await self._held().acknowledge(self._received)
            self._received, self._stored = [], 0

    async def pause(self) -> None:
        """Ask the broker for nothing more; the place is kept as long as `receive` is called."""
        await self._held().pause()
        self.paused = True

    async def resume(self) -> None:
        """Ask the broker for more again."""
        await self._held().resume()
        self.paused = False

    async def leave(self) -> None:
        """Give the place up, if there is one; what the broker was not told of comes again."""
        consumer, self._consumer = self._consumer, None
        self._received, self._stored, self.paused = [], 0, False
        if consumer is not None:
            try:
                with own_cancellation_only():
                    await consumer.close()
            except Exception:
                log.exception(
                    "intake: consumer not closed cleanly (service %s)",
                    self._subscription.service,
                    extra={"service": self._subscription.service},
                )

    def _held(self) -> Consumer:
        assert self._consumer is not None  # noqa: S101 - callers have joined
        return self._consumer
