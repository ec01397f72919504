"""The brokers that the contract is run with here, each on a server of its own that the tests may stop and freeze."""

import asyncio
from collections.abc import Mapping

import aio_pika

from scoop_outbox.testing.contract import Harness
from scoop_outbox.testing.rabbitmq import RabbitServer


class RabbitHarness(Harness):
    """RabbitMQ; topics are routing keys on `amq.topic`."""

    def __init__(self, server: RabbitServer, settings: Mapping[str, object] | None = None) -> None:
        # What RabbitMQ refuses unless it is told otherwise.
        super().__init__(server.url, settings, oversize=128 * 1024 * 1024 + 1)
        self._server = server

    async def publish_foreign(self, topic: str, key: bytes | None, body: bytes, headers: Mapping[str, str]) -> None:
        assert self.url is not None
        async with await aio_pika.connect(self.url) as connection:
            channel = await connection.channel(on_return_raises=True)
            exchange = await channel.get_exchange("amq.topic")
            await exchange.publish(aio_pika.Message(body, headers=dict(headers)), topic)

    async def stop(self) -> None:
        await asyncio.to_thread(self._server.stop)

    async def start(self) -> None:
        await asyncio.to_thread(self._server.start)

    async def freeze(self) -> None:
        self._server.freeze()

    async def thaw(self) -> None:
        self._server.thaw()
