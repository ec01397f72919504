"""What is said when something is configured wrongly: what is wrong, how to mend it, and no secret.

From end to end: by `Scoop(...)`, by running a service, and by the command line.
"""

import asyncio
import re
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pytest

from scoop_outbox import BrokerError, Scoop
from scoop_outbox.app import service_of
from scoop_outbox.broker import plugins
from scoop_outbox.operations.handlers import ForgetStatus, Handlers
from tests.dropin.listener import Listener
from tests.dropin.refusals import SECRET, log_of, refusal_of, refusal_of_worker, refusal_to_run, said
from tests.kafka.trial import Trial as KafkaTrial
from tests.kafka.trial import name
from tests.rabbitmq.trial import Trial as RabbitTrial

KAFKA_FORM = "it looks like kafka://user:password@host:9092,host2:9092?setting=value"
BOTH_FORMS = "it looks like kafka://host:9092 or amqp://user:password@host:5672"
START = (
    'say Scoop(start=...): "earliest" for all that the topic still has, "latest" for what is published from now on, '
    'a time in ISO 8601 such as "2026-01-31T12:00:00+00:00", or "group:NAME" to go on where another group is'
)


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
        "the broker URL cannot be parsed: write / as %2F, @ as %40, # as %23 and ? as %3F in user, password and vhost, "
        "and @ as %40 in settings"
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
    assert service_of(Scoop("shop", broker=url)).broker is not None


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


async def test_a_relay_that_was_told_of_no_broker_does_not_keep_messages_from_it(
    rabbit: RabbitTrial, database_url: str
) -> None:
    shop = Listener(database_url, rabbit.url, name("shop"), name("orders")).app
    await shop.apply_topology()
    await shop.announce()
    await shop.close()
    expected = (
        f"services of this database use a broker ({shop.service}), and this relay has none: its messages would not "
        "leave the database. Configure the broker (--broker, SCOOP_OUTBOX_BROKER, broker=). To move away from it, "
        "drain its queues and set the broker to postgresql:// in every process"
    )
    other = Scoop("other", database=database_url)

    with pytest.raises(BrokerError) as error:
        async with other.running():
            pass
    assert said(error.value) == expected
    # It publishes nothing, or was told: both may run.
    async with other.running(relay=False), Scoop("relay", database=database_url, broker="postgresql://").running():
        pass
    # That it has a broker is not unsaid by a process that does without one, even on purpose.
    async with Listener(database_url, "postgresql://", shop.service, "orders").running():
        pass
    with pytest.raises(BrokerError):
        async with other.running():
            pass
    # The service has left its broker for good.
    with Handlers(database_url) as handlers:
        assert (await asyncio.to_thread(handlers.forget, shop.service)).status is ForgetStatus.FORGOTTEN
    async with Listener(database_url, "postgresql://", shop.service, "orders").running(), other.running():
        pass


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
