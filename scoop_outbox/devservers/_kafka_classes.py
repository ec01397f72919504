"""An archive of Kafka's classes, made once on a machine: with it a broker starts in half the time.

A broker spends most of its start on finding, checking and compiling some thousand classes. Java can keep them in the
form in which it works with them, and map that into its memory (class data sharing, JEP 350).
"""

import fcntl
import logging
import tempfile
from pathlib import Path
from typing import Final

from scoop_outbox.devservers._errors import ServerStartError
from scoop_outbox.devservers._kafka_installation import KafkaStartError, class_archive
from scoop_outbox.devservers._kafka_node import KafkaNode, KafkaPorts
from scoop_outbox.devservers._kafka_settings import new_cluster_id, settings_of_nodes
from scoop_outbox.devservers._server import free_ports

_STOP_SECONDS: Final = 60.0

_log = logging.getLogger(__name__)


def make_class_archive() -> None:
    """Make the archive where there is none, in ten seconds. Several processes may call this at once: one makes it.

    Without one brokers start all the same, only slowly. So what keeps it from being made is logged, and it is tried
    again when the next cluster starts. A Java that cannot make one leaves an empty file, and is not asked again.

    Raises:
        KafkaNotFoundError: there is no Java, or Kafka is not in the cache and cannot be fetched.
    """
    archive = class_archive()
    if archive.exists():
        return
    try:
        with archive.with_suffix(".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not archive.exists():
                _make(archive)
    except (OSError, ServerStartError) as error:  # a cache that others own, a full disk, a port that somebody took
        _log.warning("kafka: classes not archived, brokers start slowly (%s)", error)


def _make(archive: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="kafka-", dir=archive.parent) as folder:
        draft = Path(folder) / "classes.jsa"
        node = KafkaNode(1, Path(folder) / "node", KafkaPorts(*free_ports(3)))
        node.write_settings(settings_of_nodes([node]))
        try:
            node.begin_format(new_cluster_id())()
            node.spawn(f"-XX:ArchiveClassesAtExit={draft}")
            node.wait_until_ready()
            # It writes the archive at its end, and one that is ended by force leaves a part of it.
            if not node.stop(_STOP_SECONDS):
                raise KafkaStartError(
                    f"a broker that is to archive its classes did not stop within {_STOP_SECONDS:.0f} s"
                )
        finally:
            node.kill()
        draft.touch()
        draft.rename(archive)
