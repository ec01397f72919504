"""A broker that demands TLS and a password, and grants this user one thing and not another."""

import asyncio
import base64
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from urllib.parse import quote

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)
from scoop_outbox_kafka import preparing, topology

from scoop_outbox.broker.protocol import Subscription
from scoop_outbox.devservers.kafka import KafkaCluster, start_kafka
from scoop_outbox.errors import BrokerError
from tests.kafka.trial import ACKNOWLEDGED, FOR_GOOD, FOR_NOW, Trial, bodies, envelope, name, received, verdicts


@pytest.fixture(scope="session")
def secured(kafka_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    with start_kafka(tmp_path_factory.mktemp("secured"), security="sasl_ssl") as cluster:
        yield cluster


class SecuredTrial(Trial):
    """Comes as a user; looks from outside by the door that the brokers use among themselves."""

    def __init__(self, cluster: KafkaCluster, password: str | None = None, **settings: object) -> None:
        secret = quote(password or cluster.password, safe="")
        super().__init__(
            f"kafka://{cluster.user}:{secret}@{cluster.bootstrap}",
            {"ssl.ca.location": str(cluster.ca_file), **settings},
        )
        self.user = cluster.user
        self._internal = f"127.0.0.1:{cluster.nodes[0].ports.internal}"

    @property
    def client(self) -> dict[str, object]:
        return {"bootstrap.servers": self._internal}

    def allow(self, kind: ResourceType, resource: str, *operations: AclOperation, user: str | None = None) -> None:
        """Grant something, and thereby all else on that resource to nobody."""
        bindings = [
            AclBinding(
                kind,
                resource,
                ResourcePatternType.LITERAL,
                f"User:{user or self.user}",
                "*",
                operation,
                AclPermissionType.ALLOW,
            )
            for operation in operations
        ]
        for future in self.admin.create_acls(bindings).values():
            future.result(10)


@pytest.fixture
async def trial(secured: KafkaCluster) -> AsyncIterator[SecuredTrial]:
    async with SecuredTrial(secured) as trial:
        yield trial


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
async def test_a_user_with_a_password_by_tls(secured: KafkaCluster, mechanism: str) -> None:
    settings = {} if mechanism == "PLAIN" else {"sasl.mechanism": mechanism}
    async with SecuredTrial(secured, None, **settings) as trial:
        topic = name()
        await trial.broker().topology([topic], None, create=True)
        assert verdicts(await (await trial.publisher()).publish([envelope(topic, None, b"1")])) == [ACKNOWLEDGED]
        assert bodies(await received(await trial.consumer(name("g"), topic), 1)) == [b"1"]


def token(_: str) -> tuple[str, float]:
    """Return a token that nobody has signed, and until when it is good."""
    until = time.time() + 3600
    parts = ({"alg": "none"}, {"sub": "tester", "iat": time.time(), "exp": until})
    encoded = (base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
    return ".".join([*encoded, ""]), until


async def test_a_token_from_a_function(secured: KafkaCluster) -> None:
    settings = {"ssl.ca.location": str(secured.ca_file), "sasl.mechanism": "OAUTHBEARER", "oauth_cb": token}
    async with Trial(f"kafka://{secured.bootstrap}", settings) as trial:
        topic = name()
        await trial.broker().topology([topic], None, create=True)
        await trial.broker().prepare(Subscription("test", name("g"), (topic,), "earliest"))
        assert verdicts(await (await trial.publisher()).publish([envelope(topic, None, b"1")])) == [ACKNOWLEDGED]
        assert bodies(await received(await trial.consumer(name("g"), topic), 1)) == [b"1"]


async def test_a_function_that_has_no_token_is_told_of_and_nothing_else_stands_still(
    secured: KafkaCluster, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: str) -> tuple[str, float]:
        raise RuntimeError("the secret is s3cr3t")

    settings = {"ssl.ca.location": str(secured.ca_file), "sasl.mechanism": "OAUTHBEARER", "oauth_cb": fails}
    async with Trial(f"kafka://{secured.bootstrap}", settings) as trial:
        subscription = Subscription("test", name("g"), ("topic",), "earliest")
        asking = [
            asyncio.ensure_future(one)
            for one in (
                trial.broker().prepare(subscription),
                trial.broker().consumer(subscription),
                trial.broker().publisher("test"),
                trial.broker().topology(["topic"], None, create=False),
            )
        ]
        turns = 0
        while not all(one.done() for one in asking):
            await asyncio.sleep(0.05)
            turns += 1
        errors = [str(error) for error in await asyncio.gather(*asking, return_exceptions=True)]
    assert turns > 100
    assert {error.partition(" can be made: ")[0] for error in errors} == {
        "no Kafka consumer",
        "no Kafka producer",
        "no Kafka adminclient",
    }
    assert "kafka: oauth_cb failed (RuntimeError)" in caplog.text
    assert "s3cr3t" not in caplog.text + "".join(errors)


async def refusal(ask: Callable[[], Awaitable[object]]) -> str:
    """Return why Kafka refuses the connection: on a busy machine the first answer may be that there is none in time."""
    while True:
        with pytest.raises(BrokerError) as caught:
            await ask()
        if "uthentication" in str(caught.value):
            return str(caught.value)


async def test_a_wrong_password_is_told_and_not_shown(
    secured: KafkaCluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topology, "_ANSWER", 2.0)
    monkeypatch.setattr(preparing, "_ANSWER", 1.0)
    wrong = "wr0ng-s3cret"
    async with SecuredTrial(secured, wrong) as trial:
        said = [
            await refusal(lambda: trial.broker().prepare(Subscription("test", "g", ("topic",), "earliest"))),
            await refusal(lambda: trial.broker().topology(["topic"], None, create=True)),
        ]
        assert all(re.match("Kafka refuses the connection: .*uthentication", one) for one in said)
        publisher = await trial.publisher(publish__timeout=1.5)
        receipts = await publisher.publish([envelope("topic")])
        while "uthentication" not in receipts[0].reason:
            assert verdicts(receipts) == [FOR_NOW]
            receipts = await publisher.publish([envelope("topic")])
        assert verdicts(receipts) == [FOR_NOW]
        consumer = await trial.consumer("g", "topic")
        while "uthentication" not in str(consumer.problem):
            assert await consumer.receive(1, 0.1) == []
        assert "no broker can be reached since" in str(consumer.problem)
        for text in (*said, receipts[0].reason, str(consumer.problem), caplog.text, repr(trial.broker())):
            assert wrong not in text


async def test_a_certificate_that_nobody_trusts(secured: KafkaCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "_ANSWER", 2.0)
    monkeypatch.setattr(preparing, "_ANSWER", 1.0)
    async with SecuredTrial(secured) as trial:
        broker = trial.broker(ssl__ca__location="/etc/ssl/certs")
        with pytest.raises(BrokerError, match=r"Kafka refuses the connection: .*certificate.*ssl\.ca\.location"):
            await broker.prepare(Subscription("test", "g", ("topic",), "earliest"))


async def test_publishing_without_permission(trial: SecuredTrial) -> None:
    topic, other, hidden = trial.topic(), trial.topic(), trial.topic()
    trial.allow(ResourceType.TOPIC, topic, AclOperation.DESCRIBE)
    trial.allow(ResourceType.TOPIC, hidden, AclOperation.ALL, user="somebody-else")
    batch = [envelope(one, "k", b"%d" % number) for number, one in enumerate([other, topic, hidden, topic, other])]
    receipts = await (await trial.publisher()).publish(batch)
    assert verdicts(receipts) == [ACKNOWLEDGED, FOR_GOOD, FOR_GOOD, FOR_GOOD, ACKNOWLEDGED]
    assert f"it is not permitted to write to the topic {topic}" in receipts[1].reason
    assert f"it is not permitted to write to the topic {hidden}" in receipts[2].reason
    assert list(dict.fromkeys(message.value() for message in trial.read(other))) == [b"0", b"4"]


async def test_receiving_without_permission_on_the_topic(trial: SecuredTrial) -> None:
    topic, group = trial.topic(), name("g")
    trial.allow(ResourceType.TOPIC, topic, AclOperation.DESCRIBE)
    subscription = Subscription("test", group, (topic,), "earliest")
    with pytest.raises(BrokerError, match=rf"not permitted to read the topic {topic}: kafka-acls.*--operation Read"):
        await trial.broker().prepare(subscription)
    trial.allow(ResourceType.TOPIC, topic, AclOperation.READ)
    await trial.broker().prepare(subscription)


async def test_receiving_without_permission_on_the_group(trial: SecuredTrial) -> None:
    topic, group = trial.topic(), name("g")
    trial.allow(ResourceType.GROUP, group, AclOperation.READ, user="somebody-else")
    consumer = await trial.consumer(group, topic)
    for refused in (
        trial.broker().prepare(Subscription("test", group, (topic,), "earliest")),
        consumer.receive(1, 0.1),
    ):
        with pytest.raises(BrokerError, match=f"not permitted to be a consumer of the group {group}: kafka-acls"):
            await refused
    trial.allow(ResourceType.GROUP, group, AclOperation.READ)
    trial.produce(topic, b"1")
    assert bodies(await received(consumer, 1)) == [b"1"]


async def test_beginning_where_another_group_is_without_permission_on_that(trial: SecuredTrial) -> None:
    topic, group, other = trial.topic(), name("g"), name("other")
    trial.allow(ResourceType.GROUP, other, AclOperation.READ, user="somebody-else")
    consumer = await trial.consumer(group, topic, start=f"group:{other}")
    for refused in (
        trial.broker().prepare(Subscription("test", group, (topic,), f"group:{other}")),
        consumer.receive(1, 0.1),
    ):
        with pytest.raises(BrokerError, match=f"not permitted to be a consumer of the group {other}: kafka-acls"):
            await refused


async def test_permission_that_is_taken_away_is_told(trial: SecuredTrial) -> None:
    topic, other, group = trial.topic(), trial.topic(), name("g")
    consumer = await trial.consumer(group, topic, other, topic__metadata__refresh__interval__ms=300)
    trial.produce(topic, b"1")
    trial.produce(other, b"1")
    await received(consumer, 2)
    trial.allow(ResourceType.TOPIC, other, AclOperation.READ, user="somebody-else")
    while consumer.problem is None:
        await consumer.receive(10, 0.2)
    assert f"not permitted to read the topic {other}" in str(consumer.problem)
    trial.produce(topic, b"2")
    assert bodies(await received(consumer, 1)) == [b"2"]


async def test_what_the_documents_grant_is_enough(trial: SecuredTrial) -> None:
    topic, group = trial.topic(), name("g")
    trial.allow(ResourceType.TOPIC, topic, AclOperation.WRITE, AclOperation.READ)
    trial.allow(ResourceType.GROUP, group, AclOperation.READ)
    await trial.broker().prepare(Subscription("test", group, (topic,), "earliest"))
    assert verdicts(await (await trial.publisher()).publish([envelope(topic, None, b"1")])) == [ACKNOWLEDGED]
    consumer = await trial.consumer(group, topic)
    await consumer.acknowledge(await received(consumer, 1))
    await consumer.close()
    assert trial.committed(group, topic) == 1


async def test_creating_without_permission(trial: SecuredTrial) -> None:
    topic = name()
    trial.allow(ResourceType.TOPIC, topic, AclOperation.DESCRIBE)
    trial.allow(ResourceType.BROKER, "kafka-cluster", AclOperation.DESCRIBE)
    with pytest.raises(BrokerError, match=f"not permitted to create the topic {topic}: kafka-acls"):
        await trial.broker().topology([topic], None, create=True)
