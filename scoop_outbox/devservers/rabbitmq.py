"""A real RabbitMQ for tests, the demonstration and benchmarks, on a machine that may have none running.

Everything a server owns is in one folder of the caller's choice: data, settings, logs, secrets and the lock
that keeps a second process away. It has its own port mapper, so it neither sees nor disturbs another RabbitMQ
of the machine, and it listens on 127.0.0.1 only.
"""

import logging
import secrets
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from scoop_outbox.devservers._docker import run_container
from scoop_outbox.devservers._finding import found
from scoop_outbox.devservers._rabbitmq_installation import (
    RABBITMQ_URL,
    RabbitNotFoundError,
    RabbitStartError,
    find_mapper,
    find_scripts,
)
from scoop_outbox.devservers._rabbitmq_settings import USER, Ports, RabbitSettings
from scoop_outbox.devservers._server import (
    LOOPBACK,
    OwnedProcess,
    answers,
    check_named_server,
    end_of,
    free_ports,
    lock_folder,
    size_of,
    wait_until_ready,
)

__all__ = [
    "RABBITMQ_URL",
    "RabbitNotFoundError",
    "RabbitServer",
    "RabbitStartError",
    "rabbitmq_for_tests",
    "rabbitmq_here",
    "start_rabbitmq",
]

_CONTAINER_IMAGE: Final = "rabbitmq:4"
_DEFAULT_PORT: Final = 5672
_START_SECONDS: Final = 90.0
_STOP_SECONDS: Final = 30.0
_CTL_SECONDS: Final = 60.0
_READY: Final = b"Server startup complete"

_log = logging.getLogger(__name__)


class RabbitServer:
    """One RabbitMQ on 127.0.0.1, with its data in a folder of the caller's.

    As a context manager it starts the server on entry and stops it on exit. The data stay: the next server
    on the same folder finds what this one left. The server never outlives its owner: it is ended when the
    interpreter exits, and when the interpreter is killed. Not for concurrent use by several threads.

    RabbitMQ keeps what was declared in memory for up to two seconds before it is on the disk, and 3.10 brings a
    quorum queue that was declared only seconds before a ``kill`` back without a leader. A test that wants to find
    a classic queue and its bindings again calls ``sync`` before ``kill``; for a quorum queue, it calls ``stop``
    and ``start`` once, and kills later.

    Args:
        folder: the folder that holds everything the server owns; created when it does not exist.
        tls: listen for TLS, and for nothing else.
        client_certificate: refuse a client without a certificate of the server's authority.
    """

    def __init__(self, folder: Path, *, tls: bool = False, client_certificate: bool = False) -> None:
        self._folder = Path(folder).resolve()
        self._log = self._folder / "server.log"
        self._settings = RabbitSettings(self._folder, tls=tls, client_certificate=client_certificate)
        self._ports: Ports | None = None
        self._mapper: OwnedProcess | None = None
        self._process: OwnedProcess | None = None
        self._begin = 0
        self._held = ExitStack()

    def __repr__(self) -> str:
        port = self._ports.client if self._ports else None
        return f"<RabbitServer folder={str(self._folder)!r} port={port} pid={self.pid}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def folder(self) -> Path:
        """The folder that holds everything the server owns."""
        return self._folder

    @property
    def url(self) -> str:
        """Where to connect as administrator, password included; the same before and after a restart.

        Raises:
            RuntimeError: the server was never started.
        """
        scheme = "amqps" if self._settings.tls else "amqp"
        return f"{scheme}://{USER}:{self._settings.password}@{LOOPBACK}:{self._known_ports().client}/"

    @property
    def ca_file(self) -> Path:
        """The certificate of the authority that clients of a server with TLS have to trust."""
        return self._settings.certificates().authority

    @property
    def client_cert_file(self) -> Path:
        """A certificate a client can show."""
        return self._settings.certificates().client

    @property
    def client_key_file(self) -> Path:
        """The key to that certificate."""
        return self._settings.certificates().client_key

    @property
    def pid(self) -> int | None:
        """The process id of the server, or None when it does not run."""
        return self._process.pid if self._process is not None and self._process.alive else None

    def start(self) -> None:
        """Start the server and return once it accepts connections; do nothing when it runs already.

        Raises:
            RabbitNotFoundError: it is not installed.
            RabbitStartError: another server uses the folder, or this one refused to start.
        """
        if self.pid is not None:
            return
        self.kill()
        scripts = find_scripts()
        self._held.enter_context(lock_folder(self._folder, RabbitStartError))
        try:
            self._settings.read_or_choose_password()
            if self._ports is not None:
                self._launch(scripts, self._ports)
            else:
                self._launch_on_free_ports(scripts)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Stop the server and return once it has ended; connections are closed, and all is written."""
        if self._process is not None and not self._process.end(_STOP_SECONDS):
            _log.warning("rabbitmq: did not stop in time, killed (%s s; see %s)", _STOP_SECONDS, self._log)
        self.kill()

    def kill(self) -> None:
        """End the server and all its processes as ``kill -9`` does; return once they are gone. The data stay."""
        for process in (self._process, self._mapper):
            if process is not None:
                process.kill()
        self._process = self._mapper = None
        self._held.close()

    def sync(self) -> None:
        """Have the server write to the disk which exchanges, queues and bindings there are; messages are not meant.

        Raises:
            RuntimeError: the server does not run.
            RabbitStartError: it did not write.
        """
        self.ctl("eval", "ok = mnesia:sync_log().")

    def freeze(self) -> None:
        """Stop the server where it is, by SIGSTOP: connections stay open, and nothing answers.

        Raises:
            RuntimeError: it does not run.
        """
        self._running().send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a server that was frozen go on.

        Raises:
            RuntimeError: it does not run.
        """
        self._running().send(signal.SIGCONT)

    def ctl(self, *arguments: str) -> str:
        """Run ``rabbitmqctl`` against this server and return what it prints; takes a second or two.

        Args:
            arguments: a command and its arguments, such as ``"list_queues", "name", "messages"``.

        Raises:
            RuntimeError: the server does not run.
            RabbitStartError: the command failed; the message holds what it printed.
        """
        self._running()
        command: list[str | Path] = [find_scripts() / "rabbitmqctl", "--quiet", *arguments]
        environment = self._settings.environment(self._known_ports())
        done = subprocess.run(
            command,
            env=environment,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CTL_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            # Not its arguments: there may be a password among them.
            msg = f"rabbitmqctl {arguments[0]} failed:\n{(done.stdout + done.stderr)[-2000:]}"
            raise RabbitStartError(msg)
        return done.stdout

    def _known_ports(self) -> Ports:
        if self._ports is None:
            msg = "The server has no URL before its first start: call start()."
            raise RuntimeError(msg)
        return self._ports

    def _running(self) -> OwnedProcess:
        if self._process is None:
            msg = "The server does not run: call start()."
            raise RuntimeError(msg)
        return self._process

    def _launch_on_free_ports(self, scripts: Path) -> None:
        while self._ports is None:
            ports = Ports(*free_ports(3))
            try:
                self._launch(scripts, ports)
            except RabbitStartError as error:
                # Another process was quicker. Nobody knows these ports yet.
                if "eaddrinuse" not in str(error) and "already in use" not in str(error):
                    raise
            else:
                self._ports = ports

    def _launch(self, scripts: Path, ports: Ports) -> None:
        environment = self._settings.environment(ports)
        self._settings.write(ports)
        # The node would start one of its own as a daemon, which nobody ends.
        (self._folder / "mapper").mkdir(exist_ok=True)
        self._mapper = OwnedProcess(
            [find_mapper()], cwd=self._folder / "mapper", environment=environment, log=self._folder / "mapper.log"
        )
        if not wait_until_ready(self._mapper, lambda: answers(LOOPBACK, ports.mapper), _START_SECONDS):
            self._fail(self._folder / "mapper.log")
        self._begin = size_of(self._log)
        (self._folder / "work").mkdir(exist_ok=True)
        self._process = OwnedProcess(
            [scripts / "rabbitmq-server"], cwd=self._folder / "work", environment=environment, log=self._log
        )

        def ready() -> bool:
            return _READY in self._log.read_bytes()[self._begin :]

        if not wait_until_ready(self._process, ready, _START_SECONDS):
            self._fail(self._log)

    def _fail(self, log: Path) -> None:
        for process in (self._process, self._mapper):
            if process is not None:
                process.kill()
        msg = f"RabbitMQ did not start in {self._folder}; its log ends with:\n{end_of(log, self._begin)}"
        raise RabbitStartError(msg)


def start_rabbitmq(folder: Path, *, tls: bool = False, client_certificate: bool = False) -> RabbitServer:
    """Start the RabbitMQ that is installed and return it running.

    Args:
        folder: the folder that holds everything the server owns; created when it does not exist.
        tls: listen for TLS, and for nothing else.
        client_certificate: refuse a client without a certificate of the server's authority.

    Raises:
        RabbitNotFoundError: it is not installed.
        RabbitStartError: another server uses the folder, or this one refused to start.
    """
    server = RabbitServer(folder, tls=tls, client_certificate=client_certificate)
    server.start()
    return server


def rabbitmq_here() -> None:
    """Check that ``start_rabbitmq`` has what it needs.

    Raises:
        RabbitNotFoundError: it has not; the message says what to do.
    """
    find_scripts()
    find_mapper()


@contextmanager
def rabbitmq_for_tests() -> Iterator[str]:
    """Find or start a RabbitMQ and yield the URL of a user that may declare queues.

    The order is: the server named by ``SCOOP_OUTBOX_TEST_RABBITMQ_URL``; a container, when a Docker engine
    answers; what is installed, with data in a temporary folder. What was started here is stopped and removed
    at the end; a server that was named is left as it is.

    Raises:
        RabbitNotFoundError: there is none, or the one named does not answer; the message says what to do.
    """
    with found(RABBITMQ_URL, _check, _container, start_rabbitmq) as url:
        yield url


def _check(url: str) -> None:
    check_named_server(RABBITMQ_URL, url, ("amqp", "amqps"), _DEFAULT_PORT, RabbitNotFoundError)


@contextmanager
def _container() -> Iterator[str]:
    password = secrets.token_urlsafe(24)
    user = {"RABBITMQ_DEFAULT_USER": USER, "RABBITMQ_DEFAULT_PASS": password}
    with run_container(_CONTAINER_IMAGE, _DEFAULT_PORT, user, _READY.decode()) as (host, port):
        yield f"amqp://{USER}:{password}@{host}:{port}/"
