"""A real Apache Kafka for tests, the demonstration and benchmarks, on a machine that may have none running.

Everything a cluster owns is in one folder of the caller's choice: data, settings, logs, secrets and the lock
that keeps a second process away. Kafka itself is fetched once with Maven, into a cache that all share.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Literal, Self

from scoop_outbox.devservers._docker import run_container
from scoop_outbox.devservers._finding import found
from scoop_outbox.devservers._kafka_classes import make_class_archive
from scoop_outbox.devservers._kafka_installation import (
    KAFKA_URL,
    KafkaNotFoundError,
    KafkaStartError,
    find_java,
    kafka_libraries,
)
from scoop_outbox.devservers._kafka_node import KafkaNode, KafkaPorts
from scoop_outbox.devservers._kafka_security import USER, SaslSsl
from scoop_outbox.devservers._kafka_settings import SETTINGS, new_cluster_id, replication, settings_of_nodes
from scoop_outbox.devservers._server import LOOPBACK, check_named_server, free_ports, lock_folder

__all__ = [
    "KAFKA_URL",
    "KafkaCluster",
    "KafkaNode",
    "KafkaNotFoundError",
    "KafkaStartError",
    "kafka_for_tests",
    "kafka_here",
    "start_kafka",
]

Security = Literal["sasl_ssl"]

_CONTAINER_IMAGE: Final = "apache/kafka:4.3.1"
_DEFAULT_PORT: Final = 9092
_NO_SETTINGS: Final[Mapping[str, str]] = MappingProxyType({})


class KafkaCluster:
    """Brokers on 127.0.0.1 that also are the controllers, with their data in a folder of the caller's.

    As a context manager it starts them on entry and stops them on exit. The data stay: the next cluster on
    the same folder finds what this one left, also after a ``kill -9``. No broker outlives its owner: it is
    ended when the interpreter exits, and when the interpreter is killed. Not for concurrent use by several
    threads.

    Topics are not created by producing to them. With three nodes a topic has three replicas and needs two of
    them in sync, unless it is created otherwise.

    Args:
        folder: the folder that holds everything the cluster owns; created when it does not exist.
        nodes: how many brokers; the same at every start on a folder.
        security: what clients are asked for: nothing, or TLS and a password.
        settings: broker settings that come on top of, or replace, those made here.
    """

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 1,
        security: Security | None = None,
        settings: Mapping[str, str] = _NO_SETTINGS,
    ) -> None:
        self._folder = Path(folder).resolve()
        self._count = nodes
        self._security = security
        self._guard: SaslSsl | None = None
        self._settings = dict(settings)
        self._nodes: tuple[KafkaNode, ...] = ()
        self._held = ExitStack()

    def __repr__(self) -> str:
        return f"<KafkaCluster folder={str(self._folder)!r} nodes={list(self._nodes)}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def nodes(self) -> tuple[KafkaNode, ...]:
        """The brokers, by number; none before the first start."""
        return self._nodes

    @property
    def bootstrap(self) -> str:
        """The addresses of all brokers, as ``bootstrap.servers`` wants them; the same after a restart.

        Raises:
            RuntimeError: the cluster was never started.
        """
        if not self._nodes:
            msg = "The cluster has no address before its first start: call start()."
            raise RuntimeError(msg)
        return ",".join(f"{LOOPBACK}:{node.ports.client}" for node in self._nodes)

    @property
    def url(self) -> str:
        """The addresses as a URL, ``kafka://host:port`` or ``kafka://host:port,host:port,host:port``."""
        return f"kafka://{self.bootstrap}"

    @property
    def ca_file(self) -> Path:
        """The certificate of the authority that clients of a secured cluster have to trust.

        Raises:
            RuntimeError: the cluster asks for nothing, or was never started.
        """
        return self._guarded().ca_file

    @property
    def user(self) -> str:
        """Who clients of a secured cluster are."""
        return USER

    @property
    def password(self) -> str:
        """Their password.

        Raises:
            RuntimeError: the cluster asks for nothing, or was never started.
        """
        return self._guarded().password

    def _guarded(self) -> SaslSsl:
        if self._guard is None:
            msg = "The cluster asks for no password: start it with security='sasl_ssl'."
            raise RuntimeError(msg)
        return self._guard

    def start(self) -> None:
        """Start the brokers that do not run and return once all serve clients.

        Raises:
            KafkaNotFoundError: there is no Java, or Kafka is not in the cache and cannot be fetched.
            KafkaStartError: another cluster uses the folder, or this one refused to start.
        """
        if self._nodes and all(node.pid is not None for node in self._nodes):
            return
        self._held.close()
        self._held.enter_context(lock_folder(self._folder, KafkaStartError))
        try:
            make_class_archive()
            if self._security is not None:
                self._guard = SaslSsl(self._folder)
            if self._nodes:
                self._start_nodes()
            else:
                self._start_on_free_ports()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Stop all brokers and return once they have ended."""
        # The last of several would wait in vain for somebody to hand over to.
        for node in self._nodes:
            node.ask_to_end()
        for node in self._nodes:
            node.stop()
        self._held.close()

    def kill(self) -> None:
        """End all brokers as ``kill -9`` does; return once they are gone."""
        for node in self._nodes:
            node.kill()
        self._held.close()

    def _start_on_free_ports(self) -> None:
        while True:
            ports = free_ports(3 * self._count)
            numbers = range(1, self._count + 1)
            self._nodes = tuple(
                KafkaNode(number, self._folder / f"node-{number}", KafkaPorts(*ports[3 * number - 3 : 3 * number]))
                for number in numbers
            )
            try:
                self._start_nodes()
            except KafkaStartError as error:
                # Another process was quicker. Nobody knows these ports yet.
                taken = "Address already in use" in str(error)
                for node in self._nodes:
                    node.kill()
                self._nodes = ()
                if not taken:
                    raise
            else:
                return

    def _start_nodes(self) -> None:
        for node in self._nodes:
            node.write_settings(self._settings_of_all())
        cluster_id = self._cluster_id()
        options = self._guard.format_options if self._guard else ()
        for formatting in [node.begin_format(cluster_id, *options) for node in self._nodes]:
            formatting()
        # All at once: none of several is ready before it can reach a second one.
        for node in self._nodes:
            node.spawn()
        for node in self._nodes:
            node.wait_until_ready()

    def _settings_of_all(self) -> dict[str, str]:
        of_guard = self._guard.settings if self._guard else {}
        return {**settings_of_nodes(self._nodes), **of_guard, **self._settings}

    def _cluster_id(self) -> str:
        file = self._folder / "cluster-id"
        if not file.exists():
            file.write_text(new_cluster_id(), encoding="ascii")
        return file.read_text(encoding="ascii")


def start_kafka(
    folder: Path, *, nodes: int = 1, security: Security | None = None, settings: Mapping[str, str] = _NO_SETTINGS
) -> KafkaCluster:
    """Start a cluster with the machine's Java and return it running.

    Args:
        folder: the folder that holds everything the cluster owns; created when it does not exist.
        nodes: how many brokers: one, or three, of which two have to be in sync.
        security: ``"sasl_ssl"`` for brokers that demand TLS and a password, by PLAIN or SCRAM-SHA-512.
        settings: broker settings that come on top of, or replace, those made here.

    Raises:
        KafkaNotFoundError: there is no Java, or Kafka is not in the cache and cannot be fetched.
        KafkaStartError: another cluster uses the folder, or this one refused to start.
    """
    cluster = KafkaCluster(folder, nodes=nodes, security=security, settings=settings)
    cluster.start()
    return cluster


def kafka_here() -> None:
    """Check that ``start_kafka`` has what it needs, and fetch Kafka when this is the first time.

    Raises:
        KafkaNotFoundError: it has not; the message says what to do.
    """
    find_java()
    kafka_libraries()


@contextmanager
def kafka_for_tests() -> Iterator[str]:
    """Find or start a Kafka and yield its URL; whoever connects there may create topics.

    The order is: the broker named by ``SCOOP_OUTBOX_TEST_KAFKA_URL``; a container, when a Docker engine
    answers; one node started with the machine's Java, with data in a temporary folder. What was started here
    is stopped and removed at the end; a broker that was named is left as it is.

    Raises:
        KafkaNotFoundError: there is none, or the one named does not answer; the message says what to do.
    """
    with found(KAFKA_URL, _check, _container, start_kafka) as url:
        yield url


def _check(url: str) -> None:
    check_named_server(KAFKA_URL, url, ("kafka",), _DEFAULT_PORT, KafkaNotFoundError)


@contextmanager
def _container() -> Iterator[str]:
    (port,) = free_ports(1)
    settings = {
        **SETTINGS,
        "node.id": "1",
        "controller.quorum.voters": "1@localhost:9093",
        "listeners": "CLIENT://:9092,CONTROLLER://:9093,INTERNAL://:19092",
        # What a client is told to connect to, so it is the port outside of the container.
        "advertised.listeners": f"CLIENT://{LOOPBACK}:{port},INTERNAL://localhost:19092",
        **replication(1),
    }
    environment = {f"KAFKA_{name.replace('.', '_').upper()}": value for name, value in settings.items()}
    with run_container(_CONTAINER_IMAGE, _DEFAULT_PORT, environment, "Kafka Server started", published=port):
        yield f"kafka://{LOOPBACK}:{port}"
