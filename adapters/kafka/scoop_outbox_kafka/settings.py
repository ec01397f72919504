"""A URL and settings become the configurations of librdkafka's clients: ours below the user's, some refused."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from confluent_kafka import Consumer, KafkaException, Producer

from scoop_outbox.broker import BrokerError, get_logger

log = get_logger(__name__)
librdkafka = logging.getLogger("librdkafka.scoop_outbox")
"""Where librdkafka says what it says: in its own words, so under its own name. Others' lines are not filtered."""
# It calls a setting of ours experimental, and fatal what publisher.py mends.
_NO_NEWS = ("enable.gapless.guarantee is experimental", "unable to satisfy gap-less guarantee")
librdkafka.addFilter(lambda record: not any(text in record.getMessage() for text in _NO_NEWS))


class _Repeated(logging.Filter):
    """Lets a text through once a minute: while a broker is down, librdkafka says the same several times a second."""

    _QUIET, _MOST = 60.0, 1000
    _CHANGING = re.compile(r"#(?:consumer|producer)-\d+|after \d+ms")

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether it is news."""
        text, now = self._CHANGING.sub("", record.getMessage()), time.monotonic()
        if now - self._said.get(text, now - self._QUIET) < self._QUIET:
            return False
        if len(self._said) >= self._MOST:
            self._said.clear()
        self._said[text] = now
        return True


librdkafka.addFilter(_Repeated())

DEFAULT_PORT = 9092
_FORM = "it looks like kafka://user:password@host:9092,host2:9092?setting=value"
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(:(?P<port>\d+))?")
_SECRET = re.compile(r"password|secret|\.pem$|\.key$|token|credential")
_CONNECTION = ("sasl.", "ssl.", "security.", "enable.ssl.", "oauth_cb")
_CHECKED = "scoop.outbox.checked"

_BOTH: Mapping[str, object] = {
    "socket.nagle.disable": True,
    # After an outage it would be ten seconds before it is noticed that the broker is back.
    "reconnect.backoff.max.ms": 1000,
}

PRODUCER: Mapping[str, object] = {
    # What Java's producers do: messages of one key go to one partition, whoever publishes them.
    "partitioner": "murmur2_random",
    "compression.type": "lz4",
    # A batch is flushed at its end, so nothing waits for this; and larger requests cost client and broker less.
    "linger.ms": 20,
    # It is the broker that says what is too large. More than this in one request, and it hangs up without a word.
    "message.max.bytes": 64 * 1024 * 1024,
    "topic.metadata.propagation.max.ms": 3000,
    **_BOTH,
}
"""What a publisher is given unless the user says otherwise."""

CONSUMER: Mapping[str, object] = {
    "isolation.level": "read_committed",
    "partition.assignment.strategy": "cooperative-sticky",
    # What a process that was killed was reading is read on by others so much later; librdkafka says 45 s.
    "session.timeout.ms": 10_000,
    "fetch.queue.backoff.ms": 10,
    "socket.timeout.ms": 10_000,
    **_BOTH,
}
"""What a consumer is given unless the user says otherwise."""

PROMISED_PRODUCER: Mapping[str, object] = {
    "acks": "all",
    "enable.idempotence": True,
    "enable.gapless.guarantee": True,
    # With two requests under way, the second may be stored although the first is refused.
    "max.in.flight.requests.per.connection": 1,
    # Nothing is given up while what is behind it goes through: see publisher.py.
    "message.timeout.ms": 0,
    # What is neither held nor reported was acknowledged.
    "delivery.report.only.error": True,
    "allow.auto.create.topics": False,
}
"""What makes a publisher's promises true."""

PROMISED_CONSUMER: Mapping[str, object] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "allow.auto.create.topics": False,
}
"""What makes a consumer's promises true."""

_HOSTS = "name the brokers in the URL, kafka://host:9092,host2:9092"
_COMMITS = "offsets are committed once a message is stored durably, and never before"
_GIVEN_UP = (
    "a message that is given up while later ones go through breaks the order; say `publish.timeout` in seconds, after "
    "which the relay tries again"
)
_STRICT = "the order within a key, and that no message is lost, rest on it"
_OURS = "it is served by this adapter, which logs what it is told"

RESERVED: Mapping[str, str] = {
    "bootstrap.servers": _HOSTS,
    "metadata.broker.list": _HOSTS,
    "group.id": "say Scoop(group=...)",
    "auto.offset.reset": "say Scoop(start=...): earliest, latest, a time in ISO 8601, or group:NAME",
    "enable.auto.commit": _COMMITS,
    "auto.commit.enable": _COMMITS,
    "auto.commit.interval.ms": _COMMITS,
    "enable.auto.offset.store": _COMMITS,
    "allow.auto.create.topics": "nothing is created unless asked for: `scoop-outbox topology apply` creates topics",
    "acks": _STRICT,
    "request.required.acks": _STRICT,
    "enable.idempotence": _STRICT,
    "enable.gapless.guarantee": _STRICT,
    "max.in.flight": _STRICT,
    "max.in.flight.requests.per.connection": _STRICT,
    "message.timeout.ms": _GIVEN_UP,
    "delivery.timeout.ms": _GIVEN_UP,
    "retries": _GIVEN_UP,
    "message.send.max.retries": _GIVEN_UP,
    "transactional.id": "messages are published once by the outbox and recognised by their id, without transactions",
    "delivery.report.only.error": "it is on: what is neither held nor reported was acknowledged",
    "on_delivery": _OURS,
    "delivery_callback": _OURS,
    "dr_cb": _OURS,
    "dr_msg_cb": _OURS,
    "on_commit": _OURS,
    "error_cb": _OURS,
    "logger": _OURS,
    "default.topic.config": "give the settings of topics by their own names, beside all others",
}
"""What is refused, and what to say or why instead."""


@dataclass(frozen=True)
class Settings:
    """What the clients of one broker are made with.

    Attributes:
        bootstrap: the brokers, as librdkafka wants them.
        both: the user's settings for both sides.
        producer: the user's settings for publishers, with those for both sides.
        consumer: the user's settings for consumers, with those for both sides.
        publish_timeout: seconds after which a batch that is not answered failed for now.
        identity_header: name of the header that identifies messages of other producers.
        partitions: how many a topic gets that is created; None leaves it to the broker.
        replication_factor: how many copies of each; None leaves it to the broker.
    """

    bootstrap: str
    both: Mapping[str, object] = field(repr=False)
    producer: Mapping[str, object] = field(repr=False)
    consumer: Mapping[str, object] = field(repr=False)
    publish_timeout: float = 10.0
    identity_header: str | None = None
    partitions: int | None = None
    replication_factor: int | None = None

    @property
    def propagation(self) -> float:
        """Seconds that a topic may need to become known to the broker that is asked."""
        return float(str({**PRODUCER, **self.producer}["topic.metadata.propagation.max.ms"])) / 1000

    @property
    def message_max_bytes(self) -> int:
        """The most bytes that a publisher sends in one message."""
        return int(str(self.producer.get("message.max.bytes", PRODUCER["message.max.bytes"])))

    def for_producer(self, name: str) -> dict[str, object]:
        """Return the configuration of a publisher."""
        return {**PRODUCER, **self._common(name), **self.producer, **PROMISED_PRODUCER}

    def for_consumer(self, name: str, group: str) -> dict[str, object]:
        """Return the configuration of a consumer."""
        ours = dict(CONSUMER)
        if str(self.consumer.get("group.protocol", "")).lower() == "consumer":
            # There the broker assigns, and librdkafka refuses what the client would say about it.
            for decided in ("partition.assignment.strategy", "session.timeout.ms"):
                del ours[decided]
        return {**ours, **self._common(name), **self.consumer, **PROMISED_CONSUMER, "group.id": group}

    def for_admin(self, side: Mapping[str, object]) -> dict[str, object]:
        """Return the configuration of a client that looks and creates.

        Args:
            side: `producer` or `consumer`: as whom, and how it connects.
        """
        connection = {name: value for name, value in side.items() if name.startswith(_CONNECTION)}
        # By default the broker would create a topic that somebody only looks for.
        return {**self._common("scoop-outbox"), **self.both, **connection, "allow.auto.create.topics": False}

    def _common(self, name: str) -> dict[str, object]:
        return {"bootstrap.servers": self.bootstrap, "client.id": name, "logger": librdkafka}

    def redacted(self, text: str) -> str:
        """Return a text without any secret of these settings."""
        for settings in (self.producer, self.consumer):
            for name, value in settings.items():
                if _SECRET.search(name) and isinstance(value, str) and value:
                    text = text.replace(value, "[hidden]")
        return text


def read_settings(url: str, settings: Mapping[str, object]) -> Settings:
    """Return what a URL and settings say.

    Args:
        url: `kafka://[user:password@]host[:port][,host...][?setting=value&...]`.
        settings: on top of those in the URL.

    Raises:
        BrokerError: one of them is wrong; no secret is shown.
    """
    bootstrap, found = _read_url(url)
    found |= settings
    own = {name: found.pop(name) for name in OWN if name in found}
    both: dict[str, object] = {}
    sides: dict[str, dict[str, object]] = {"producer.": {}, "consumer.": {}}
    for name, value in found.items():
        prefix = next((prefix for prefix in sides if name.startswith(prefix)), "")
        bare = name.removeprefix(prefix)
        (sides[prefix] if prefix else both)[bare] = _value(name, bare, value)
    if ("sasl.username" in both or "oauth_cb" in both) and not {"security.protocol"} & set(both):
        # A password never goes over the wire in the clear unless somebody says so.
        both["security.protocol"] = "SASL_SSL"
    if "sasl.username" in both and not {"sasl.mechanism", "sasl.mechanisms"} & set(both):
        both["sasl.mechanism"] = "PLAIN"
    read = Settings(
        bootstrap,
        both,
        {**both, **sides["producer."]},
        {**both, **sides["consumer."]},
        **{OWN[name][0]: OWN[name][1](name, value) for name, value in own.items()},  # type: ignore[arg-type]
    )
    _check(read)
    return read


def _read_url(url: str) -> tuple[str, dict[str, object]]:
    scheme, _, rest = url.partition("://")
    if scheme != "kafka" or not rest:
        raise BrokerError(f"the broker URL is none of Kafka: {_FORM}")
    rest, _, query = rest.partition("?")
    user, at, hosts = rest.rpartition("@")
    hosts, _, path = hosts.partition("/")
    if path:
        raise BrokerError(f"the broker URL names something behind the hosts, which Kafka has not: {_FORM}")
    addresses = []
    for one in hosts.split(","):
        match = _HOST.fullmatch(one)
        if match is None or not 0 < int(match["port"] or DEFAULT_PORT) < 1 << 16:
            raise BrokerError(f"the broker URL cannot be parsed: {_FORM}")
        addresses.append(f"{match['host']}:{match['port'] or DEFAULT_PORT}")
    found: dict[str, object] = {}
    if at:
        name, _, password = user.partition(":")
        found |= {"sasl.username": unquote(name), "sasl.password": unquote(password)}
    for pair in query.split("&") if query else ():
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise BrokerError(f"the broker URL has a setting without a value: {_FORM}")
        found[unquote(name)] = unquote(value)
    return ",".join(addresses), found


def _value(name: str, bare: str, value: object) -> object:
    if bare in RESERVED and not _same(bare, value):
        raise BrokerError(f"the setting {name} is reserved: {RESERVED[bare]}")
    if bare == "oauth_cb" and callable(value):
        return _heeded(value)
    if not isinstance(value, str | int | float | bool):
        raise BrokerError(f"the setting {name} is text, a number or a boolean, not {type(value).__name__}")
    return value


def _heeded(oauth_cb: Callable[[str], object]) -> Callable[[str], object]:
    """Return a function that says so in the log when it has no token: librdkafka says only that there is none."""

    def heeded(configuration: str) -> object:
        try:
            return oauth_cb(configuration)
        except Exception as error:
            # By its class: what it says may hold a secret.
            log.error("kafka: oauth_cb failed (%s)", type(error).__name__)  # noqa: TRY400 - as above
            raise

    return heeded


def _same(name: str, value: object) -> bool:
    """Tell whether somebody asks for what is done anyway."""
    promised = {**PROMISED_PRODUCER, **PROMISED_CONSUMER}.get(name)
    allowed = {"-1", "all"} if name == "acks" else {str(promised).lower()}
    return promised is not None and name != "auto.offset.reset" and str(value).lower() in allowed


def _number(name: str, value: object) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = 0
    if number < 1:
        raise BrokerError(f"the setting {name} is a number from 1 up, not {value!r}")
    return number


def _seconds(name: str, value: object) -> float:
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise BrokerError(f"the setting {name} is a number of seconds above 0, not {value!r}")
    return seconds


def _name(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise BrokerError(f"the setting {name} is the name of a header, not {value!r}")
    return value


OWN = {
    "publish.timeout": ("publish_timeout", _seconds),
    "identity.header": ("identity_header", _name),
    "topology.partitions": ("partitions", _number),
    "topology.replication.factor": ("replication_factor", _number),
}


def _check(settings: Settings) -> None:
    """Have librdkafka look at every setting, in the order of their writing, and open nothing."""
    for client, name, configuration in (
        (Producer, "producer", settings.producer),
        (Consumer, "consumer", settings.consumer),
    ):
        for setting, value in configuration.items():
            if callable(value):
                continue
            try:
                # The last one does not exist: when librdkafka says so, those before it are well, and no client is made.
                client({"group.id": "checked", setting: value, _CHECKED: ""})
            except (KafkaException, TypeError, ValueError) as error:
                reason = error.args[0].str() if isinstance(error, KafkaException) else str(error)
                if _CHECKED not in reason:
                    known = f"the setting {setting} of the {name} is wrong"
                    raise BrokerError(settings.redacted(f"{known}: librdkafka says: {reason}")) from None
