"""What a URL and the settings beside it say."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from scoop_outbox.broker import BrokerError

PORTS = {"amqp": 5672, "amqps": 5671}
_SECURE = "amqps"
DEFAULT_EXCHANGE = "amq.topic"
_QUEUE = "queue."
_SINGLE_ACTIVE = "queue.single-active-consumer"
_ARGUMENTS = ("arguments.queue.", "arguments.consumer.")
_EXCHANGE_TYPES = ("topic", "direct", "fanout", "headers")

_ALIASES = {
    "connection_timeout": "timeout",
    "connection_name": "name",
    "cacertfile": "cafile",
    "ca_certs": "cafile",
    "no_verify": "no_verify_ssl",
    "auth_mechanism": "auth",
}

_KNOWN = (
    "exchange",
    "exchange.type",
    "queue.<topic>",
    _SINGLE_ACTIVE,
    "arguments.queue.x-...",
    "arguments.consumer.x-...",
    "mandatory",
    "pipeline",
    "identity",
    "prefetch",
    "heartbeat",
    "timeout",
    "name",
    "frame_max",
    "channel_max",
    "cafile",
    "capath",
    "certfile",
    "keyfile",
    "no_verify_ssl",
    "server_name_indication",
    "auth",
)

_VERIFY = "verify"
_OF_TLS = ("cafile", "capath", "certfile", "keyfile", "no_verify_ssl", _VERIFY, "server_name_indication")

_RESERVED = {
    "publisher_confirms": "a message leaves the outbox only when the broker has confirmed it",
    "on_return_raises": "what no queue gets is always reported; turn that off with mandatory=false",
    "delivery_mode": "messages are persistent, or a restart of the broker would lose them",
    "no_ack": "a message is acknowledged when it is stored in the database, never before",
    "auto_ack": "a message is acknowledged when it is stored in the database, never before",
    "global_qos": "quorum queues refuse it; use prefetch, which counts for each queue",
    "prefetch_count": "it is called prefetch here",
    "reconnect_interval": "the adapter reconnects by itself, and waits longer each time",
    "fail_fast": "the adapter reconnects by itself, and waits longer each time",
    "arguments.queue.x-queue-type": "queues that are created are quorum queues, which lose nothing with a node",
    "arguments.queue.x-single-active-consumer": "it is called queue.single-active-consumer here",
    "message_id": "it holds the id of the message, by which duplicates are noticed",
    **dict.fromkeys(
        ("host", "port", "login", "user", "username", "password", "virtualhost", "vhost"),
        "it belongs into the URL: amqp://user:password@host:5672/vhost",
    ),
    **dict.fromkeys(("ssl", "ssl_options", "tls"), "use a URL that begins with amqps://"),
}


Argument = bool | int | str


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be said about a RabbitMQ. Its text never shows the password.

    Attributes:
        secure: whether to talk TLS.
        hosts: tried in turn.
        user: who connects.
        password: its password.
        vhost: virtual host.
        exchange: where topics without a slash are published.
        exchange_type: of exchanges that are created.
        queues: for topics that have a queue of their own, its name.
        queue_arguments: of queues that are created, on top of ours.
        consumer_arguments: of consumers.
        single_active_consumer: queues that are created have one consumer at a time, and so keep the order.
        mandatory: a message that no queue gets fails.
        pipeline: messages of one key do not wait for the confirms of each other.
        content_identity: what a message without an id of its own says makes its id; otherwise its delivery does.
        prefetch: how many messages a consumer holds at most that are not acknowledged, for each queue.
        heartbeat: seconds; a broker that has been silent for so long is considered gone.
        timeout: seconds to wait for a connection to each host.
        name: what operators see beside the service's name.
        frame_max: largest frame in bytes, if smaller than the broker's.
        channel_max: most channels, if fewer than the broker's.
        external: authenticate by the client's certificate.
    """

    secure: bool
    hosts: tuple[tuple[str, int], ...]
    user: str
    password: str = field(repr=False)
    vhost: str = "/"
    exchange: str = DEFAULT_EXCHANGE
    exchange_type: str = "topic"
    queues: Mapping[str, str] = field(default_factory=dict)
    queue_arguments: Mapping[str, Argument] = field(default_factory=dict)
    consumer_arguments: Mapping[str, Argument] = field(default_factory=dict)
    single_active_consumer: bool = False
    mandatory: bool = True
    pipeline: bool = False
    content_identity: bool = True
    prefetch: int = 1000
    heartbeat: int = 10
    timeout: float = 5.0
    name: str = ""
    frame_max: int | None = None
    channel_max: int | None = None
    external: bool = False
    verify: bool = True
    cafile: str | None = None
    capath: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    server_name: str | None = None

    def tls(self) -> ssl.SSLContext | None:
        """Return what TLS needs, read anew from its files, so that renewed certificates are noticed.

        Raises:
            BrokerError: a file cannot be read or holds something else.
        """
        if not self.secure:
            return None
        for name in ("cafile", "capath", "certfile", "keyfile"):
            path = getattr(self, name)
            if path is not None and not Path(path).exists():
                raise BrokerError(f"the setting {name} names {path}, which does not exist")
        try:
            context = ssl.create_default_context(cafile=self.cafile, capath=self.capath)
            if self.certfile is not None:
                context.load_cert_chain(self.certfile, self.keyfile, password=_no_password)
        except (OSError, ValueError) as error:
            raise BrokerError(
                f"TLS cannot be set up from cafile, certfile and keyfile ({type(error).__name__}): "
                "they have to be PEM files, and the key has to belong to the certificate"
            ) from None
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def read_settings(url: str, settings: Mapping[str, object]) -> Settings:
    """Return what a URL and the settings on top of it say.

    Raises:
        BrokerError: one of them is wrong; the message never shows the password.
    """
    scheme, authority, path, query = _split(url)
    # A plus sign is one: this is no form.
    pairs = (pair.partition("=") for pair in query.split("&") if pair)
    values: dict[str, object] = {unquote(name): unquote(value) for name, _, value in pairs}
    if "@" in query and not all(map(_is_known, values)):
        raise BrokerError(_UNPARSED)  # with an @ in the user it is a password again
    if scheme != _SECURE:
        _refuse_settings_of_tls((*values, *settings))
    values = {**_named(values), **_named(settings)}
    credentials, _, addresses = authority.rpartition("@")
    user, _, password = credentials.partition(":")
    read = Settings(
        secure=scheme == _SECURE,
        hosts=_hosts(addresses, PORTS[scheme]),
        user=unquote(user) or "guest",
        password=unquote(password) if credentials else "guest",
        vhost=unquote(path.removeprefix("/")) or "/",
        **_read(values),
    )
    if read.keyfile is not None and read.certfile is None:
        raise BrokerError("the setting keyfile needs certfile, the certificate that the key belongs to")
    read.tls()
    return read


_UNPARSED = (
    "the broker URL cannot be parsed: write / as %2F, @ as %40, # as %23 and ? as %3F in user, password and vhost, "
    "and @ as %40 in settings"
)


def _no_password() -> bytes:
    # Without an answer from here OpenSSL asks on the terminal, and a service waits there for ever.
    raise BrokerError(
        "the file of the setting keyfile is encrypted, and there is nobody to ask for its password: name one that "
        "is not (openssl pkey -in KEYFILE -out NEW), readable by the service alone"
    )


def _refuse_settings_of_tls(names: Iterable[str]) -> None:
    for name in names:
        if _ALIASES.get(name, name) in _OF_TLS:
            raise BrokerError(
                f"the setting {name} is for TLS, and the broker URL begins with amqp://: write amqps://, or leave the "
                "setting out"
            )


def _split(url: str) -> tuple[str, str, str, str]:
    # Not with urlsplit alone: it refuses several hosts, and shows the URL when it does.
    scheme, found, rest = url.partition("://")
    if not found or scheme not in PORTS:
        raise BrokerError(
            "the broker URL has to look like amqp://user:password@host:5672/vhost, or amqps://... for TLS"
        )
    rest, _, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    # What is behind a ? in a password would be taken for a setting, and shown as one that nobody knows.
    if "#" in rest or "@" in path or ("@" in query and "@" not in authority):
        raise BrokerError(_UNPARSED)
    return scheme, authority, slash + path, query


def _hosts(addresses: str, default: int) -> tuple[tuple[str, int], ...]:
    found = []
    for address in addresses.split(","):
        try:
            parts = urlsplit(f"//{address}")
            found.append((parts.hostname or "localhost", parts.port or default))
        except ValueError:
            raise BrokerError(
                "a host in the broker URL cannot be parsed: it is host, host:port or [IPv6]:port, several with commas"
            ) from None
    return tuple(found)


def _is_known(name: str) -> bool:
    free = any(name.startswith(begin) and name != begin for begin in (_QUEUE, *_ARGUMENTS))
    return free or name in _KNOWN or name in _ALIASES or name in _RESERVED or name == _VERIFY


def _named(values: Mapping[str, object]) -> dict[str, object]:
    named: dict[str, object] = {}
    for name, value in values.items():
        if name == _VERIFY:
            named["no_verify_ssl"] = str(value).lower() in ("verify_none", "false", "0", "no")
            continue
        named[_ALIASES.get(name, name)] = value
    for name in named:
        if name in _RESERVED:
            raise BrokerError(f"the setting {name} is not yours to choose: {_RESERVED[name]}")
        if not _is_known(name):
            raise BrokerError(f"RabbitMQ has no setting {name!r} here; known are {', '.join(sorted(_KNOWN))}")
    return named


def _read(values: Mapping[str, object]) -> dict[str, Any]:
    read: dict[str, Any] = {}

    def take(name: str, attribute: str, convert: Any) -> None:
        if name in values:
            try:
                read[attribute] = convert(values[name])
            except (ValueError, TypeError) as error:
                raise BrokerError(f"the setting {name} cannot be {values[name]!r}: {error}") from None

    take("exchange", "exchange", _text)
    take("exchange.type", "exchange_type", _choice(*_EXCHANGE_TYPES, free="x-"))
    take(_SINGLE_ACTIVE, "single_active_consumer", _boolean)
    take("mandatory", "mandatory", _boolean)
    take("pipeline", "pipeline", _boolean)
    take("identity", "content_identity", lambda value: _choice("content", "delivery")(value) == "content")
    take("prefetch", "prefetch", _whole(1, 65535))
    take("heartbeat", "heartbeat", _whole(1, 3600))
    take("timeout", "timeout", _seconds)
    take("name", "name", _text)
    take("frame_max", "frame_max", _whole(4096, 1 << 31))
    take("channel_max", "channel_max", _whole(1, 65535))
    take("auth", "external", lambda value: _choice("plain", "external")(str(value).lower()) == "external")
    take("no_verify_ssl", "verify", lambda value: not _boolean(value))
    for name in ("cafile", "capath", "certfile", "keyfile"):
        take(name, name, _text)
    take("server_name_indication", "server_name", _text)
    read["queues"] = {
        name.removeprefix(_QUEUE): _text(value)
        for name, value in values.items()
        if name.startswith(_QUEUE) and name != _SINGLE_ACTIVE
    }
    for prefix, attribute in zip(_ARGUMENTS, ("queue_arguments", "consumer_arguments"), strict=True):
        read[attribute] = {
            name.removeprefix(prefix): _argument(value) for name, value in values.items() if name.startswith(prefix)
        }
    return read


def _text(value: object) -> str:
    return str(value)


def _argument(value: object) -> Argument:
    """Return the value of an argument as RabbitMQ wants it: a number or a boolean where a text says one."""
    text = str(value)
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if text.removeprefix("-").isascii() and text.removeprefix("-").isdigit() else text


def _boolean(value: object) -> bool:
    known = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    found = known.get(str(value).lower())
    if found is None:
        raise ValueError("it is true or false")
    return found


def _seconds(value: object) -> float:
    seconds = float(str(value))
    if not 0 < seconds <= 600:  # noqa: PLR2004 - what anybody could mean
        raise ValueError("it is a number of seconds between 0 and 600")
    return seconds


def _whole(least: int, most: int) -> Any:
    def convert(value: object) -> int:
        text = str(value)
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise ValueError(f"it is a whole number from {least} to {most}")
        return int(text)

    return convert


def _choice(*allowed: str, free: str | None = None) -> Any:
    def convert(value: object) -> str:
        text = str(value)
        if text not in allowed and not (free is not None and text.startswith(free)):
            raise ValueError(f"it is one of {', '.join(allowed)}")
        return text

    return convert
