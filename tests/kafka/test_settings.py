"""URLs and settings: what they become, and what is refused in words."""

import asyncio
import logging
import secrets
from pathlib import Path

import pytest
from scoop_outbox_kafka import open_broker
from scoop_outbox_kafka.settings import CONSUMER, OWN, PRODUCER, RESERVED, read_settings

from scoop_outbox.broker.plugins import load
from scoop_outbox.broker.protocol import Feature
from scoop_outbox.errors import BrokerError


def test_the_scheme_finds_the_adapter() -> None:
    broker = load("kafka://localhost")
    assert broker.features == frozenset(Feature)
    assert repr(broker) == "<KafkaBroker localhost:9092>"


@pytest.mark.parametrize(
    "url, bootstrap",
    [
        ("kafka://localhost", "localhost:9092"),
        ("kafka://one:1,two,three:3/", "one:1,two:9092,three:3"),
        ("kafka://[::1]:9093", "[::1]:9093"),
    ],
)
def test_brokers(url: str, bootstrap: str) -> None:
    assert read_settings(url, {}).bootstrap == bootstrap
    assert read_settings(url, {}).for_producer("x")["bootstrap.servers"] == bootstrap


@pytest.mark.parametrize(
    "url",
    [
        "kafka://",
        "kafka://:9092",
        "kafka://host:port",
        "kafka://host:0",
        "kafka://host:65536",
        "kafka://host/topic",
        "kafka://host,,other",
        "kafka://host?linger.ms",
        "kafka://hidden:hidden@host:port",
    ],
)
def test_urls_that_cannot_be_parsed(url: str) -> None:
    with pytest.raises(BrokerError, match="it looks like kafka://user:password@host:9092") as caught:
        open_broker(url, {})
    assert "hidden" not in str(caught.value)


def test_a_user_goes_by_tls_unless_told_otherwise() -> None:
    found = read_settings("kafka://m%40e:p%2F+%3A@host", {}).for_consumer("x", "g")
    assert found["sasl.username"] == "m@e"
    assert found["sasl.password"] == "p/+:"
    assert found["security.protocol"] == "SASL_SSL"
    assert found["sasl.mechanism"] == "PLAIN"
    plain = read_settings("kafka://me:secret@host?security.protocol=sasl_plaintext&sasl.mechanisms=SCRAM-SHA-512", {})
    assert plain.for_producer("x")["security.protocol"] == "sasl_plaintext"
    assert "sasl.mechanism" not in plain.for_producer("x")


def test_settings_reach_their_side() -> None:
    settings = read_settings(
        "kafka://host?linger.ms=7&client.rack=a&producer.batch.size=1000",
        {"consumer.fetch.min.bytes": 5, "client.rack": "b", "consumer.isolation.level": "read_uncommitted"},
    )
    producer, consumer = settings.for_producer("x"), settings.for_consumer("x", "g")
    assert producer["linger.ms"] == "7"
    assert producer["client.rack"] == consumer["client.rack"] == "b"
    assert producer["batch.size"] == "1000"
    assert "batch.size" not in consumer
    assert consumer["fetch.min.bytes"] == 5
    assert "fetch.min.bytes" not in producer
    assert consumer["isolation.level"] == "read_uncommitted"


def test_what_is_set_unless_the_user_says_otherwise() -> None:
    producer = read_settings("kafka://host", {}).for_producer("x")
    consumer = read_settings("kafka://host", {}).for_consumer("x", "g")
    assert producer["partitioner"] == "murmur2_random"
    assert read_settings("kafka://host?partitioner=consistent", {}).for_producer("x")["partitioner"] == "consistent"
    assert producer["enable.idempotence"] is True
    assert producer["acks"] == "all"
    assert producer["allow.auto.create.topics"] is consumer["allow.auto.create.topics"] is False
    assert consumer["partition.assignment.strategy"] == "cooperative-sticky"
    assert consumer["isolation.level"] == "read_committed"
    assert consumer["group.id"] == "g"
    # librdkafka refuses it together with the newer protocol.
    newer = read_settings("kafka://host?consumer.group.protocol=consumer", {}).for_consumer("x", "g")
    assert not {"partition.assignment.strategy", "session.timeout.ms"} & set(newer)


@pytest.mark.parametrize("setting", sorted(RESERVED))
@pytest.mark.parametrize("prefix", ["", "producer.", "consumer."])
def test_reserved_settings_are_refused_with_a_reason(setting: str, prefix: str) -> None:
    with pytest.raises(BrokerError) as caught:
        open_broker("kafka://host", {prefix + setting: "17"})
    assert f"the setting {prefix}{setting} is reserved: {RESERVED[setting]}" == str(caught.value)


@pytest.mark.parametrize(
    "setting, instead", [("group.id", "Scoop(group=...)"), ("auto.offset.reset", "Scoop(start=...)")]
)
def test_what_to_say_instead(setting: str, instead: str) -> None:
    with pytest.raises(BrokerError, match="is reserved: say Scoop") as caught:
        open_broker(f"kafka://host?{setting}=earliest", {})
    assert instead in str(caught.value)


def test_what_is_done_anyway_may_be_asked_for() -> None:
    open_broker("kafka://host?acks=-1&enable.idempotence=true", {"enable.auto.commit": False, "producer.acks": "all"})


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("linger.mss", "5", 'No such configuration property: "linger.mss"'),
        ("linger.ms", "soon", "Invalid value for configuration property"),
        ("consumer.fetch.min.bytes", "-1", "outside allowed range"),
        ("compression.type", "zip", "Invalid value"),
    ],
)
def test_librdkafka_says_what_is_wrong_with_a_setting(name: str, value: str, said: str) -> None:
    with pytest.raises(BrokerError) as caught:
        open_broker("kafka://host", {name: value})
    text = str(caught.value)
    assert said in text
    assert f"the setting {name.removeprefix('consumer.')} of the" in text


def test_settings_that_do_not_go_together_are_refused_when_they_are_used() -> None:
    broker = open_broker("kafka://host?ssl.ca.location=/nowhere/ca.pem&security.protocol=ssl", {})
    with pytest.raises(BrokerError, match=r"no Kafka producer can be made: .*ssl\.ca\.location"):
        asyncio.run(broker.publisher("x"))


def test_a_value_has_to_be_one() -> None:
    with pytest.raises(BrokerError, match=r"linger\.ms is text, a number or a boolean, not list"):
        open_broker("kafka://host", {"linger.ms": [5]})


@pytest.mark.parametrize(
    "name, value",
    [
        ("publish.timeout", "0"),
        ("publish.timeout", "soon"),
        ("publish.timeout", "inf"),
        ("topology.partitions", 0),
        ("topology.replication.factor", "many"),
        ("identity.header", ""),
    ],
)
def test_our_own_settings_are_checked(name: str, value: object) -> None:
    with pytest.raises(BrokerError, match=f"the setting {name} is"):
        open_broker("kafka://host", {name: value})


def test_our_own_settings() -> None:
    settings = read_settings(
        "kafka://host?publish.timeout=2.5&topology.partitions=6",
        {"topology.replication.factor": 3, "identity.header": "id"},
    )
    assert (settings.publish_timeout, settings.partitions, settings.replication_factor) == (2.5, 6, 3)
    assert settings.identity_header == "id"


@pytest.mark.parametrize("setting", sorted({*RESERVED, *PRODUCER, *CONSUMER, *OWN}))
def test_every_setting_is_explained(setting: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "kafka.md").read_text(encoding="utf-8")
    assert any(line.startswith("|") and f"`{setting}`" in line for line in text.splitlines())


@pytest.mark.parametrize("setting, value", sorted({**PRODUCER, **CONSUMER}.items()))
def test_every_default_is_explained(setting: str, value: object) -> None:
    text = (Path(__file__).parents[2] / "docs" / "kafka.md").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith(f"| `{setting}`")]
    assert f"`{str(value).lower()}`" in line


def test_no_secret_is_shown() -> None:
    url = "kafka://me:s3cr3t@host?ssl.key.password=pr1v4te&consumer.ssl.key.pem=p3m"
    settings = read_settings(url, {})
    for secret in ("s3cr3t", "pr1v4te", "p3m"):
        assert secret not in repr(settings)
        assert secret not in repr(open_broker(url, {}))
        assert secret not in settings.redacted(f"it was {secret}, they say")
    with pytest.raises(BrokerError) as caught:
        open_broker(url + "&linger.ms=s3cr3t", {})
    assert "s3cr3t" not in str(caught.value)


def test_what_librdkafka_says_again_and_again_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("librdkafka.scoop_outbox")
    where = secrets.token_hex(6)
    for consumer in (1, 2):
        for milliseconds in (0, 301):
            log.error(
                "FAIL [scoop#consumer-%d] %s: refused (after %dms in state CONNECT)", consumer, where, milliseconds
            )
    log.error("FAIL [scoop#consumer-1] %s: no such user (after 1ms in state AUTH_REQ)", where)

    assert [text.rpartition(": ")[2].partition(" (")[0] for text in caplog.messages] == ["refused", "no such user"]


def test_who_looks_connects_as_the_side_for_which_it_looks() -> None:
    found = read_settings(
        "kafka://h?security.protocol=SASL_SSL&sasl.mechanism=PLAIN",
        {
            "producer.sasl.username": "relay",
            "producer.sasl.password": "r",
            "producer.linger.ms": 1,
            "consumer.sasl.username": "shop",
            "consumer.sasl.password": "s",
        },
    )
    looks, creates = found.for_admin(found.consumer), found.for_admin(found.producer)

    assert (looks["sasl.username"], looks["sasl.password"]) == ("shop", "s")
    assert (creates["sasl.username"], creates["sasl.password"]) == ("relay", "r")
    assert looks["security.protocol"] == creates["security.protocol"] == "SASL_SSL"
    assert "linger.ms" not in creates


def test_what_the_client_sends_at_most_is_known_before_anything_is_launched() -> None:
    assert open_broker("kafka://host", {}).most_bytes == 64 * 1024 * 1024
    assert open_broker("kafka://host?message.max.bytes=1000", {}).most_bytes == 1000
    assert open_broker("kafka://host", {"producer.message.max.bytes": 2000}).most_bytes == 2000
