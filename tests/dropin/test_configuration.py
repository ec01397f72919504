"""What is said when something is configured wrongly: what is wrong, how to mend it, and no secret.

From end to end: by `Scoop(...)`, by running a service, and by the command line.
"""

import asyncio
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

from scoop_outbox import BrokerError, Scoop, ScoopError
from scoop_outbox.broker import plugins
from scoop_outbox.testing._server import free_ports
from scoop_outbox.testing.kafka import KafkaCluster
from scoop_outbox.testing.rabbitmq import RabbitServer
from tests.dropin.listener import Listener
from tests.kafka.trial import Trial as KafkaTrial
from tests.kafka.trial import name
from tests.rabbitmq.trial import Trial as RabbitTrial
from tests.waiting import until

SECRET = "s3cr3t"  # noqa: S105 - it stands for one
NOWHERE = 1
"""A port where nobody listens."""

KAFKA_FORM = "it looks like kafka://user:password@host:9092,host2:9092?setting=value"
BOTH_FORMS = "it looks like kafka://host:9092 or amqp://user:password@host:5672"
START = (
    'say Scoop(start=...): "earliest" for all that the topic still has, "latest" for what is published from now on, '
    'a time in ISO 8601 such as "2026-01-31T12:00:00+00:00", or "group:NAME" to go on where another group is'
)

Process = subprocess.Popen[str]

SHOP = """
from scoop_outbox import Scoop
app = Scoop("shop")
saga = app.saga("place-order", on="{topic}")
@saga.step
def only(scope, message): ...
"""


def said(error: BaseException) -> str:
    """What an error says: one line, and no secret."""
    text = str(error)
    assert SECRET not in text
    assert "\n" not in text
    return text


def refusal_of(make: Callable[[], object]) -> str:
    with pytest.raises(ScoopError) as error:
        make()
    return said(error.value)


async def refusal_to_run(service: Listener) -> str:
    with pytest.raises(ScoopError) as error:
        async with service.running():
            pass
    return said(error.value)


def worker(folder: Path, database_url: str, topic: str, *arguments: str) -> AbstractContextManager[Process]:
    """A worker of a service that listens on a topic, as a process of its own."""
    (folder / "shop.py").write_text(SHOP.format(topic=topic))
    return running(folder, "worker", "shop:app", "--database", database_url, *arguments)


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[Process]:
    """A command, as a process of its own."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SCOOP_OUTBOX")}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "scoop_outbox", *arguments],
            cwd=folder,
            env=environment,
            stderr=log,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()


def log_of(folder: Path) -> str:
    text = (folder / "log").read_text()
    assert SECRET not in text
    assert "Traceback" not in text
    return text


async def refusal_of_relay(folder: Path, database_url: str, broker: str) -> str:
    """What a relay that cannot start ends with."""
    with running(folder, "relay", "--database", database_url, "--broker", broker) as process:
        assert await asyncio.to_thread(process.wait, 60) == 1, log_of(folder)
    return log_of(folder).splitlines()[-1]


async def refusal_of_worker(folder: Path, database_url: str, topic: str, *arguments: str) -> str:
    """What a worker that cannot start ends with."""
    with worker(folder, database_url, topic, *arguments) as process:
        assert await asyncio.to_thread(process.wait, 60) == 1, log_of(folder)
    return log_of(folder).splitlines()[-1]


# -- URL and settings -----------------------------------------------------------------------------------------------

NO_SCHEME = f"the broker URL has no scheme; {BOTH_FORMS}"
UNKNOWN = "no broker is known for the scheme '{}': use kafka://, amqp://, postgresql:// or leave the URL out"
URLS = {
    "localhost:9092": NO_SCHEME,
    f"shop:{SECRET}@host:9092": NO_SCHEME,
    f"kafka//shop:{SECRET}@host": NO_SCHEME,
    f"amqp:{SECRET}@host": NO_SCHEME,
    f"kafka://[{SECRET}": f"the broker URL cannot be parsed; {BOTH_FORMS}",
    f"redis://shop:{SECRET}@host": UNKNOWN.format("redis"),
    f"kafkas://shop:{SECRET}@host": UNKNOWN.format("kafkas"),
    "kafka://": f"the broker URL is none of Kafka: {KAFKA_FORM}",
    f"kafka://shop:{SECRET}@host:port": f"the broker URL cannot be parsed: {KAFKA_FORM}",
    f"kafka://shop:{SECRET}@host,,host": f"the broker URL cannot be parsed: {KAFKA_FORM}",
    f"kafka://shop:{SECRET}@host/orders": (
        f"the broker URL names something behind the hosts, which Kafka has not: {KAFKA_FORM}"
    ),
    f"amqp://shop:{SECRET}@host:port": (
        "a host in the broker URL cannot be parsed: it is host, host:port or [IPv6]:port, several with commas"
    ),
    f"amqp://shop:{SECRET}/@host": (
        "the broker URL cannot be parsed: write / as %2F, @ as %40, # as %23 and ? as %3F in user, password and vhost"
    ),
}


@pytest.mark.parametrize("url", URLS)
def test_a_url_that_cannot_be_used(url: str) -> None:
    installed = f" (installed adapters: {', '.join(sorted(one.name for one in entry_points(group=plugins.GROUP)))})"
    expected = URLS[url] + (installed if URLS[url].startswith("no broker is known") else "")

    assert refusal_of(lambda: Scoop("shop", broker=url)) == expected
    assert refusal_of(lambda: Scoop("shop").configure(broker=url)) == expected


@pytest.mark.parametrize("url", ["KAFKA://localhost:9092", " amqp://localhost "])
def test_capitals_and_blanks_around_a_url_are_no_mistake(url: str) -> None:
    assert Scoop("shop", broker=url).broker is not None


SETTINGS: list[tuple[str, dict[str, Any], str]] = [
    (
        f"kafka://shop:{SECRET}@host",
        {"lingr.ms": 5},
        'the setting lingr.ms of the producer is wrong: librdkafka says: No such configuration property: "lingr.ms"',
    ),
    (
        f"kafka://shop:{SECRET}@host",
        {"acks": 1},
        "the setting acks is reserved: the order within a key, and that no message is lost, rest on it",
    ),
    ("kafka://host", {"group.id": "mine"}, "the setting group.id is reserved: say Scoop(group=...)"),
    (
        "kafka://host",
        {"auto.offset.reset": "latest"},
        (
            "the setting auto.offset.reset is reserved: say Scoop(start=...): earliest, latest, a time in ISO 8601, or "
            "group:NAME"
        ),
    ),
    (
        "amqp://host",
        {"password": SECRET},
        "the setting password is not yours to choose: it belongs into the URL: amqp://user:password@host:5672/vhost",
    ),
    (
        f"amqp://shop:{SECRET}@host",
        {"no_ack": True},
        (
            "the setting no_ack is not yours to choose: a message is acknowledged when it is stored in the database, "
            "never before"
        ),
    ),
    (
        f"amqp://shop:{SECRET}@host",
        {"heartbeat": "often"},
        "the setting heartbeat cannot be 'often': it is a whole number from 1 to 3600",
    ),
]


@pytest.mark.parametrize("url, settings, expected", SETTINGS, ids=[next(iter(one)) for _, one, _ in SETTINGS])
def test_a_setting_that_is_unknown_reserved_or_wrong(url: str, settings: dict[str, Any], expected: str) -> None:
    assert refusal_of(lambda: Scoop("shop", broker=url, broker_settings=settings)) == expected


def test_an_unknown_setting_of_rabbitmq_is_answered_with_those_there_are() -> None:
    text = refusal_of(lambda: Scoop("shop", broker=f"amqp://shop:{SECRET}@host?heartbeet=5"))

    assert text.startswith("RabbitMQ has no setting 'heartbeet' here; known are arguments.consumer.x-..., ")
    assert "heartbeat" in text


@pytest.mark.parametrize(
    "scheme, distribution",
    [("kafka", "scoop-outbox-kafka"), ("amqp", "scoop-outbox-rabbitmq"), ("amqps", "scoop-outbox-rabbitmq")],
)
def test_an_adapter_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, scheme: str, distribution: str) -> None:
    def none(*, group: str, name: str = "") -> list[EntryPoint]:
        return []

    monkeypatch.setattr(plugins, "entry_points", none)

    text = refusal_of(lambda: Scoop("shop", broker=f"{scheme}://shop:{SECRET}@host"))

    assert text == f"no adapter for {scheme}:// is installed: pip install {distribution}"


@pytest.mark.parametrize("group", ["", "  ", "nul\0", "x" * 256])
def test_a_group_that_nothing_could_be_called(group: str) -> None:
    text = refusal_of(lambda: Scoop("shop", group=group))

    assert re.match(r"(a|the) group name ", text)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (("--broker", f"redis://shop:{SECRET}@host"), f"Error: {UNKNOWN.format('redis')}"),
        (("--broker", f"kafka://shop:{SECRET}@host?acks=1"), f"Error: {SETTINGS[1][2]}"),
        (("--broker", f"amqp://shop:{SECRET}@host?no_ack=true"), f"Error: {SETTINGS[5][2]}"),
    ],
)
async def test_the_command_line_says_so_in_one_line(
    database_url: str, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    assert (await refusal_of_worker(tmp_path, database_url, "orders", *arguments)).startswith(expected)
    assert log_of(tmp_path).count("\n") == 1


# -- what is not there ----------------------------------------------------------------------------------------------


async def test_kafka_has_no_such_topic(kafka: KafkaTrial, database_url: str, tmp_path: Path) -> None:
    topic = name("missing")
    service = Listener(database_url, kafka.url, name("shop"), topic, start="earliest")
    expected = (
        f"there is no topic {topic}: create it with `scoop-outbox topology apply`, "
        f"or with kafka-topics.sh --create --topic {topic} --partitions N --replication-factor N"
    )

    assert await refusal_to_run(service) == expected
    at = ("--broker", kafka.url, "--start", "earliest")
    assert await refusal_of_worker(tmp_path, database_url, topic, *at) == f"Error: {expected}"

    # And as it is told.
    applied = await service.app.apply_topology()
    assert [item.exists for item in applied] == [False]
    async with service.running():
        await service.app.launch(topic, 1)
        await service.sees(1)


async def test_kafka_cannot_have_such_a_topic(kafka: KafkaTrial, database_url: str) -> None:
    service = Listener(database_url, kafka.url, name("shop"), "orders/created", start="earliest")
    expected = "'orders/created' cannot be the name of a topic in Kafka: use letters, digits, '.', '_' and '-'"

    assert await refusal_to_run(service) == expected
    with pytest.raises(BrokerError) as error:
        await service.app.apply_topology()
    assert said(error.value) == expected


async def test_kafka_is_not_told_where_to_begin(kafka: KafkaTrial, database_url: str, tmp_path: Path) -> None:
    topic, group = kafka.topic(), name("group")
    service = Listener(database_url, kafka.url, name("shop"), topic, group=group)
    expected = f"the group {group} has never been on the topic {topic}, and where to begin was not said: {START}"

    assert await refusal_to_run(service) == expected
    at = ("--broker", kafka.url, "--group", group)
    assert await refusal_of_worker(tmp_path, database_url, topic, *at) == f"Error: {expected}"


async def test_kafka_is_told_nonsense_of_where_to_begin(kafka: KafkaTrial, database_url: str) -> None:
    topic, nobody = kafka.topic(), name("nobody")
    expected = {
        "yesterday": f"the start 'yesterday' means nothing to Kafka: {START}",
        "group:": f"the start 'group:' names no group: {START}",
        f"group:{nobody}": (
            f"the group {nobody}, where to begin was said to be, has no offsets on the topic {topic}: {START}"
        ),
        "2026-01-31T12:00:00": ('the start \'2026-01-31T12:00:00\' has no time zone: add one, such as "+00:00" or "Z"'),
    }
    for start, text in expected.items():
        service = Listener(database_url, kafka.url, name("shop"), topic, start=start)
        assert await refusal_to_run(service) == text


async def test_rabbitmq_has_no_such_queue(rabbit: RabbitTrial, database_url: str, tmp_path: Path) -> None:
    topic, group = name("orders"), name("group")
    service = Listener(database_url, rabbit.url, name("shop"), topic, group=group)
    expected = (
        f"there is no queue {group!r} for {topic}: run scoop-outbox topology apply, which declares and binds it, or "
        "name an existing queue with the setting queue.<topic>"
    )

    assert await refusal_to_run(service) == expected
    at = ("--broker", rabbit.url, "--group", group)
    assert await refusal_of_worker(tmp_path, database_url, topic, *at) == f"Error: {expected}"

    await service.app.apply_topology()
    async with service.running():
        await service.app.launch(topic, 1)
        await service.sees(1)


async def test_rabbitmq_has_no_use_for_a_start(rabbit: RabbitTrial, database_url: str) -> None:
    service = Listener(database_url, rabbit.url, name("shop"), name("orders"), start="latest")

    assert await refusal_to_run(service) == (
        "the start 'latest' means nothing to RabbitMQ: a queue gets what is published once it is bound, and keeps it. "
        "Leave the start out, or say earliest"
    )


async def test_rabbitmq_keeps_some_names_for_itself(rabbit: RabbitTrial, database_url: str) -> None:
    service = Listener(database_url, rabbit.url, name("shop"), name("orders"), group="amq.mine")

    with pytest.raises(BrokerError) as error:
        await service.app.apply_topology()

    assert "amq.mine" in said(error.value)


# -- who may not ----------------------------------------------------------------------------------------------------


class Guarded:
    """A Kafka with permissions, seen by a user who has none where another one has some."""

    def __init__(self, cluster: KafkaCluster) -> None:
        self._at = cluster.bootstrap
        self._authority = f"ssl.ca.location={cluster.ca_file}"
        self._user = cluster.user
        self.url = f"kafka://{cluster.user}:{cluster.password}@{self._at}?{self._authority}"
        self.password = cluster.password
        self._admin = AdminClient(
            {
                "bootstrap.servers": self._at,
                "security.protocol": "SASL_SSL",
                "sasl.mechanism": "PLAIN",
                "sasl.username": cluster.user,
                "sasl.password": cluster.password,
                "ssl.ca.location": str(cluster.ca_file),
            }
        )

    def with_password(self, password: str) -> str:
        return f"kafka://{self._user}:{password}@{self._at}?{self._authority}"

    def topic(self) -> str:
        topic = name()
        self._admin.create_topics([NewTopic(topic, 1, 1)], operation_timeout=10)[topic].result(10)
        return topic

    def reserve(self, kind: Any, what: str, operation: Any) -> None:
        """Let somebody else do this, and nobody besides."""
        one = AclBinding(kind, what, ResourcePatternType.LITERAL, "User:other", "*", operation, AclPermissionType.ALLOW)
        self._admin.create_acls([one])[one].result(10)


@pytest.fixture
def guarded(guarded_kafka: KafkaCluster) -> Guarded:
    return Guarded(guarded_kafka)


async def test_kafka_refuses_a_password(guarded: Guarded, database_url: str, tmp_path: Path) -> None:
    topic, url = guarded.topic(), guarded.with_password(SECRET)
    service = Listener(database_url, url, name("shop"), topic, start="earliest")
    begins = "Kafka refuses the connection: "
    ends = ". See the user and password in the URL, and sasl.mechanism, security.protocol and ssl.ca.location"

    text = await refusal_to_run(service)
    assert text.startswith(begins)
    assert "Invalid username or password" in text
    assert text.endswith(ends)
    line = await refusal_of_worker(tmp_path, database_url, topic, "--broker", url, "--start", "earliest")
    relay = await refusal_of_relay(tmp_path, database_url, url)
    for refused in (line, relay):
        assert refused.startswith(f"Error: {begins}")
        assert refused.endswith(ends)


async def test_kafka_does_not_permit_a_topic_or_a_group(guarded: Guarded, database_url: str) -> None:
    topic, secret, group = guarded.topic(), guarded.topic(), name("theirs")
    guarded.reserve(ResourceType.TOPIC, secret, AclOperation.READ)
    guarded.reserve(ResourceType.GROUP, group, AclOperation.READ)
    with_topic = Listener(database_url, guarded.url, name("shop"), secret, start="earliest")
    with_group = Listener(database_url, guarded.url, name("shop"), topic, group=group, start="earliest")

    assert await refusal_to_run(with_topic) == (
        f"it is not permitted to read the topic {secret}: kafka-acls.sh --add --allow-principal User:... "
        f"--operation Read --operation Describe --topic {secret}"
    )
    assert await refusal_to_run(with_group) == (
        f"it is not permitted to be a consumer of the group {group}: kafka-acls.sh --add --allow-principal User:... "
        f"--operation Read --group {group}"
    )


async def test_kafka_does_not_permit_to_publish(guarded: Guarded, database_url: str) -> None:
    topic = guarded.topic()
    guarded.reserve(ResourceType.TOPIC, topic, AclOperation.WRITE)
    service = Listener(database_url, guarded.url, name("shop"))

    async with service.running():
        await service.app.launch(topic, {})
        await until(lambda: service.dead_letters, 40)

    ((body, reason),) = service.dead_letters
    assert body == b"{}"
    assert reason == f"it is not permitted to write to the topic {topic}: grant Write and Describe (kafka-acls.sh)"


async def test_rabbitmq_refuses_a_password_or_a_virtual_host(
    own_rabbit: RabbitServer, database_url: str, tmp_path: Path
) -> None:
    host = own_rabbit.url.rpartition("@")[2].rstrip("/")
    user = name("user")
    own_rabbit.ctl("add_user", user, "pass")
    wrong = f"amqp://{user}:{SECRET}@{host}/"
    expected = (
        f"RabbitMQ at {host} refuses user {user!r}: name or password in the broker URL is wrong, or the user may not "
        "come from here (the user guest only from the broker's own machine); rabbitmqctl authenticate_user USER tells"
    )
    with_password = Listener(database_url, wrong, name("shop"), "orders")
    with_host = Listener(database_url, f"amqp://{user}:pass@{host}/", name("shop"), "orders")

    assert await refusal_to_run(with_password) == expected
    assert await refusal_of_worker(tmp_path, database_url, "orders", "--broker", wrong) == f"Error: {expected}"
    assert await refusal_of_relay(tmp_path, database_url, wrong) == f"Error: {expected}"
    text = await refusal_to_run(with_host)
    assert text.startswith(f"RabbitMQ at {host} does not let user {user!r} into virtual host '/': ")
    assert text.endswith("rabbitmqctl set_permissions -p VHOST USER CONFIGURE WRITE READ")


async def test_rabbitmq_does_not_permit_a_queue_or_an_exchange(own_rabbit: RabbitServer, database_url: str) -> None:
    user, topic, group = name("user"), name("orders"), name("group")
    own_rabbit.ctl("add_user", user, "pass")
    own_rabbit.ctl("set_permissions", "-p", "/", user, "^$", "^$", "^$")
    url = own_rabbit.url.replace(own_rabbit.url[7 : own_rabbit.url.index("@")], f"{user}:pass")
    await Listener(database_url, own_rabbit.url, name("shop"), topic, group=group).app.apply_topology()
    reader = Listener(database_url, url, name("shop"), topic, group=group)
    writer = Listener(database_url, url, name("writer"))

    text = await refusal_to_run(reader)
    assert text.startswith(f"user {user!r} may not read queue {group!r}")
    assert text.endswith(f"rabbitmqctl set_permissions -p / {user} CONFIGURE WRITE READ")
    with pytest.raises(BrokerError) as error:
        await Listener(database_url, url, name("shop"), topic, group=name("new")).app.apply_topology()
    assert "set_permissions" in said(error.value)
    async with writer.running():
        await writer.app.launch(topic, {})
        await until(lambda: writer.dead_letters, 40)
    ((_, reason),) = writer.dead_letters
    assert "amq.topic" in reason
    assert "set_permissions" in reason


# -- who is not there yet -------------------------------------------------------------------------------------------


def readiness(port: int) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


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

    with worker(folder, database_url, topic, *at) as process:
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
    assert "ready: service shop" in log_of(folder)
    return text


def start_until_it_serves(cluster: KafkaCluster) -> None:
    """Start a broker that creates topics by itself, and see that a client that knows nothing of us can publish there.

    Seen once, on a busy machine: a broker that was up again and let nobody publish or join a group for a minute.
    """
    for _ in range(3):
        cluster.start()
        producer = Producer({"bootstrap.servers": cluster.bootstrap, "enable.idempotence": True})
        producer.produce(name("begins"), b"1")
        if not producer.flush(15):
            return
        producer.purge()
        cluster.stop()
    pytest.fail("Kafka was started three times, and nobody could publish")


async def test_kafka_is_not_there_yet(lenient_kafka: KafkaCluster, database_url: str, tmp_path: Path) -> None:
    async with KafkaTrial(lenient_kafka.url) as kafka:
        topic = kafka.topic()
    lenient_kafka.stop()
    try:
        trouble = await starts_without_and_works_with(
            *(tmp_path, database_url, topic, lenient_kafka.url, partial(start_until_it_serves, lenient_kafka)),
            *("--start", "earliest"),
        )
    finally:
        lenient_kafka.start()

    assert "no broker can be reached since" in trouble or "has not joined the group shop yet" in trouble


async def test_rabbitmq_is_not_there_yet(own_rabbit: RabbitServer, database_url: str, tmp_path: Path) -> None:
    topic = name("orders")
    await Listener(database_url, own_rabbit.url, "shop", topic).app.apply_topology()
    own_rabbit.stop()
    try:
        trouble = await starts_without_and_works_with(tmp_path, database_url, topic, own_rabbit.url, own_rabbit.start)
    finally:
        own_rabbit.start()

    assert "RabbitMQ cannot be reached (127.0.0.1:" in trouble or "has not connected yet" in trouble


@pytest.mark.parametrize("scheme", ["kafka", "amqp"])
async def test_a_relay_with_nothing_to_publish_is_not_ready_without_its_broker(
    scheme: str, database_url: str, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    url = f"{scheme}://shop:{SECRET}@127.0.0.1:{NOWHERE}"
    arguments = ("relay", "--database", database_url, "--broker", url, "--port", str(port))

    with running(tmp_path, *arguments) as process:
        await until(lambda: "ready: service relay" in log_of(tmp_path), 60)
        status, text = await asyncio.to_thread(readiness, port)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 60) == 0

    assert status == 503
    assert f"127.0.0.1:{NOWHERE}" in text
    assert SECRET not in text
    assert "nothing can be published: " in log_of(tmp_path)


@pytest.mark.parametrize("scheme", ["kafka", "amqp"])
async def test_the_topology_of_a_broker_that_is_not_there(scheme: str, database_url: str) -> None:
    service = Listener(database_url, f"{scheme}://shop:{SECRET}@127.0.0.1:{NOWHERE}", name("shop"), "orders")

    with pytest.raises(BrokerError) as error:
        await service.app.topology()

    assert f"127.0.0.1:{NOWHERE}" in said(error.value)
