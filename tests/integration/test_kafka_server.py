"""The launcher that tests, the demonstration and benchmarks get their Kafka from."""

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from scoop_outbox.devservers import _kafka_classes, _kafka_installation, _kafka_node
from scoop_outbox.devservers._server import CACHE
from scoop_outbox.devservers.kafka import (
    KAFKA_URL,
    KafkaCluster,
    KafkaNotFoundError,
    KafkaStartError,
    kafka_for_tests,
    start_kafka,
)
from tests.waiting import until_blocking

pytestmark = pytest.mark.usefixtures("kafka_installed")

HEADERS: list[tuple[str, str | bytes | None]] = [("scoop-id", b"1"), ("empty", b""), ("scoop-id", b"2")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kafka"


@pytest.fixture
def cluster(folder: Path) -> Iterator[KafkaCluster]:
    with start_kafka(folder) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    with start_kafka(tmp_path_factory.mktemp("secured"), security="sasl_ssl") as cluster:
        yield cluster


def new_topic(bootstrap: str, **more: str) -> str:
    topic = f"topic-{secrets.token_hex(4)}"
    admin = AdminClient({"bootstrap.servers": bootstrap, **more})
    admin.create_topics([NewTopic(topic, num_partitions=1)], operation_timeout=30)[topic].result(30)
    # The node that is asked may hear of the topic after the node that made it, and of its partition later still.
    until_blocking(lambda: leader(admin, topic), 30)
    return topic


def leader(admin: AdminClient, topic: str) -> int | None:
    """The node that leads a topic's only partition, as far as the node that is asked knows."""
    partitions = admin.list_topics(topic, timeout=10).topics[topic].partitions
    return partitions[0].leader if partitions and partitions[0].leader > 0 else None


def send(
    bootstrap: str, topic: str, value: bytes, *, seconds: float = 30.0, settings: dict[str, str] | None = None
) -> KafkaError | None:
    """Return what the broker said, or None when it has the message."""
    told: list[KafkaError | None] = []
    timeout = {"acks": "all", "message.timeout.ms": int(seconds * 1000)}
    producer = Producer({"bootstrap.servers": bootstrap, **timeout, **(settings or {})})
    producer.produce(topic, value, key=b"k", headers=HEADERS, on_delivery=lambda error, _: told.append(error))
    producer.flush(seconds + 10)
    assert len(told) == 1
    return told[0]


def read(bootstrap: str, topic: str, count: int, **more: str) -> list[Message]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "readers", "enable.auto.commit": False, **more})
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        found: list[Message] = []

        def enough() -> bool:
            found.extend(consumer.consume(10, 0.2))
            return len(found) >= count

        until_blocking(enough)
        return found
    finally:
        consumer.close()


def values(bootstrap: str, topic: str, count: int, **more: str) -> list[bytes | None]:
    return [message.value() for message in read(bootstrap, topic, count, **more)]


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_an_id_of_the_cluster_may_begin_with_a_dash(folder: Path) -> None:
    folder.mkdir()
    (folder / "cluster-id").write_text("-" + secrets.token_urlsafe(15) + "A", encoding="ascii")

    with start_kafka(folder) as cluster:
        new_topic(cluster.bootstrap)


def test_a_message_comes_back_with_its_headers(kafka_url: str) -> None:
    bootstrap = kafka_url.removeprefix("kafka://")
    topic = new_topic(bootstrap)
    assert send(bootstrap, topic, b"\x00body\xff") is None
    (message,) = read(bootstrap, topic, 1)
    assert message.value() == b"\x00body\xff"
    assert message.key() == b"k"
    assert message.headers() == HEADERS


def test_a_group_gets_its_first_message_at_once(kafka_url: str) -> None:
    bootstrap = kafka_url.removeprefix("kafka://")
    topic = new_topic(bootstrap)
    assert send(bootstrap, topic, b"1") is None
    group = {"group.id": topic, "auto.offset.reset": "earliest"}
    consumer = Consumer({"bootstrap.servers": bootstrap, **group})
    try:
        consumer.subscribe([topic])
        until_blocking(lambda: consumer.poll(0.2) is not None)
    finally:
        consumer.close()


def test_producing_creates_no_topic(kafka_url: str) -> None:
    error = send(kafka_url.removeprefix("kafka://"), f"missing-{secrets.token_hex(4)}", b"1", seconds=3)
    assert error is not None


def test_a_broker_that_is_killed_keeps_data_and_port(cluster: KafkaCluster) -> None:
    (node,), bootstrap = cluster.nodes, cluster.bootstrap
    topic = new_topic(bootstrap)
    assert send(bootstrap, topic, b"1") is None
    pid = node.pid
    assert pid is not None
    node.kill()
    assert node.pid is None
    assert not runs(pid)
    node.start()
    assert cluster.bootstrap == bootstrap
    assert values(bootstrap, topic, 1) == [b"1"]
    node.stop()
    node.start()
    assert values(bootstrap, topic, 1) == [b"1"]


def test_a_frozen_broker_goes_on_where_it_was(cluster: KafkaCluster) -> None:
    topic = new_topic(cluster.bootstrap)
    (node,) = cluster.nodes
    node.freeze()
    assert send(cluster.bootstrap, topic, b"lost", seconds=2) is not None
    assert node.pid is not None
    node.thaw()
    assert send(cluster.bootstrap, topic, b"1") is None


def test_a_frozen_broker_can_be_stopped_and_killed(cluster: KafkaCluster) -> None:
    (node,) = cluster.nodes
    for end in (node.stop, node.kill):
        node.start()
        node.freeze()
        pid = node.pid
        assert pid is not None
        end()
        assert not runs(pid)


def test_the_next_cluster_on_a_folder_finds_the_data(folder: Path) -> None:
    with start_kafka(folder) as cluster:
        topic = new_topic(cluster.bootstrap)
        assert send(cluster.bootstrap, topic, b"1") is None
    with start_kafka(folder) as cluster:
        assert values(cluster.bootstrap, topic, 1) == [b"1"]


def test_two_clusters_do_not_share_a_folder(cluster: KafkaCluster, folder: Path) -> None:
    with pytest.raises(KafkaStartError, match="in use by another server"):
        start_kafka(folder)
    assert all(node.pid for node in cluster.nodes)


@pytest.mark.parametrize("frozen", [False, True])
def test_nothing_outlives_an_owner_that_is_killed(folder: Path, frozen: bool) -> None:
    code = (
        "import sys, signal; from pathlib import Path; from scoop_outbox.devservers.kafka import start_kafka\n"
        "cluster = start_kafka(Path(sys.argv[1])); sys.argv[2] and cluster.nodes[0].freeze()\n"
        "print(cluster.nodes[0].pid, flush=True); signal.pause()"
    )
    command = [sys.executable, "-c", code, str(folder), "frozen" if frozen else ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert runs(pid)
        os.kill(owner.pid, signal.SIGKILL)
    until_blocking(lambda: not runs(pid))
    with start_kafka(folder) as cluster:
        assert cluster.nodes[0].pid


def test_three_nodes_survive_the_loss_of_one(folder: Path) -> None:
    with start_kafka(folder, nodes=3) as cluster:
        assert len(cluster.url.split(",")) == 3
        topic = new_topic(cluster.bootstrap)
        admin = AdminClient({"bootstrap.servers": cluster.bootstrap})
        partition = admin.list_topics(topic, timeout=10).topics[topic].partitions[0]
        assert len(partition.replicas) == 3
        assert send(cluster.bootstrap, topic, b"1") is None
        cluster.nodes[partition.leader - 1].kill()
        assert send(cluster.bootstrap, topic, b"2") is None
        second = next(node for node in cluster.nodes if node.pid)
        second.kill()
        # Not enough replicas are in sync.
        assert send(cluster.bootstrap, topic, b"3", seconds=3) is not None
        cluster.start()
        assert all(node.pid for node in cluster.nodes)
        assert values(cluster.bootstrap, topic, 2)[:2] == [b"1", b"2"]


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_a_secured_cluster_lets_in_who_has_the_password(secured: KafkaCluster, mechanism: str) -> None:
    right = {
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": str(secured.ca_file),
        "sasl.mechanism": mechanism,
        "sasl.username": secured.user,
        "sasl.password": secured.password,
    }
    topic = new_topic(secured.bootstrap, **right)
    assert send(secured.bootstrap, topic, b"1", settings=right) is None
    assert values(secured.bootstrap, topic, 1, **right) == [b"1"]
    all_wrong: list[dict[str, str]] = [
        right | {"sasl.password": "not the password"},
        right | {"sasl.username": "nobody"},
        {name: value for name, value in right.items() if name != "ssl.ca.location"},
        {"security.protocol": "SSL", "ssl.ca.location": str(secured.ca_file)},
        {},
    ]
    for wrong in all_wrong:
        assert send(secured.bootstrap, topic, b"2", seconds=2, settings=wrong) is not None
    assert send(secured.bootstrap, topic, b"3", settings=right) is None
    assert values(secured.bootstrap, topic, 2, **right) == [b"1", b"3"]


def test_secrets_differ_from_start_to_start_and_stay_private(secured: KafkaCluster, cluster: KafkaCluster) -> None:
    assert len(secured.password) >= 32
    assert secured.password not in repr(secured)
    for file in secured.ca_file.parent.parent.rglob("*"):
        if file.is_file() and secured.password.encode() in file.read_bytes():
            assert file.stat().st_mode & 0o077 == 0, file
    with pytest.raises(RuntimeError, match="security='sasl_ssl'"):
        _ = cluster.password


def test_a_broker_that_was_named_is_used_and_left_alone(cluster: KafkaCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KAFKA_URL, cluster.url)
    with kafka_for_tests() as url:
        assert url == cluster.url
    assert cluster.nodes[0].pid


@pytest.mark.parametrize(
    "url, wrong",
    [
        ("kafka://127.0.0.1:1", "does not answer at 127.0.0.1:1"),
        ("redis://user:hidden@127.0.0.1:9092", "begins with kafka://"),
        ("kafka://127.0.0.1:port", "begins with kafka://"),
    ],
)
def test_a_broker_that_was_named_wrongly(url: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KAFKA_URL, url)
    with pytest.raises(KafkaNotFoundError, match=wrong) as caught, kafka_for_tests():
        pass
    assert "hidden" not in str(caught.value)


def test_without_java_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(KafkaNotFoundError, match="apt-get install default-jre-headless maven"):
        start_kafka(tmp_path / "kafka")


def test_without_maven_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(KafkaNotFoundError, match=r"there is no mvn.*apt-get install"):
        _kafka_installation.kafka_libraries()


def test_processes_that_need_kafka_at_once_fetch_it_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    programs, cache = tmp_path / "programs", tmp_path / "cache"
    programs.mkdir()
    maven = programs / "mvn"
    maven.write_text(
        f"#!/bin/sh\necho run >> {tmp_path}/runs; sleep 0.3\n"
        'for a; do case "$a" in -DoutputDirectory=*) mkdir -p "${a#*=}"; touch "${a#*=}/kafka.jar";; esac; done\n',
        encoding="utf-8",
    )
    maven.chmod(0o755)
    code = "from scoop_outbox.devservers._kafka_installation import kafka_libraries; print(kafka_libraries())"
    environment = {**os.environ, CACHE: str(cache), "PATH": f"{programs}:{os.environ['PATH']}"}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    folders = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert len(folders) == 1
    assert [file.name for file in Path(folders.pop()).iterdir()] == ["kafka.jar"]
    assert (tmp_path / "runs").read_text(encoding="utf-8").split() == ["run"]


def test_the_pom_names_no_host() -> None:
    pom = Path(_kafka_installation.__file__).with_name("kafka-server") / "pom.xml"
    assert "://" not in pom.read_text(encoding="utf-8")


def test_the_classes_are_archived_once_and_an_archive_that_is_none_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "classes.jsa"
    for module in (_kafka_classes, _kafka_node):
        monkeypatch.setattr(module, "class_archive", lambda: archive)
    with start_kafka(tmp_path / "first"):
        assert archive.stat().st_size > 1_000_000
    archive.chmod(0o600)
    archive.write_bytes(b"")
    with start_kafka(tmp_path / "second") as cluster:
        assert all(node.pid for node in cluster.nodes)
    assert archive.read_bytes() == b""
