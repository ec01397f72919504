"""What is said of a broker that is not there, or not yet: and that all goes on when it comes."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psycopg
import pytest
from confluent_kafka import Consumer, Producer

from scoop_outbox import BrokerError, Scoop
from scoop_outbox.devservers._server import free_ports
from scoop_outbox.devservers.kafka import KafkaCluster
from scoop_outbox.devservers.rabbitmq import RabbitServer
from tests.dropin.listener import Listener
from tests.dropin.refusals import (
    NOWHERE,
    SECRET,
    log_of,
    readiness,
    running,
    said,
    worker,
)
from tests.kafka.trial import Trial as KafkaTrial
from tests.kafka.trial import name
from tests.waiting import until


async def starts_without_and_works_with(
    folder: Path, database_url: str, topic: str, url: str, begin: Callable[[], None], *arguments: str
) -> str:
    """Start a worker at a broker that is down, launch something, bring the broker up; return the log."""
    (port,) = free_ports(1)
    at = ("--relay", "--broker", url, "--port", str(port), *arguments)

    def committed() -> bool:
        with psycopg.connect(database_url) as connection:
            return connection.execute("select state from scoop_outbox.run").fetchall() == [("committed",)]

    def is_ready(*, ready: bool) -> bool:
        status, text = readiness(port)
        return status == 200 if ready else status == 503 and "intake" in text

    with worker(folder, database_url, topic, *at) as process, telling_more(folder, port):
        await until(lambda: asyncio.to_thread(is_ready, ready=False), 60)
        _, text = await asyncio.to_thread(readiness, port)
        app = Scoop("elsewhere", database=database_url, broker=url)
        await app.launch(topic, {})
        await app.close()
        assert process.poll() is None
        await asyncio.to_thread(begin)
        await until(lambda: asyncio.to_thread(is_ready, ready=True), 60)
        await until(lambda: asyncio.to_thread(committed), 60)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 60) == 0
    assert "process: ready (service shop" in log_of(folder)
    return text


@contextmanager
def telling_more(folder: Path, port: int) -> Iterator[None]:
    """Add what the worker says of itself to an assertion that fails."""
    try:
        yield
    except AssertionError as error:
        error.add_note(f"{readiness(port)}\n{log_of(folder)[-3000:]}")
        raise


def start_until_it_serves(cluster: KafkaCluster) -> None:
    """Start a broker that creates topics by itself, and see that clients that know nothing of us are served by it.

    Seen on a busy machine: a broker that was up again and let nobody publish or join a group for a minute.
    """
    for _ in range(3):
        cluster.start()
        if _serves(cluster.bootstrap):
            return
        cluster.stop()
    pytest.fail("Kafka was started three times, and nobody could publish and join a group")


def _serves(bootstrap: str) -> bool:
    """Tell whether a message can be published and received by a member of a group within a quarter of a minute each."""
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True})
    topic = name("begins")
    producer.produce(topic, b"1")
    if producer.flush(15):
        producer.purge()
        return False
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": topic, "auto.offset.reset": "earliest"})
    try:
        consumer.subscribe([topic])
        found = consumer.poll(15)
        return found is not None and found.error() is None
    finally:
        consumer.close()


async def test_kafka_is_not_there_yet(lenient_kafka: KafkaCluster, database_url: str, tmp_path: Path) -> None:
    async with KafkaTrial(lenient_kafka.url) as kafka:
        topic = kafka.topic()
    lenient_kafka.stop()
    try:
        problem = await starts_without_and_works_with(
            *(tmp_path, database_url, topic, lenient_kafka.url, partial(start_until_it_serves, lenient_kafka)),
            *("--start", "earliest"),
        )
    finally:
        lenient_kafka.start()

    assert "not announced yet, its broker does not answer: no broker of 127.0.0.1:" in problem


async def test_rabbitmq_is_not_there_yet(own_rabbit: RabbitServer, database_url: str, tmp_path: Path) -> None:
    topic = name("orders")
    await Listener(database_url, own_rabbit.url, "shop", topic).app.apply_topology()
    own_rabbit.stop()
    try:
        problem = await starts_without_and_works_with(tmp_path, database_url, topic, own_rabbit.url, own_rabbit.start)
    finally:
        own_rabbit.start()

    assert "not announced yet, its broker does not answer: RabbitMQ cannot be reached (127.0.0.1:" in problem


@pytest.mark.parametrize("scheme", ["kafka", "amqp"])
async def test_a_relay_with_nothing_to_publish_is_not_ready_without_its_broker(
    scheme: str, database_url: str, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    url = f"{scheme}://shop:{SECRET}@127.0.0.1:{NOWHERE}"
    arguments = ("relay", "--database", database_url, "--broker", url, "--port", str(port))

    with running(tmp_path, *arguments) as process:
        await until(lambda: "process: ready (service relay" in log_of(tmp_path), 60)
        status, text = await asyncio.to_thread(readiness, port)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 60) == 0

    assert status == 503
    assert f"127.0.0.1:{NOWHERE}" in text
    assert SECRET not in text
    assert "relay: broker unavailable (" in log_of(tmp_path)


@pytest.mark.parametrize("scheme", ["kafka", "amqp"])
async def test_the_topology_of_a_broker_that_is_not_there(scheme: str, database_url: str) -> None:
    service = Listener(database_url, f"{scheme}://shop:{SECRET}@127.0.0.1:{NOWHERE}", name("shop"), "orders")

    with pytest.raises(BrokerError) as error:
        await service.app.topology()

    assert f"127.0.0.1:{NOWHERE}" in said(error.value)
