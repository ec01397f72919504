"""URL and settings: what they mean, and what is said of those that mean nothing."""

from pathlib import Path

import pytest
from scoop_outbox_rabbitmq import open_broker
from scoop_outbox_rabbitmq.settings import _ALIASES, _KNOWN, _RESERVED, read_settings

from scoop_outbox.errors import BrokerError


def test_a_url_says_hosts_user_password_vhost_and_settings() -> None:
    read = read_settings("amqps://me%40x:s%2Fcret@one,two:5000,[::1]:7/my%2Fhost?heartbeat=7&no_verify=1", {})

    assert read.hosts == (("one", 5671), ("two", 5000), ("::1", 7))
    assert (read.user, read.password, read.vhost) == ("me@x", "s/cret", "my/host")
    assert (read.secure, read.heartbeat, read.verify) == (True, 7, False)


def test_without_anything_the_defaults_of_rabbitmq_hold() -> None:
    read = read_settings("amqp://", {})

    assert (read.hosts, read.user, read.password, read.vhost) == ((("localhost", 5672),), "guest", "guest", "/")
    assert (read.exchange, read.mandatory, read.content_identity, read.prefetch) == ("amq.topic", True, True, 1000)


def test_settings_come_on_top_of_the_url() -> None:
    given = {
        "connection_timeout": "2.5",
        "prefetch": 7,
        "mandatory": False,
        "identity": "delivery",
        "queue.orders.created": "theirs",
        "queue.single-active-consumer": "true",
        "auth_mechanism": "EXTERNAL",
        "verify": "verify_none",
        "exchange.type": "x-consistent-hash",
        "arguments.queue.x-delivery-limit": "-1",
        "arguments.queue.x-overflow": "reject-publish",
        "arguments.consumer.x-priority": 10,
    }
    read = read_settings("amqps://h/?prefetch=5&name=shop+more&arguments.queue.x-quorum%2Dlazy=True", given)

    assert (read.timeout, read.prefetch, read.mandatory, read.content_identity) == (2.5, 7, False, False)
    assert (read.name, read.queues, read.single_active_consumer) == ("shop+more", {"orders.created": "theirs"}, True)
    assert read.queue_arguments == {"x-delivery-limit": -1, "x-overflow": "reject-publish", "x-quorum-lazy": True}
    assert read.consumer_arguments == {"x-priority": 10}
    assert (read.external, read.verify, read.exchange_type) == (True, False, "x-consistent-hash")


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("prefech", 1, "known are .*prefetch"),
        ("queue.", "q", "known are"),
        ("arguments.queue.", 1, "known are"),
        ("arguments.queue.x-queue-type", "classic", "not yours to choose: .*quorum"),
        ("no_ack", True, "not yours to choose: .*stored"),
        ("publisher_confirms", False, "not yours to choose: .*confirmed"),
        ("password", "x", "not yours to choose: .*URL"),
        ("prefetch", 0, "whole number from 1"),
        ("prefetch", "many", "whole number from 1"),
        ("mandatory", "maybe", "true or false"),
        ("timeout", "nan", "number of seconds"),
        ("exchange.type", "heap", "one of topic"),
        ("identity", "none", "one of content"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(name: str, value: object, said: str) -> None:
    with pytest.raises(BrokerError, match=said) as caught:
        open_broker("amqp://me:secret@h/", {name: value})

    assert name in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "amqp://me:sec/ret@h/",
        "amqp://me:sec#ret@h/",
        "amqp://me:s?ecret@h/",
        "amqp://me:s?sec=ret@h/",
        "amqp://m@e:12?secret@h/",
        "amqp://m@e:12?sec=ret@h/",
        "amqp://me:secret@h:port/",
        "amqp://me:secret@h:99999/",
        "amqp:x",
    ],
)
def test_a_wrong_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(BrokerError, match="URL") as caught:
        open_broker(url, {})

    assert "sec" not in str(caught.value)
    assert "ecret" not in str(caught.value)


def test_an_at_sign_in_a_setting_is_none_of_a_password() -> None:
    read = read_settings("amqp://me:secret@h/?name=me@here", {})
    without_user = read_settings("amqp://h/?name=me%40here", {})

    assert (read.password, read.name) == ("secret", "me@here")
    assert (without_user.user, without_user.name) == ("guest", "me@here")


def test_nothing_shows_the_password() -> None:
    broker = open_broker("amqp://me:secret@h/?prefetch=5", {})

    assert "secret" not in f"{broker!r} {broker._settings!r} {broker._settings}"


def test_a_missing_certificate_is_named() -> None:
    with pytest.raises(BrokerError, match=r"cafile names /nowhere/ca\.pem"):
        open_broker("amqps://h/?cafile=/nowhere/ca.pem", {})


@pytest.mark.parametrize(
    "name, value",
    [
        ("cafile", "ca.pem"),
        ("ca_certs", "ca.pem"),
        ("capath", "certificates"),
        ("certfile", "me.pem"),
        ("keyfile", "me-key.pem"),
        ("verify", "verify_peer"),
        ("no_verify_ssl", "true"),
        ("server_name_indication", "rabbit.test"),
    ],
)
def test_a_setting_of_tls_without_tls_is_refused_by_name(name: str, value: str) -> None:
    beside: dict[str, object] = {name: value}
    for url, settings in ((f"amqp://me:secret@h/?{name}={value}", {}), ("amqp://me:secret@h/", beside)):
        with pytest.raises(BrokerError, match=f"the setting {name} is for TLS.*amqps://") as caught:
            open_broker(url, settings)
        assert "secret" not in str(caught.value)


def test_a_key_without_a_certificate_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.touch()

    with pytest.raises(BrokerError, match="keyfile needs certfile"):
        open_broker("amqps://h/", {"keyfile": key})


def test_every_setting_is_explained() -> None:
    text = (Path(__file__).parents[2] / "docs" / "rabbitmq.md").read_text(encoding="utf-8")

    assert {name for name in (*_KNOWN, *_ALIASES, *_RESERVED) if f"`{name}`" not in text} == set()
