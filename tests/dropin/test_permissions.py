"""What is said to who may not: a wrong password, a topic, a group, a queue that is somebody else's."""

from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

from scoop_outbox import BrokerError
from scoop_outbox.devservers.kafka import KafkaCluster
from scoop_outbox.devservers.rabbitmq import RabbitServer
from tests.dropin.listener import Listener
from tests.dropin.refusals import SECRET, refusal_of_relay, refusal_of_worker, refusal_to_run, said
from tests.kafka.trial import name
from tests.waiting import until


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
