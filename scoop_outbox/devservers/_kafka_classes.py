"""An archive of Kafka's classes, made once on a machine: with it a broker starts in half the time.

A broker spends most of its start on finding, checking and compiling some thousand classes. Java can keep them in the
form in which it works with them, and map that into its memory (class data sharing, JEP 350).
"""

import fcntl
import logging
import tempfile
from pathlib import Path

from scoop_outbox.devservers._kafka_installation import KafkaStartError, class_archive
from scoop_outbox.devservers._kafka_node import KafkaNode, KafkaPorts
from scoop_outbox.devservers._kafka_settings import new_cluster_id, settings_of_nodes
from scoop_outbox.devservers._server import free_ports

_log = logging.getLogger(__name__)


def make_class_archive() -> None:
    """Make the archive where there is none, in ten seconds. Several processes may call this at once: one makes it.

    A Java that cannot do so is asked once: it leaves an empty file, and brokers start without.

    Raises:
        KafkaNotFoundError: there is no Java, or Kafka is not in the cache and cannot be fetched.
    """
    archive = class_archive()
    if archive.exists():
        return
    with archive.with_suffix(".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if archive.exists():
            return
        with tempfile.TemporaryDirectory(prefix="kafka-", dir=archive.parent) as folder:
            draft = Path(folder) / "classes.jsa"
            try:
                _start_and_stop(Path(folder), f"-XX:ArchiveClassesAtExit={draft}")
            except KafkaStartError as error:
                _log.warning("Kafka's classes could not be archived, so each broker starts slowly: %s", error)
            draft.touch()
            draft.rename(archive)


def _start_and_stop(folder: Path, java_option: str) -> None:
    """Run a broker that ends by itself, and not by force: it writes the archive at its end."""
    node = KafkaNode(1, folder / "node", KafkaPorts(*free_ports(3)))
    node.write_settings(settings_of_nodes([node]))
    try:
        node.begin_format(new_cluster_id())()
        node.spawn(java_option)
        node.wait_until_ready()
        node.stop()
    finally:
        node.kill()
