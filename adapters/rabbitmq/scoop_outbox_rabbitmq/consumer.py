"""Receives for one service, on a connection and a channel of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp.commands import Basic

from scoop_outbox.broker import BrokerError, Delivery, own_cancellation_only
from scoop_outbox_rabbitmq.connection import LOST, REFUSED, Link, UnreachableError, close, explain, open_link
from scoop_outbox_rabbitmq.properties import incoming
from scoop_outbox_rabbitmq.route import Route, Routes, route
from scoop_outbox_rabbitmq.settings import Settings
from scoop_outbox_rabbitmq.topology import refusal

log = logging.getLogger(__name__)

_ANSWER = 10.0
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
        self._routes = routes
        self._name = name
        self._hosts = deque(settings.hosts)
        self._channel: AbstractChannel | None = None
        self._arrived: deque[tuple[str, DeliveredMessage]] = deque()
        self._woken = asyncio.Event()
        self._lost = asyncio.Event()
        self._tags: dict[str, str] = {}
        self._paused = False
        # A pause that came while a consumer was being opened found none to cancel, and the consumer lived on.
        self._changing = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None
        self._error: BrokerError | None = None
        self._problem: str | None = "it has not connected yet"
        self._topic = lru_cache(_REMEMBERED)(routes.topic)

    async def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        """Return what has arrived, in order; see the protocol."""
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(self._keep())
        deadline = time.monotonic() + wait
        while not self._may_hand_out:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            self._woken.clear()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._woken.wait()
            except TimeoutError:
                break
        if not self._may_hand_out:
            return []
        return [self._delivery(*self._arrived.popleft()) for _ in range(min(limit, len(self._arrived)))]

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge what was received on the channel that is open now."""
        numbers = [one.tag.number for one in deliveries if one.tag.channel is self._channel]
        if self._channel is None or not numbers:
            return
        try:
            # All below were received before, and so are stored already.
            with own_cancellation_only():
                async with asyncio.timeout(_ANSWER):
                    # Written, not only queued: whoever closes next would leave it unsaid.
                    await self._channel.basic_ack(max(numbers), multiple=True)
        except LOST as error:
            log.info("what was just stored comes again: %s", explain(error))
            self._lose()

    async def pause(self) -> None:
        """Cancel the consumers, and keep what has been sent already: a requeue would count as a failed delivery."""
        self._paused = True
        # With a single active consumer another one would take over, and overtake what is still here.
        if not self._settings.single_active_consumer:
            await self._ask(self._cancel)

    async def resume(self) -> None:
        """Consume again."""
        self._paused = False
        self._woken.set()
        if not self._settings.single_active_consumer:
            await self._ask(self._consume)

    async def close(self) -> None:
        """Close the connection: the broker gives what was not acknowledged to the next consumer."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait((keeper,))
        self._arrived.clear()

    @property
    def problem(self) -> str | None:
        """What keeps this consumer from receiving just now."""
        return self._problem

    @property
    def _may_hand_out(self) -> bool:
        return bool(self._arrived) and not (self._paused and self._settings.single_active_consumer)

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
                    held.callback(self._forget)
                    await self._open(link)
                    # An error that is over would cost a consumer that is well.
                    self._error = self._problem = None
                    opened = time.monotonic()
                    self._problem = f"the connection was lost ({await self._end(link)})"
            except BrokerError as error:
                self._error, self._problem = error, str(error)
            except UnreachableError as error:
                self._problem = str(error)
            except LOST as error:
                self._problem = f"the connection was lost ({explain(error)})"
            except Exception as error:
                # Nobody else would say so: nothing more was received, and the problem stayed what it was before.
                log.exception("what receives from RabbitMQ has stumbled")
                self._problem = f"nothing can be received from RabbitMQ ({type(error).__name__}: {error})"
                self._error = BrokerError(self._problem)
            log.warning("nothing is received from RabbitMQ: %s", self._problem)
            self._woken.set()
            if time.monotonic() - opened >= _STEADY:
                pause = _FIRST_PAUSE
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _open(self, link: Link) -> None:
        self._lost.clear()
        async with asyncio.timeout(_ANSWER):
            channel = await link.channel(publisher_confirms=False)
            channel.on_consumer_cancel_callbacks.add(lambda _: self._lose())
            await channel.basic_qos(prefetch_count=self._settings.prefetch)
            self._channel = channel
            await self._consume()

    async def _end(self, link: Link) -> str:
        """Wait until the channel is of no use any more, and return why."""
        assert self._channel is not None  # noqa: S101 - it was opened above
        ends = (link.closing, self._channel.closing, asyncio.ensure_future(self._lost.wait()))
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                if end.done() and not end.cancelled() and (error := end.exception()) is not None:
                    return explain(error)
            return "the broker has ended the consumer"
        finally:
            for end in ends:
                end.cancel()

    def _forget(self) -> None:
        """Drop what came on a channel that is gone; it comes again."""
        self._channel = None
        self._tags.clear()
        self._arrived.clear()

    def _lose(self) -> None:
        self._lost.set()

    async def _ask(self, what: object) -> None:
        try:
            with own_cancellation_only():
                async with asyncio.timeout(_ANSWER):
                    await what()  # type: ignore[operator]
        except (*LOST, BrokerError):
            self._lose()

    async def _consume(self) -> None:
        async with self._changing:
            channel = self._channel
            if channel is None or (self._paused and not self._settings.single_active_consumer):
                return
            for queue in self._routes.queues:
                if queue in self._tags:
                    continue
                try:
                    answer = await channel.basic_consume(
                        queue, partial(self._take, queue), arguments=dict(self._settings.consumer_arguments)
                    )
                except REFUSED as error:
                    raise refusal(error, queue, self._routes, self._settings) from None
                self._tags[queue] = str(answer.consumer_tag)

    async def _cancel(self) -> None:
        async with self._changing:
            while self._tags and self._channel is not None:
                _, tag = self._tags.popitem()
                await self._channel.basic_cancel(tag)

    async def _take(self, queue: str, message: DeliveredMessage) -> None:
        if message.channel is self._channel:
            self._arrived.append((queue, message))
            self._woken.set()

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
