"""The launcher that tests, the demonstration and benchmarks get their RabbitMQ from."""

import asyncio
import gc
import os
import secrets
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aiormq.abc import FieldTable

from scoop_outbox.devservers.rabbitmq import (
    RABBITMQ_URL,
    RabbitNotFoundError,
    RabbitServer,
    RabbitStartError,
    rabbitmq_for_tests,
    start_rabbitmq,
)
from tests.waiting import until_blocking

pytestmark = pytest.mark.usefixtures("rabbitmq_installed")

QUORUM: FieldTable = {"x-queue-type": "quorum"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "rabbitmq"


@pytest.fixture
def server(folder: Path) -> Iterator[RabbitServer]:
    with start_rabbitmq(folder) as server:
        yield server


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    """A server that no test stops or kills."""
    with start_rabbitmq(tmp_path_factory.mktemp("untouched")) as server:
        yield server


@asynccontextmanager
async def channel_to(url: str) -> AsyncIterator[AbstractChannel]:
    connection = await aio_pika.connect(url, timeout=10)
    async with connection, connection.channel(on_return_raises=True) as channel:
        yield channel


async def send(url: str, queue: str, body: bytes, *, arguments: FieldTable | None = None) -> None:
    async with channel_to(url) as channel:
        await channel.declare_queue(queue, durable=True, arguments=arguments)
        message = aio_pika.Message(body, headers={"scoop-id": "1"}, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, queue, timeout=10)


async def take(url: str, queue: str, *, arguments: FieldTable | None = None) -> AbstractIncomingMessage:
    async with channel_to(url) as channel:
        declared = await channel.declare_queue(queue, durable=True, arguments=arguments)
        message = await declared.get(timeout=10)
        assert message is not None
        await message.ack()
        return message


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def processes_with(text: str) -> list[int]:
    """Return the processes, other than this one, that have a text in their environment."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            if text.encode() in file.read_bytes() and int(file.parent.name) != os.getpid():
                found.append(int(file.parent.name))
        except OSError:
            continue
    return [pid for pid in found if runs(pid)]


async def test_a_message_comes_back_with_its_headers(rabbitmq_url: str) -> None:
    queue = f"queue-{secrets.token_hex(4)}"
    await send(rabbitmq_url, queue, b"\x00body\xff")
    message = await take(rabbitmq_url, queue)
    assert message.body == b"\x00body\xff"
    assert message.headers == {"scoop-id": "1"}


async def test_a_server_that_is_killed_keeps_data_and_port(server: RabbitServer) -> None:
    await send(server.url, "classic", b"1")
    await send(server.url, "quorum", b"2", arguments=QUORUM)
    url, pid = server.url, server.pid
    assert pid is not None
    server.stop()
    server.start()
    server.kill()
    assert server.pid is None
    assert not runs(pid)
    await is_refused(url)
    server.start()
    assert server.url == url
    assert (await take(url, "classic")).body == b"1"
    assert (await take(url, "quorum", arguments=QUORUM)).body == b"2"


async def test_a_frozen_server_goes_on_where_it_was(server: RabbitServer) -> None:
    server.freeze()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(send(server.url, "orders", b"1"), 2)
    assert server.pid is not None
    server.thaw()
    await send(server.url, "orders", b"2")
    assert (await take(server.url, "orders")).body == b"2"


def test_a_frozen_server_can_be_stopped_and_killed(server: RabbitServer) -> None:
    for end in (server.stop, server.kill):
        server.start()
        server.freeze()
        pid = server.pid
        assert pid is not None
        end()
        assert not runs(pid)


async def test_the_next_server_on_a_folder_finds_the_data(folder: Path) -> None:
    with start_rabbitmq(folder) as server:
        await send(server.url, "orders", b"1")
    with start_rabbitmq(folder) as server:
        assert (await take(server.url, "orders")).body == b"1"


def test_two_servers_do_not_share_a_folder_and_run_side_by_side(
    server: RabbitServer, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(RabbitStartError, match="in use by another server"):
        start_rabbitmq(folder)
    with start_rabbitmq(tmp_path / "other") as other:
        assert other.url != server.url
        assert other.ctl("list_users").split() == server.ctl("list_users").split()


@pytest.mark.parametrize("frozen", [False, True])
def test_nothing_outlives_an_owner_that_is_killed(folder: Path, frozen: bool) -> None:
    code = (
        "import sys, signal; from pathlib import Path; from scoop_outbox.devservers.rabbitmq import start_rabbitmq\n"
        "server = start_rabbitmq(Path(sys.argv[1])); sys.argv[2] and server.freeze()\n"
        "print(server.pid, flush=True); signal.pause()"
    )
    command = [sys.executable, "-c", code, str(folder), "frozen" if frozen else ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert runs(int(owner.stdout.readline()))
        # The shell, the machine, its helpers and the port mapper.
        assert len(processes_with(str(folder))) >= 4
        os.kill(owner.pid, signal.SIGKILL)
    until_blocking(lambda: not processes_with(str(folder)))


def test_nothing_is_left_after_stop_and_kill(folder: Path) -> None:
    with start_rabbitmq(folder) as server:
        server.kill()
        until_blocking(lambda: not processes_with(str(folder)))
        server.start()
    until_blocking(lambda: not processes_with(str(folder)))


def test_it_listens_on_loopback_only(untouched: RabbitServer) -> None:
    sockets = {
        str(file.readlink())
        for pid in processes_with(str(untouched.folder))
        for file in Path(f"/proc/{pid}/fd").iterdir()
        if file.is_symlink()
    }
    listening = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                listening.append(fields[1].split(":")[0])
    # For clients, for rabbitmqctl, and the port mapper's.
    assert len(listening) >= 3
    assert set(listening) <= {"0100007F", "0" * 24 + "01000000"}


async def test_a_command_can_be_given(untouched: RabbitServer) -> None:
    await send(untouched.url, "orders", b"1")
    assert untouched.ctl("list_queues", "name", "messages").split() == ["name", "messages", "orders", "1"]
    with pytest.raises(RabbitStartError, match="no_such_user") as caught:
        untouched.ctl("change_password", "no_such_user", "hidden")
    assert "hidden" not in str(caught.value)


def test_the_password_stays_private(untouched: RabbitServer) -> None:
    password = untouched.url.removeprefix("amqp://scoop:").partition("@")[0]
    assert password not in repr(untouched)
    assert password not in (untouched.folder / "server.log").read_text(encoding="utf-8")
    for name in ("password", "rabbitmq.conf"):
        assert (untouched.folder / name).stat().st_mode & 0o077 == 0


async def test_a_wrong_password_is_refused(untouched: RabbitServer) -> None:
    await is_refused(untouched.url.replace("scoop:", "scoop:not-", 1))
    await is_refused("amqp://guest:guest@" + untouched.url.partition("@")[2])


def test_a_server_that_was_named_is_left_alone(untouched: RabbitServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RABBITMQ_URL, untouched.url)
    with rabbitmq_for_tests() as url:
        assert url == untouched.url
    assert untouched.pid


async def is_refused(url: str, context: ssl.SSLContext | None = None) -> None:
    """See that nobody connects."""
    with pytest.raises((aio_pika.exceptions.AMQPConnectionError, OSError)):
        await aio_pika.connect(url, ssl_context=context, timeout=5)
    # What is left of the connection closes itself once it is collected, and that needs a loop that runs.
    gc.collect()


async def test_a_server_with_tls_is_reached_by_who_trusts_its_authority(tmp_path: Path) -> None:
    with start_rabbitmq(tmp_path / "tls", tls=True) as server:
        assert server.url.startswith("amqps://")
        trusting = ssl.create_default_context(cafile=str(server.ca_file))
        async with await aio_pika.connect(server.url, ssl_context=trusting) as connection:
            await connection.channel()
        for wrong in (server.url, server.url.replace("amqps:", "amqp:")):
            await is_refused(wrong)


async def test_a_server_can_ask_for_a_certificate(tmp_path: Path) -> None:
    with start_rabbitmq(tmp_path / "tls", client_certificate=True) as server:
        without = ssl.create_default_context(cafile=str(server.ca_file))
        await is_refused(server.url, without)
        shown = ssl.create_default_context(cafile=str(server.ca_file))
        shown.load_cert_chain(server.client_cert_file, server.client_key_file)
        async with await aio_pika.connect(server.url, ssl_context=shown, timeout=5) as connection:
            await connection.channel()


def test_a_server_that_was_named_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RABBITMQ_URL, "amqp://user:hidden@127.0.0.1:1/")
    with pytest.raises(RabbitNotFoundError, match=r"does not answer at 127\.0\.0\.1:1") as caught, rabbitmq_for_tests():
        pass
    assert "hidden" not in str(caught.value)


def test_without_rabbitmq_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCOOP_RABBITMQ_BIN", str(tmp_path))
    with pytest.raises(RabbitNotFoundError, match="apt-get install rabbitmq-server"):
        start_rabbitmq(tmp_path / "rabbitmq")
