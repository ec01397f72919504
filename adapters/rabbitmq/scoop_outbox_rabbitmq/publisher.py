"""Publishes batches: persistent, mandatory, confirmed, and in an order that a message's key can rely on."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aiormq.channel import Channel
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ConnectionChannelError,
    ConnectionCommandInvalid,
    ConnectionFrameError,
    ConnectionNotImplemented,
    ConnectionSyntaxError,
    ConnectionUnexpectedFrame,
    DeliveryError,
    PublishError,
)
from pamqp.commands import Basic

from scoop_outbox.broker.protocol import ACKNOWLEDGED, Receipt, Verdict
from scoop_outbox.cancellation import own_cancellation_only
from scoop_outbox.errors import BrokerError
from scoop_outbox.message import Envelope
from scoop_outbox_rabbitmq.connection import LOST, REFUSED, Link, UnreachableError, close, explain, open_link
from scoop_outbox_rabbitmq.properties import UnpublishableError, check_size, outgoing
from scoop_outbox_rabbitmq.route import Route, route
from scoop_outbox_rabbitmq.settings import Settings

log = logging.getLogger(__name__)

BEGIN_WITHIN = 5.0
"""Seconds of a batch in which messages are sent; a key's next one is when the one before it was confirmed."""
ANSWER_WITHIN = 8.0
"""Seconds after which what was sent and is not confirmed failed for now, and the connection with it."""
_SIGN_OF_LIFE = 5.0
WINDOW = 500

_SILENT = "the broker has not answered in time; rabbitmqctl status shows whether it is short of memory or disk"
_SLOW = "there was no time for it: the broker confirms slowly, and the messages of a key go one after the other"
_LARGE = 64 * 1024
_WINDOW_OF_LARGE = 16

# The broker gives up the connection for the sake of what was in one message.
_FATAL = (
    ConnectionFrameError,
    ConnectionSyntaxError,
    ConnectionCommandInvalid,
    ConnectionUnexpectedFrame,
    ConnectionNotImplemented,
)


@dataclass(slots=True)
class _Item:
    """One message of a batch on its way."""

    envelope: Envelope
    route: Route
    properties: Basic.Properties
    receipt: Receipt | None = None


class RabbitPublisher:
    """Publishes on one connection, with a channel for each exchange.

    Args:
        settings: where.
        name: what the broker's operators see.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        """Connect nothing yet."""
        self._settings = settings
        self._name = name
        self._hosts = deque(settings.hosts)
        self._link: Link | None = None
        self._begin_until = 0.0
        # One for each exchange: a channel dies of a missing exchange, with all that is in flight on it.
        self._channels: dict[str, Channel] = {}
        self._window = asyncio.Semaphore(WINDOW)
        self._large = asyncio.Semaphore(_WINDOW_OF_LARGE)
        self._trouble: str | None = None

    async def publish(self, batch: Sequence[Envelope]) -> Sequence[Receipt]:
        """Publish messages and return a receipt for each; see the protocol."""
        receipts: list[Receipt | None] = [None] * len(batch)
        items: dict[int, _Item] = {}
        for index, envelope in enumerate(batch):
            try:
                where = route(envelope.topic, self._settings.exchange)
                items[index] = _Item(envelope, where, outgoing(envelope, where))
            except (UnpublishableError, BrokerError) as error:
                receipts[index] = Receipt(Verdict.FAILED_FOR_GOOD, str(error))
        trouble = None
        self._begin_until = time.monotonic() + BEGIN_WITHIN
        try:
            with own_cancellation_only():
                async with asyncio.timeout(ANSWER_WITHIN):
                    await self._publish(list(items.values()))
        except TimeoutError:
            trouble = _SILENT
            await self._drop()
        except (UnreachableError, BrokerError) as error:
            trouble = str(error)
        except LOST as error:
            trouble = f"the connection was lost ({explain(error)})"
            await self._drop()
        if trouble is not None and trouble != self._trouble:
            log.warning("nothing can be published: %s", trouble)
        self._trouble = trouble
        waiting = Receipt(Verdict.FAILED_FOR_NOW, trouble or "the connection was lost")
        for index, item in items.items():
            receipts[index] = item.receipt
        return [receipt or waiting for receipt in receipts]

    async def probe(self) -> str | None:
        """See whether there is a connection, or can be; see the protocol."""
        try:
            async with asyncio.timeout(_SIGN_OF_LIFE):
                await self._connected()
        except TimeoutError:
            return _SILENT
        except UnreachableError as error:
            return str(error)
        return None

    async def close(self) -> None:
        """Close the connection."""
        await self._drop()

    async def _publish(self, items: Sequence[_Item]) -> None:
        link = await self._connected()
        for item in items:
            try:
                check_size(item.envelope, item.properties, link.connection_tune.frame_max)
            except UnpublishableError as error:
                item.receipt = Receipt(Verdict.FAILED_FOR_GOOD, str(error))
        missing = await self._missing(items)
        for item in items:
            item.receipt = item.receipt or missing.get(item.route.exchange)
        await self._at_once(link, [item for item in items if item.receipt is None])
        unsettled = [item for item in items if item.receipt is None]
        if not unsettled or (self._link is None and not self._was_killed(link)):
            return
        # One of them has cost us the channel, and only it may fail for that: now one by one, to see which.
        held: dict[str, Receipt] = {}
        for item in items:
            if item.envelope.key is not None and item.receipt is not None and _failed_for_now(item.receipt):
                held[item.envelope.key] = item.receipt
        for item in unsettled:
            key, exchange = item.envelope.key, item.route.exchange
            item.receipt = missing.get(exchange) or (None if key is None else held.get(key)) or self._too_late()
            if item.receipt is None:
                item.receipt = await self._alone(item, missing)
            if key is not None and _failed_for_now(item.receipt):
                held[key] = item.receipt

    async def _missing(self, items: Sequence[_Item]) -> dict[str, Receipt]:
        """Open what channels are needed; return the verdict on what is for exchanges that do not exist."""
        missing = {}
        for item in items:
            exchange = item.route.exchange
            if item.receipt is None and exchange not in missing and not self._has_channel(exchange):
                try:
                    channel = await self._channel(exchange)
                    if exchange:
                        await channel.exchange_declare(exchange, passive=True)
                except ChannelAccessRefused:
                    # Some versions demand more of whoever asks than of whoever publishes. Publishing will tell.
                    await self._channel(exchange)
                except REFUSED as error:
                    missing[exchange] = Receipt(Verdict.FAILED_FOR_GOOD, _refusal(error, item))
        return missing

    async def _at_once(self, link: Link, items: Iterable[_Item]) -> None:
        """Publish in windows until all is answered or the connection is lost."""
        chains: dict[str | uuid.UUID, list[_Item]] = {}
        for item in items:
            key = None if self._settings.pipeline else item.envelope.key
            # By id otherwise: the client finds by it what the broker has returned.
            chains.setdefault(item.envelope.id if key is None else key, []).append(item)
        chained = asyncio.create_task(self._all(chains.values()))
        lost = link.closing
        try:
            # What waits for a dead connection to take its bytes would never be told.
            await asyncio.wait((chained, lost), return_when=asyncio.FIRST_COMPLETED)
        finally:
            lost.cancel()
            if not chained.done():
                chained.cancel()
                await asyncio.wait((chained,))
        if not chained.cancelled():
            chained.result()
        if link.is_closed:
            await self._drop()

    async def _all(self, chains: Iterable[Sequence[_Item]]) -> None:
        await asyncio.gather(*map(self._chain, chains))

    async def _chain(self, items: Sequence[_Item]) -> None:
        """Publish messages that must stay in order: each when the one before it is the broker's."""
        for index, item in enumerate(items):
            async with self._large if len(item.envelope.body) > _LARGE else self._window:
                item.receipt = self._too_late()
                try:
                    item.receipt = item.receipt or await self._one(item, self._channels[item.route.exchange])
                except LOST:
                    return
            if _failed_for_now(item.receipt):
                for later in items[index + 1 :]:
                    later.receipt = item.receipt
                return

    def _too_late(self) -> Receipt | None:
        """Return what becomes of a message that is not sent any more, when it is too late to."""
        return Receipt(Verdict.FAILED_FOR_NOW, _SLOW) if time.monotonic() >= self._begin_until else None

    async def _alone(self, item: _Item, missing: dict[str, Receipt]) -> Receipt:
        """Publish one message with nothing else in flight: what happens to the channel is its doing."""
        try:
            channel = await self._channel(item.route.exchange)
            return await self._one(item, channel)
        except (*REFUSED, *_FATAL) as error:
            receipt = Receipt(Verdict.FAILED_FOR_GOOD, _refusal(error, item))
            if isinstance(error, ChannelNotFoundEntity):
                missing[item.route.exchange] = receipt
            return receipt
        except LOST as error:
            return Receipt(Verdict.FAILED_FOR_NOW, f"the connection was lost ({explain(error)})")

    async def _one(self, item: _Item, channel: Channel) -> Receipt:
        try:
            with own_cancellation_only():
                await channel.basic_publish(
                    item.envelope.body,
                    exchange=item.route.exchange,
                    routing_key=item.route.key,
                    properties=item.properties,
                    mandatory=self._settings.mandatory,
                    # Nothing waits for bytes to be written: behind the end of a channel that would cost the connection.
                    wait=False,
                )
        except PublishError:
            return Receipt(Verdict.FAILED_FOR_GOOD, _unroutable(item.route))
        except DeliveryError:
            return Receipt(Verdict.FAILED_FOR_NOW, "a queue does not take it: it is full, or has no leader")
        except (ValueError, TypeError) as error:
            return Receipt(Verdict.FAILED_FOR_GOOD, f"it cannot be written as AMQP: {error}")
        return ACKNOWLEDGED

    @staticmethod
    def _was_killed(link: Link) -> bool:
        """Tell whether the broker has closed a connection because of what it was sent."""
        # The channel of messages behind one that is refused is gone, and RabbitMQ may mind that they come.
        return isinstance(link.end, (*_FATAL, ConnectionChannelError))

    async def _connected(self) -> Link:
        if self._link is None or self._link.is_closed:
            await self._drop()
            self._link = await open_link(self._settings, self._name, self._hosts)
        return self._link

    def _has_channel(self, exchange: str) -> bool:
        channel = self._channels.get(exchange)
        return channel is not None and not channel.is_closed

    async def _channel(self, exchange: str) -> Channel:
        link = await self._connected()
        channel = self._channels.get(exchange)
        if channel is None or channel.is_closed:
            opened = await link.channel(on_return_raises=True)
            assert isinstance(opened, Channel)  # noqa: S101 - the client's own type says less
            channel = self._channels[exchange] = opened
        return channel

    async def _drop(self) -> None:
        link, self._link = self._link, None
        self._channels.clear()
        if link is not None:
            await close(link)


def _failed_for_now(receipt: Receipt) -> bool:
    return receipt.verdict is Verdict.FAILED_FOR_NOW


def _unroutable(to: Route) -> str:
    if to.is_queue:
        return f"there is no queue {to.key!r}"
    return (
        f"no queue is bound to exchange {to.exchange!r} for routing key {to.key!r}: bind one, by scoop-outbox topology "
        "apply of the service that wants it, or set mandatory=false to have such messages dropped"
    )


def _refusal(error: BaseException, item: _Item) -> str:
    said = explain(error)
    if isinstance(error, ChannelNotFoundEntity):
        return f"there is no exchange {item.route.exchange!r}: declare it, or run scoop-outbox topology apply ({said})"
    if isinstance(error, ChannelAccessRefused):
        return f"it is not permitted: {said}: rabbitmqctl set_permissions -p VHOST USER CONFIGURE WRITE READ"
    return f"the broker refuses it: {said}"
