"""An archive of Kafka's classes is a convenience: what keeps it from being made keeps no broker from starting."""

import logging
from pathlib import Path
from typing import ClassVar

import pytest

from scoop_outbox.devservers import _kafka_classes as module
from scoop_outbox.devservers import _kafka_node
from scoop_outbox.devservers._errors import ServerStartError
from scoop_outbox.devservers._kafka_installation import KafkaStartError


class Node:
    """A broker that archives its classes when it stops, unless it is told to fail."""

    fails: ClassVar[Exception | None] = None
    leaves: ClassVar[bytes | None] = b"classes"
    ends: ClassVar[bool] = True
    started: ClassVar[int] = 0

    def __init__(self, number: int, folder: Path, ports: object) -> None:
        self.number = number
        self.ports = _kafka_node.KafkaPorts(1, 2, 3)

    def write_settings(self, settings: object) -> None: ...

    def begin_format(self, cluster_id: str) -> object:
        return lambda: None

    def spawn(self, option: str) -> None:
        type(self).started += 1
        self._draft = Path(option.partition("=")[2])

    def wait_until_ready(self) -> None:
        if self.fails is not None:
            raise self.fails

    def stop(self, seconds: float) -> bool:
        if self.leaves is not None:
            self._draft.write_bytes(self.leaves)
        return self.ends

    def kill(self) -> None: ...


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Path:
    caplog.set_level(logging.WARNING)
    archive = tmp_path / "cache" / "kafka-java.jsa"
    archive.parent.mkdir()
    monkeypatch.setattr(module, "class_archive", lambda: archive)
    monkeypatch.setattr(module, "KafkaNode", Node)
    monkeypatch.setattr(Node, "started", 0)
    return archive


def test_it_is_made_once(archive: Path) -> None:
    module.make_class_archive()
    module.make_class_archive()
    assert archive.read_bytes() == b"classes"
    assert Node.started == 1


def test_a_java_that_cannot_make_one_is_asked_once(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Node, "leaves", None)
    module.make_class_archive()
    module.make_class_archive()
    assert archive.read_bytes() == b""
    assert Node.started == 1


@pytest.mark.parametrize(
    "error", [KafkaStartError("Address already in use"), ServerStartError("no ports"), OSError("full")]
)
def test_what_failed_once_is_tried_again(
    archive: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Node, "fails", error)
        module.make_class_archive()
    assert not archive.exists()
    assert str(error) in caplog.text
    module.make_class_archive()
    assert archive.read_bytes() == b"classes"


def test_what_a_broker_leaves_that_was_killed_is_no_archive(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Node, "ends", False)
    module.make_class_archive()
    assert not archive.exists()


def test_a_cache_that_cannot_be_written_keeps_nobody_from_starting(
    archive: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    archive.parent.rmdir()  # as root may write everywhere
    module.make_class_archive()
    assert "No such file or directory" in caplog.text
    assert Node.started == 0


@pytest.mark.parametrize("content, used", [(None, False), (b"", False), (b"classes", True)])
def test_an_empty_archive_is_not_given_to_java(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, used: bool
) -> None:
    archive = tmp_path / "kafka-java.jsa"
    if content is not None:
        archive.write_bytes(content)
    monkeypatch.setattr(_kafka_node, "class_archive", lambda: archive)
    monkeypatch.setattr(_kafka_node, "find_java", lambda: "java")
    monkeypatch.setattr(_kafka_node, "kafka_libraries", lambda: tmp_path)
    assert (f"-XX:SharedArchiveFile={archive}" in _kafka_node._java("kafka.Kafka")) is used
