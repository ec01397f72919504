"""TLS: whom the adapter trusts, and whom the broker lets in."""

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from scoop_outbox.broker.protocol import Subscription
from scoop_outbox.devservers._errors import ServerNotFoundError
from scoop_outbox.devservers._tls import certificates
from scoop_outbox.devservers.rabbitmq import RabbitServer, start_rabbitmq
from scoop_outbox.errors import BrokerError
from tests.rabbitmq.trial import ACKNOWLEDGED, Trial, envelope, name, received, verdicts
from tests.servers import skip_without

SUBSCRIPTION = Subscription("s", "q", ("t",))


@pytest.fixture(scope="module")
def secured(rabbitmq_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    with start_rabbitmq(tmp_path_factory.mktemp("tls"), client_certificate=True) as server:
        yield server


async def test_tls_with_our_own_authority_and_a_client_certificate(secured: RabbitServer) -> None:
    files = {"cafile": secured.ca_file, "certfile": secured.client_cert_file, "keyfile": secured.client_key_file}
    topic, group = name(), name("group")
    async with Trial(secured.url) as trial:
        await trial.create(group, topic, **files)
        consumer = await trial.consumer(group, topic, **files)
        receipts = await (await trial.publisher(**files)).publish([envelope(topic, body=b"x" * 100_000)])
        (came,) = await received(consumer, 1)
        await consumer.acknowledge([came])

    assert verdicts(receipts) == [ACKNOWLEDGED]
    assert len(came.envelope.body) == 100_000


async def test_an_authority_that_is_not_trusted_is_refused(secured: RabbitServer) -> None:
    async with Trial(secured.url) as trial:
        with pytest.raises(BrokerError, match=r"not trusted.*cafile"):
            await trial.broker().prepare(SUBSCRIPTION)


async def test_a_missing_client_certificate_is_said(secured: RabbitServer) -> None:
    async with Trial(secured.url) as trial:
        consumer = await trial.consumer("q", "t", cafile=secured.ca_file)
        with suppress(BrokerError):
            assert await consumer.receive(1, 1) == []

        assert "certfile and keyfile" in (consumer.problem or "")


async def test_a_certificate_says_who_it_is_instead_of_a_password(secured: RabbitServer) -> None:
    plugins = secured.folder / "enabled_plugins"
    plugins.write_text("[rabbitmq_auth_mechanism_ssl].\n", encoding="ascii")
    secured.ctl(
        "eval",
        f'rabbit_plugins:ensure("{plugins}"), application:set_env(rabbit, ssl_cert_login_from, common_name), '
        "application:set_env(rabbit, auth_mechanisms, ['PLAIN', 'AMQPLAIN', 'EXTERNAL']).",
    )
    files = {"cafile": secured.ca_file, "certfile": secured.client_cert_file, "keyfile": secured.client_key_file}
    topic, group = name(), name("group")
    nobody = secured.url.partition("@")[2]
    async with Trial(f"amqps://{nobody}") as trial:
        external = {**files, "auth": "external"}
        with pytest.raises(BrokerError, match=r"refuses|refused"):
            await trial.create(group, topic, **external)
        # The name in the certificate.
        secured.ctl("add_user", "client", "any password but this one")
        secured.ctl("set_permissions", "-p", "/", "client", ".*", ".*", ".*")
        await trial.create(group, topic, **external)
        consumer = await trial.consumer(group, topic, **external)
        await (await trial.publisher(**external)).publish([envelope(topic, body=b"1")])
        (came,) = await received(consumer, 1)
        assert came.envelope.body == b"1"
        connected = secured.ctl("list_connections", "--quiet", "user", "auth_mechanism")
        assert {line for line in connected.splitlines() if "client" in line} == {"client\tEXTERNAL"}


async def test_the_name_that_the_certificate_has_to_carry(secured: RabbitServer) -> None:
    files = {"cafile": secured.ca_file, "certfile": secured.client_cert_file, "keyfile": secured.client_key_file}
    topic, group = name(), name("group")
    async with Trial(secured.url) as trial:
        with pytest.raises(BrokerError, match=r"elsewhere"):
            await trial.create(group, topic, **files, server_name_indication="elsewhere.test")
        await trial.create(group, topic, **files, server_name_indication="localhost")


async def test_tls_on_a_plain_port_is_refused(rabbitmq_url: str) -> None:
    async with Trial(rabbitmq_url.replace("amqp:", "amqps:")) as trial:
        with pytest.raises(BrokerError, match="its TLS port"):
            await trial.broker().prepare(SUBSCRIPTION)


async def test_an_unknown_way_to_authenticate_is_said(trial: Trial) -> None:
    with pytest.raises(BrokerError, match="auth is plain or external"):
        await trial.broker(auth="external").prepare(SUBSCRIPTION)


def test_a_key_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "no.pem"
    file.write_text("no key", encoding="ascii")

    with pytest.raises(BrokerError, match="PEM"):
        Trial("amqps://h/").broker(certfile=file, keyfile=file)


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_password(tmp_path: Path) -> None:
    try:
        made = certificates(tmp_path / "tls")
    except ServerNotFoundError as error:
        skip_without(error)
    encrypted = tmp_path / "encrypted.pem"
    command = ("openssl", "pkey", "-in", made.client_key, "-aes256", "-passout", "pass:secret", "-out", encrypted)
    subprocess.run(command, check=True)

    with pytest.raises(BrokerError, match="keyfile is encrypted"):
        Trial("amqps://h/").broker(certfile=made.client, keyfile=encrypted)
