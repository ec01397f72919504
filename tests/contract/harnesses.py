"""The brokers that the contract is run with here, each on a server of its own that the tests may stop and freeze."""

import asyncio
from collections.abc import Mapping

import aio_pika
from confluent_kafka import Producer

from scoop_outbox.devservers._rabbitmq_settings import MAX_MESSAGE_SIZE
from scoop_outbox.devservers.kafka import KafkaCluster
from scoop_outbox.devservers.rabbitmq import RabbitServer
from scoop_outbox.testing.contract import Harness


class RabbitHarness(Harness):
    """RabbitMQ; topics are routing keys on `amq.topic`."""

    def __init__(self, server: RabbitServer, settings: Mapping[str, object] | None = None) -> None:
        super().__init__(server.url, settings, oversize=MAX_MESSAGE_SIZE + 1)
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


class KafkaHarness(Harness):
    """A Kafka of one node; topics are created with several partitions."""

    def __init__(self, cluster: KafkaCluster, settings: Mapping[str, object] | None = None) -> None:
        # A member that was killed is missed soon, and a broker that is down is not waited for long.
        ours = {
            "topology.partitions": 4,
            "publish.timeout": 3,
            "consumer.session.timeout.ms": 6000,
            "consumer.heartbeat.interval.ms": 1000,
        }
        super().__init__(cluster.url, {**ours, **(settings or {})})
        self._cluster = cluster

    async def publish_foreign(self, topic: str, key: bytes | None, body: bytes, headers: Mapping[str, str]) -> None:
        await asyncio.to_thread(self._publish_foreign, topic, key, body, dict(headers))

    def _publish_foreign(
        self, topic: str, key: bytes | None, body: bytes, headers: dict[str, str | bytes | None]
    ) -> None:
        producer = Producer({"bootstrap.servers": self._cluster.bootstrap})
        producer.produce(topic, body, key, headers=headers)
        assert producer.flush(20) == 0

    async def stop(self) -> None:
        await asyncio.to_thread(self._cluster.stop)

    async def start(self) -> None:
        await asyncio.to_thread(self._cluster.start)

    async def freeze(self) -> None:
        self._cluster.nodes[0].freeze()

    async def thaw(self) -> None:
        self._cluster.nodes[0].thaw()
