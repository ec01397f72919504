"""The consumers that RabbitMQ has of a service, one for each queue, and what it has sent them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

from aiormq.abc import AbstractChannel, DeliveredMessage

from scoop_outbox.broker import BrokerError, own_cancellation_only
from scoop_outbox_rabbitmq.connection import LOST, REFUSED, Link, explain
from scoop_outbox_rabbitmq.route import Routes
from scoop_outbox_rabbitmq.settings import Settings
from scoop_outbox_rabbitmq.topology import refusal

ANSWER = 10.0
"""Seconds in which the broker answers what is asked on a channel."""


class Queues:
    """The queues of a subscription, consumed on one channel at a time.

    Args:
        settings: how.
        routes: which queues.
        woken: set when something has arrived, or may be handed out again.

    Attributes:
        channel: where they are consumed; None while there is no connection.
        arrived: what has come on that channel and was not handed out, with the queue that it came from.
    """

    def __init__(self, settings: Settings, routes: Routes, woken: asyncio.Event) -> None:
        """Consume nothing yet."""
        self._settings = settings
        self._routes = routes
        self._woken = woken
        self.channel: AbstractChannel | None = None
        self.arrived: deque[tuple[str, DeliveredMessage]] = deque()
        self._tags: dict[str, str] = {}
        self._paused = False
        # A pause that came while a consumer was being opened found none to cancel, and the consumer lived on.
        self._changing = asyncio.Lock()
        self._lost = asyncio.Event()

    @property
    def may_hand_out(self) -> bool:
        """Whether something has arrived and is not held back."""
        return bool(self.arrived) and not (self._paused and self._settings.single_active_consumer)

    async def open(self, link: Link) -> None:
        """Open a channel and consume on it, unless paused.

        Raises:
            BrokerError: a queue is missing, or it is not permitted to read it.
        """
        self._lost.clear()
        async with asyncio.timeout(ANSWER):
            channel = await link.channel(publisher_confirms=False)
            channel.on_consumer_cancel_callbacks.add(lambda _: self.lose())
            await channel.basic_qos(prefetch_count=self._settings.prefetch)
            self.channel = channel
            await self._consume()

    async def end(self, link: Link) -> str:
        """Wait until the channel is of no use any more, and return why."""
        assert self.channel is not None  # noqa: S101 - it was opened before
        ends = (link.closing, self.channel.closing, asyncio.ensure_future(self._lost.wait()))
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                if end.done() and not end.cancelled() and (error := end.exception()) is not None:
                    return explain(error)
            return "the broker has ended the consumer"
        finally:
            for end in ends:
                end.cancel()

    def lose(self) -> None:
        """Note that the channel is of no use any more."""
        self._lost.set()

    def forget(self) -> None:
        """Drop what came on a channel that is gone; it comes again."""
        self.channel = None
        self._tags.clear()
        self.arrived.clear()

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

    async def _ask(self, what: Callable[[], Awaitable[None]]) -> None:
        try:
            with own_cancellation_only():
                async with asyncio.timeout(ANSWER):
                    await what()
        except (*LOST, BrokerError):
            self.lose()

    async def _consume(self) -> None:
        async with self._changing:
            channel = self.channel
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
            while self._tags and self.channel is not None:
                _, tag = self._tags.popitem()
                await self.channel.basic_cancel(tag)

    async def _take(self, queue: str, message: DeliveredMessage) -> None:
        if message.channel is self.channel:
            self.arrived.append((queue, message))
            self._woken.set()
