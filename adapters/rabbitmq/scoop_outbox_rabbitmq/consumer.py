"""Receives for one service, on a connection and a channel of its own."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp.commands import Basic

from scoop_outbox.broker import BrokerError, Delivery, get_logger, own_cancellation_only
from scoop_outbox_rabbitmq.connection import LOST, UnreachableError, close, explain, open_link
from scoop_outbox_rabbitmq.properties import incoming
from scoop_outbox_rabbitmq.queues import ANSWER, Queues
from scoop_outbox_rabbitmq.route import Route, Routes, route
from scoop_outbox_rabbitmq.settings import Settings

log = get_logger(__name__)

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
_STEADY = 10.0
"""Seconds after which a connection is no sign of a problem when it ends."""
_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class _Tag:
    """What acknowledges a delivery: its number, which means something on its own channel only."""

    channel: AbstractChannel
    number: int


class RabbitConsumer:
    """Receives from the queues of a subscription.

    Args:
        settings: where.
        routes: which queues, and the topics of what comes out of them.
        name: what the broker's operators see.
    """

    def __init__(self, settings: Settings, routes: Routes, name: str) -> None:
        """Connect nothing yet."""
        self._settings = settings
        self._name = name
        self._hosts = deque(settings.hosts)
        self._woken = asyncio.Event()
        self._queues = Queues(settings, routes, self._woken)
        self._keeper: asyncio.Task[None] | None = None
        self._error: BrokerError | None = None
        self._problem: str | None = "it has not connected yet"
        self._topic = lru_cache(_REMEMBERED)(routes.topic)

    async def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        """Return what has arrived, in order; see the protocol."""
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(self._keep())
        deadline = time.monotonic() + wait
        while not self._queues.may_hand_out:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            self._woken.clear()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._woken.wait()
            except TimeoutError:
                break
        if not self._queues.may_hand_out:
            return []
        arrived = self._queues.arrived
        return [self._delivery(*arrived.popleft()) for _ in range(min(limit, len(arrived)))]

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge what was received on the channel that is open now."""
        channel = self._queues.channel
        numbers = [one.tag.number for one in deliveries if one.tag.channel is channel]
        if channel is None or not numbers:
            return
        try:
            # All below were received before, and so are stored already.
            with own_cancellation_only():
                async with asyncio.timeout(ANSWER):
                    # Written, not only queued: whoever closes next would leave it unsaid.
                    await channel.basic_ack(max(numbers), multiple=True)
        except LOST as error:
            log.info("rabbitmq: acknowledgement failed, stored messages will come again (%s)", explain(error))
            self._queues.lose()

    async def pause(self) -> None:
        """Receive no more, and keep what has been sent already; see the protocol."""
        await self._queues.pause()

    async def resume(self) -> None:
        """Receive again."""
        await self._queues.resume()

    async def close(self) -> None:
        """Close the connection: the broker gives what was not acknowledged to the next consumer."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait((keeper,))
        self._queues.arrived.clear()

    @property
    def problem(self) -> str | None:
        """What keeps this consumer from receiving just now."""
        return self._problem

    async def _keep(self) -> None:
        """Stay connected."""
        pause = _FIRST_PAUSE
        while True:
            opened = math.inf
            try:
                async with contextlib.AsyncExitStack() as held:
                    held.enter_context(own_cancellation_only())
                    link = await open_link(self._settings, self._name, self._hosts)
                    held.push_async_callback(close, link)
                    held.callback(self._queues.forget)
                    await self._queues.open(link)
                    # An error that is over would cost a consumer that is well.
                    self._error = self._problem = None
                    opened = time.monotonic()
                    self._problem = f"the connection was lost ({await self._queues.end(link)})"
            except BrokerError as error:
                self._error, self._problem = error, str(error)
            except UnreachableError as error:
                self._problem = str(error)
            except LOST as error:
                self._problem = f"the connection was lost ({explain(error)})"
            except Exception as error:
                # Nobody else would say so: nothing more was received, and the problem stayed what it was before.
                log.exception("rabbitmq: consumer failed unexpectedly, reconnecting")
                self._problem = f"nothing can be received from RabbitMQ ({type(error).__name__}: {error})"
                self._error = BrokerError(self._problem)
            log.warning("rabbitmq: cannot receive, reconnecting (%s)", self._problem, extra={"reason": self._problem})
            self._woken.set()
            if time.monotonic() - opened >= _STEADY:
                pause = _FIRST_PAUSE
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _delivery(self, queue: str, message: DeliveredMessage) -> Delivery:
        deliver = message.delivery
        assert isinstance(deliver, Basic.Deliver)  # noqa: S101 - it came to a consumer
        arrived = Route(deliver.exchange or "", deliver.routing_key or "")
        number = deliver.delivery_tag or 0
        found = self._topic(queue, arrived)
        # What an operator moves back into the queue of a topic, with a shovel say, comes straight into it.
        moved_back = found.known and arrived == Route("", queue)
        return incoming(
            queue=queue,
            found=found,
            arrived=arrived,
            home=route(found.topic, self._settings.exchange) if moved_back else None,
            properties=message.header.properties,
            body=message.body,
            by_content=self._settings.content_identity,
            tag=_Tag(message.channel, number),
            number=number,
        )
