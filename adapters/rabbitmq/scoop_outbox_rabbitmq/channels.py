"""The connection of a publisher, and on it a channel for each exchange."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable

from aiormq.channel import Channel
from aiormq.exceptions import ChannelAccessRefused

from scoop_outbox_rabbitmq.connection import Link, close, open_link
from scoop_outbox_rabbitmq.settings import Settings


class Channels:
    """One connection at a time, and its channels.

    A channel for each exchange: it dies of a missing exchange, with all that is in flight on it.

    Args:
        settings: where.
        name: what the broker's operators see.

    Attributes:
        link: the connection, if one was opened and not dropped.
        by_exchange: the channels that were opened on it; those used last are the last ones.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        """Connect nothing yet."""
        self._settings = settings
        self._name = name
        self._hosts = deque(settings.hosts)
        self.link: Link | None = None
        self.by_exchange: dict[str, Channel] = {}

    async def connected(self) -> Link:
        """Return a connection that is open, as far as anybody knows.

        Raises:
            UnreachableError: there is none to be had.
            BrokerError: nor will there be.
        """
        if self.link is None or self.link.is_closed:
            await self.drop()
            self.link = await open_link(self._settings, self._name, self._hosts)
        return self.link

    def has(self, exchange: str) -> bool:
        """Tell whether there is an open channel for an exchange."""
        channel = self.by_exchange.get(exchange)
        return channel is not None and not channel.is_closed

    async def get(self, exchange: str) -> Channel:
        """Return an open channel for an exchange, which need not exist."""
        link = await self.connected()
        channel = self.by_exchange.get(exchange)
        if channel is None or channel.is_closed:
            opened = await link.channel(link.free_channel(), on_return_raises=True)
            assert isinstance(opened, Channel)  # noqa: S101 - the client's own type says less
            channel = self.by_exchange[exchange] = opened
        return channel

    async def check(self, exchange: str) -> None:
        """Open a channel for an exchange, and see whether that exists.

        Raises:
            aiormq.exceptions.AMQPError: one of `REFUSED`, if it does not.
        """
        try:
            channel = await self.get(exchange)
            if exchange:
                await channel.exchange_declare(exchange, passive=True)
        except ChannelAccessRefused:
            # Some versions demand more of whoever asks than of whoever publishes. Publishing will tell.
            await self.get(exchange)

    async def may_open_another(self, needed: Container[str]) -> bool:
        """Tell whether one more channel is allowed; close those used longest ago that are not needed for it."""
        link = await self.connected()
        for exchange in [one for one in self.by_exchange if one not in needed]:
            if link.free_channel() is not None:
                break
            await self.by_exchange.pop(exchange).close()
        return link.free_channel() is not None

    def use(self, exchanges: Iterable[str]) -> None:
        """Note that channels are used now: they are closed after those used longer ago."""
        for exchange in exchanges:
            if exchange in self.by_exchange:
                self.by_exchange[exchange] = self.by_exchange.pop(exchange)

    async def drop_unless_blocked(self) -> None:
        """Close the connection, but to a broker that blocks publishers.

        That one does not read, nor see that we have closed. It takes what it was sent all the same when it goes on:
        each try on a connection of its own left one more, and another copy of the messages.
        """
        if self.link is None or not await self.link.blocked(0):
            await self.drop()

    async def drop(self) -> None:
        """Close the connection, with all channels."""
        link, self.link = self.link, None
        self.by_exchange.clear()
        if link is not None:
            await close(link)
