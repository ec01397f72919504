"""Publishes batches: persistent, mandatory, confirmed, and in an order that a message's key can rely on."""

from __future__ import annotations

import asyncio
import time
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

from scoop_outbox.broker import (
    ACKNOWLEDGED,
    BrokerError,
    Envelope,
    PublishStatus,
    Receipt,
    get_logger,
    own_cancellation_only,
)
from scoop_outbox_rabbitmq.channels import Channels
from scoop_outbox_rabbitmq.connection import LOST, REFUSED, Link, UnreachableError, explain
from scoop_outbox_rabbitmq.properties import UnpublishableError, check_size, outgoing
from scoop_outbox_rabbitmq.route import Route, check_exchange_name, route
from scoop_outbox_rabbitmq.settings import Settings
from scoop_outbox_rabbitmq.window import Window

log = get_logger(__name__)

BEGIN_WITHIN = 5.0
"""Seconds of a batch in which messages are sent; a key's next one is when the one before it was confirmed."""
ANSWER_WITHIN = 8.0
"""Seconds after which what was sent and is not confirmed failed for now, and the connection with it."""
_SIGN_OF_LIFE = 5.0
_UNBLOCKED_WITHIN = 1.0
"""Seconds in which RabbitMQ may take back that it blocks publishers."""
WINDOW = 500

_SILENT = "the broker has not answered in time; rabbitmqctl status shows whether it is short of memory or disk"
_SLOW = "there was no time for it: the broker confirms slowly, and the messages of a key go one after the other"
_BLOCKED = "RabbitMQ blocks publishers: it is short of memory or disk; rabbitmqctl status shows it"
_TOO_MANY = (
    "its batch is for more exchanges than channels are allowed (channel_max): one is needed for each. "
    "It is sent with a later batch"
)
_LARGE = 64 * 1024
_PLACES_OF_LARGE = WINDOW // 16

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
        self._begin_until = 0.0
        self._channels = Channels(settings, name)
        self._window = Window(WINDOW)
        self._problem: str | None = None

    async def publish(self, batch: Sequence[Envelope]) -> Sequence[Receipt]:
        """Publish messages and return a receipt for each; see the protocol."""
        receipts: list[Receipt | None] = [None] * len(batch)
        items: dict[int, _Item] = {}
        for index, envelope in enumerate(batch):
            try:
                where = route(envelope.topic, self._settings.exchange)
                check_exchange_name(where.exchange)
                items[index] = _Item(envelope, where, outgoing(envelope, where))
            except (UnpublishableError, BrokerError) as error:
                receipts[index] = Receipt(PublishStatus.PERMANENT, str(error))
        problem = None
        self._begin_until = time.monotonic() + BEGIN_WITHIN
        try:
            with own_cancellation_only():
                async with asyncio.timeout(ANSWER_WITHIN):
                    await self._publish(list(items.values()))
        except TimeoutError:
            problem = _SILENT
            await self._channels.drop_unless_blocked()
        except (UnreachableError, BrokerError) as error:
            problem = str(error)
        except LOST as error:
            problem = f"the connection was lost ({explain(error)})"
            await self._channels.drop()
        if problem is not None and problem != self._problem:
            log.warning("rabbitmq: cannot publish (%s)", problem, extra={"reason": problem})
        self._problem = problem
        waiting = Receipt(PublishStatus.RETRIABLE, problem or "the connection was lost")
        for index, item in items.items():
            receipts[index] = item.receipt
        return [receipt or waiting for receipt in receipts]

    async def probe(self) -> str | None:
        """See whether there is a connection, or can be; see the protocol."""
        try:
            async with asyncio.timeout(_SIGN_OF_LIFE):
                link = await self._channels.connected()
            if await link.blocked(0):
                return _BLOCKED
        except TimeoutError:
            return _SILENT
        except UnreachableError as error:
            return str(error)
        return None

    async def close(self) -> None:
        """Close the connection."""
        await self._channels.drop()

    async def _publish(self, items: Sequence[_Item]) -> None:
        link = await self._channels.connected()
        if await link.blocked(_UNBLOCKED_WITHIN):
            raise UnreachableError(_BLOCKED)
        for item in items:
            try:
                check_size(item.envelope, item.properties, link.connection_tune.frame_max)
            except UnpublishableError as error:
                item.receipt = Receipt(PublishStatus.PERMANENT, str(error))
        missing = await self._missing(items)
        for item in items:
            item.receipt = item.receipt or missing.get(item.route.exchange)
        _hold_back(items)
        await self._at_once(link, [item for item in items if item.receipt is None])
        unsettled = [item for item in items if item.receipt is None]
        if unsettled and (self._channels.link is not None or self._was_killed(link)):
            await self._one_by_one(items, unsettled, missing)

    async def _one_by_one(
        self, items: Sequence[_Item], unsettled: Sequence[_Item], missing: dict[str, Receipt]
    ) -> None:
        """Publish what is unsettled: one of it has cost us the channel, and only that one may fail for it."""
        held: dict[str, Receipt] = {}
        for item in items:
            if item.envelope.key is not None and item.receipt is not None and _is_retriable(item.receipt):
                held[item.envelope.key] = item.receipt
        for item in unsettled:
            key, exchange = item.envelope.key, item.route.exchange
            item.receipt = missing.get(exchange) or (None if key is None else held.get(key)) or self._too_late()
            if item.receipt is None:
                item.receipt = await self._alone(item, missing)
            if key is not None and _is_retriable(item.receipt):
                held[key] = item.receipt

    async def _missing(self, items: Sequence[_Item]) -> dict[str, Receipt]:
        """Open what channels are needed; return what becomes of what is for exchanges that do not exist."""
        missing = {}
        needed = {item.route.exchange for item in items if item.receipt is None}
        for item in items:
            exchange = item.route.exchange
            if item.receipt is None and exchange not in missing and not self._channels.has(exchange):
                if not await self._channels.may_open_another(needed):
                    missing[exchange] = Receipt(PublishStatus.RETRIABLE, _TOO_MANY)
                    continue
                try:
                    await self._channels.check(exchange)
                except REFUSED as error:
                    missing[exchange] = Receipt(PublishStatus.PERMANENT, _refusal(error, item))
        self._channels.use(needed)
        return missing

    async def _at_once(self, link: Link, items: Iterable[_Item]) -> None:
        """Publish in windows until all is answered or the connection is lost."""
        chains: dict[str, list[_Item]] = {}
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
            await self._channels.drop()

    async def _all(self, chains: Iterable[Sequence[_Item]]) -> None:
        await asyncio.gather(*map(self._chain, chains))

    async def _chain(self, items: Sequence[_Item]) -> None:
        """Publish messages that must stay in order: each when the one before it is the broker's."""
        for index, item in enumerate(items):
            places = _PLACES_OF_LARGE if len(item.envelope.body) > _LARGE else 1
            await self._window.enter(places)
            try:
                channel = self._channels.by_exchange.get(item.route.exchange)
                if channel is None:  # it went with the connection
                    return
                item.receipt = self._too_late() or await self._one(item, channel)
            except LOST:
                return
            except Exception as error:  # noqa: BLE001 - it is logged, and costs no other message
                item.receipt = _stumbled(error)
            finally:
                self._window.leave(places)
            if _is_retriable(item.receipt):
                for later in items[index + 1 :]:
                    later.receipt = item.receipt
                return

    def _too_late(self) -> Receipt | None:
        """Return what becomes of a message that is not sent any more, when it is too late to."""
        return Receipt(PublishStatus.RETRIABLE, _SLOW) if time.monotonic() >= self._begin_until else None

    async def _alone(self, item: _Item, missing: dict[str, Receipt]) -> Receipt:
        """Publish one message with nothing else in flight: what happens to the channel is its doing."""
        try:
            channel = await self._channels.get(item.route.exchange)
            return await self._one(item, channel)
        except (*REFUSED, *_FATAL) as error:
            receipt = Receipt(PublishStatus.PERMANENT, _refusal(error, item))
            if isinstance(error, ChannelNotFoundEntity):
                missing[item.route.exchange] = receipt
            return receipt
        except LOST as error:
            return Receipt(PublishStatus.RETRIABLE, f"the connection was lost ({explain(error)})")
        except Exception as error:  # noqa: BLE001 - it is logged, and costs no other message
            return _stumbled(error)

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
            return Receipt(PublishStatus.PERMANENT, _unroutable(item.route))
        except DeliveryError:
            return Receipt(PublishStatus.RETRIABLE, "a queue does not take it: it is full, or has no leader")
        except (ValueError, TypeError) as error:
            return Receipt(PublishStatus.PERMANENT, f"it cannot be written as AMQP: {error}")
        return ACKNOWLEDGED

    @staticmethod
    def _was_killed(link: Link) -> bool:
        """Tell whether the broker has closed a connection because of what it was sent."""
        # The channel of messages behind one that is refused is gone, and RabbitMQ may mind that they come.
        return isinstance(link.end, (*_FATAL, ConnectionChannelError))


def _is_retriable(receipt: Receipt) -> bool:
    return receipt.status is PublishStatus.RETRIABLE


def _hold_back(items: Iterable[_Item]) -> None:
    """Let what comes behind a message of its key that fails for now fail with it."""
    held: dict[str, Receipt] = {}
    for item in items:
        key = item.envelope.key
        if key is None:
            continue
        item.receipt = item.receipt or held.get(key)
        if item.receipt is not None and _is_retriable(item.receipt):
            held[key] = item.receipt


def _stumbled(error: Exception) -> Receipt:
    """Return what becomes of a message when nobody knows what is wrong: no other one may fail for it."""
    log.error("rabbitmq: publishing a message failed unexpectedly", exc_info=error)
    return Receipt(PublishStatus.RETRIABLE, f"it could not be published ({type(error).__name__}: {error})")


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
