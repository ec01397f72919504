"""Signing: what other homes are to believe is signed on its way to the broker."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scoop_outbox.broker.protocol import Publisher, Receipt
from scoop_outbox.message import Envelope
from scoop_outbox.wire import headers as wire
from scoop_outbox.wire.control import control_topic, homes_topic
from scoop_outbox.wire.signature import ControlKeys


class SigningPublisher:
    """Publishes as another publisher does, and signs what other homes are to believe.

    That is what they are told on control topics, and that somebody waits for them to handle a message.

    Args:
        publisher: does the rest.
        keys: the first one signs.
        prefix: what the topics begin with on which homes speak.
        published_as: tells how the broker's publisher writes a topic into its header.
    """

    def __init__(
        self, publisher: Publisher, keys: ControlKeys, prefix: str, published_as: Callable[[str], str]
    ) -> None:
        """Open nothing."""
        self._publisher = publisher
        self._keys = keys
        self._channels = control_topic(prefix, "")
        self._homes = homes_topic(prefix)
        self._published_as = published_as

    async def publish(self, batch: Sequence[Envelope]) -> Sequence[Receipt]:
        """See `Publisher.publish`."""
        return await self._publisher.publish([self._signed(one) if self._is_ours(one) else one for one in batch])

    def _is_ours(self, envelope: Envelope) -> bool:
        topic = envelope.topic
        return wire.EXPECTS in envelope.headers or topic == self._homes or topic.startswith(self._channels)

    def _signed(self, envelope: Envelope) -> Envelope:
        sent = {**wire.outgoing(envelope), wire.TOPIC: self._published_as(envelope.topic)}
        signature = self._keys.sign(sent, envelope.body)
        return envelope._replace(headers={**envelope.headers, wire.SIGNATURE: signature})

    async def probe(self) -> str | None:
        """See `Publisher.probe`."""
        return await self._publisher.probe()

    async def close(self) -> None:
        """See `Publisher.close`."""
        await self._publisher.close()
