"""One Kafka broker, which also is a controller: its files and its process."""

import logging
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from scoop_outbox.devservers._kafka_installation import KafkaStartError, class_archive, find_java, kafka_libraries
from scoop_outbox.devservers._server import LOOPBACK, OwnedProcess, end_of, size_of, wait_until_ready, write_secret

_START_SECONDS: Final = 90.0
_STOP_SECONDS: Final = 20.0
_JAVA_OPTIONS: Final = (
    "-Xms64m",
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Djava.awt.headless=true",
    # An archive that does not fit is no reason to say anything: Java goes on without.
    "-Xshare:auto",
    "-Xlog:disable",
)
# In the log of a broker that serves its clients; the port opens before that.
_READY: Final = b"Kafka Server started"
# Options of the caller's for Java or Kafka are not meant for this one.
_ENVIRONMENT: Final = ("PATH", "HOME", "JAVA_HOME", "TMPDIR", "LANG")

_log = logging.getLogger(__name__)


class KafkaPorts(NamedTuple):
    """Where a broker listens: for clients, for the other brokers, and as controller."""

    client: int
    internal: int
    controller: int


class KafkaNode:
    """One broker of a cluster, that can be frozen, killed and started again on its data and ports.

    Made by ``start_kafka``. Not for concurrent use by several threads.
    """

    def __init__(self, number: int, folder: Path, ports: KafkaPorts) -> None:
        self.number = number
        self.ports = ports
        self._folder = folder
        self._log = folder / "server.log"
        self._settings = folder / "server.properties"
        self._process: OwnedProcess | None = None
        self._begin = 0

    def __repr__(self) -> str:
        return f"<KafkaNode {self.number} folder={str(self._folder)!r} port={self.ports.client} pid={self.pid}>"

    @property
    def pid(self) -> int | None:
        """The process id of the broker, or None when it does not run."""
        return self._process.pid if self._process is not None and self._process.alive else None

    def start(self) -> None:
        """Start the broker on its data and return once it serves clients; do nothing when it runs already.

        Raises:
            KafkaStartError: it refused to start.
        """
        if self.pid is None:
            self.spawn()
            self.wait_until_ready()

    def stop(self, seconds: float = _STOP_SECONDS) -> bool:
        """Let the broker hand over to the others and end; return once it has ended, and whether by itself.

        Args:
            seconds: after which it is killed.
        """
        ended = self._process is None or self._process.end(seconds)
        if not ended:
            _log.warning("kafka: did not stop in time, killed (%s s; see %s)", seconds, self._log)
        self._process = None
        return ended

    def kill(self) -> None:
        """End the broker as ``kill -9`` does; return once it is gone. Its data stay."""
        if self._process is not None:
            self._process.kill()
        self._process = None

    def freeze(self) -> None:
        """Stop the broker where it is, by SIGSTOP: connections stay open, and nothing answers.

        Raises:
            RuntimeError: it does not run.
        """
        self._running().send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a broker that was frozen go on.

        Raises:
            RuntimeError: it does not run.
        """
        self._running().send(signal.SIGCONT)

    def ask_to_end(self) -> None:
        """Begin what ``stop`` does, without waiting for it."""
        if self._process is not None:
            self._process.ask_to_end()

    def write_settings(self, settings: Mapping[str, str]) -> None:
        """Write the settings of the cluster, together with those of this broker."""
        own = {
            "node.id": str(self.number),
            "log.dirs": str(self._folder / "data"),
            "listeners": f"CLIENT://{LOOPBACK}:{self.ports.client},INTERNAL://{LOOPBACK}:{self.ports.internal},"
            f"CONTROLLER://{LOOPBACK}:{self.ports.controller}",
            "advertised.listeners": f"CLIENT://{LOOPBACK}:{self.ports.client},"
            f"INTERNAL://{LOOPBACK}:{self.ports.internal}",
        }
        self._folder.mkdir(mode=0o700, exist_ok=True)
        text = "".join(f"{name}={value}\n" for name, value in {**own, **settings}.items())
        write_secret(self._settings, text)

    def begin_format(self, cluster_id: str, *arguments: str) -> Callable[[], None]:
        """Begin to make an empty folder a node of the cluster; what is returned waits for the end of it."""
        if (self._folder / "data" / "meta.properties").exists():
            return lambda: None
        command = _java(
            "kafka.tools.StorageTool", "format", f"--cluster-id={cluster_id}", "-c", self._settings, *arguments
        )
        process = subprocess.Popen(
            command,
            cwd=self._folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

        def finish() -> None:
            output = process.communicate()[0]
            if process.returncode != 0:
                msg = f"Kafka could not create its data in {self._folder}:\n{output[-2000:].decode(errors='replace')}"
                raise KafkaStartError(msg)

        return finish

    def spawn(self, *java_options: str) -> None:
        """Start the process, without waiting until it is ready."""
        self.kill()
        self._begin = size_of(self._log)
        command = _java("kafka.Kafka", self._settings, options=java_options)
        self._process = OwnedProcess(command, cwd=self._folder, environment=_environment(), log=self._log)

    def wait_until_ready(self) -> None:
        """Return once the broker serves clients.

        Raises:
            KafkaStartError: it has ended, or takes too long.
        """
        process = self._running()

        def ready() -> bool:
            return _READY in self._log.read_bytes()[self._begin :]

        if not wait_until_ready(process, ready, _START_SECONDS):
            self.kill()
            msg = f"Kafka did not start in {self._folder}; its log ends with:\n{end_of(self._log, self._begin)}"
            raise KafkaStartError(msg)

    def _running(self) -> OwnedProcess:
        if self._process is None:
            msg = f"Node {self.number} does not run: call start()."
            raise RuntimeError(msg)
        return self._process


def _java(main: str, *arguments: str | Path, options: Sequence[str] = ()) -> Sequence[str | Path]:
    archive = class_archive()
    # An empty one would take Java's own away, too.
    shared = [f"-XX:SharedArchiveFile={archive}"] if size_of(archive) else []
    return [find_java(), *_JAVA_OPTIONS, *shared, *options, "-cp", f"{kafka_libraries()}/*", main, *arguments]


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
