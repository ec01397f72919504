"""Find Java, and fetch Apache Kafka once with Maven into the cache."""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Final

from scoop_outbox.devservers._errors import ServerNotFoundError, ServerStartError
from scoop_outbox.devservers._server import CACHE, cache_folder

KAFKA_URL: Final = "SCOOP_OUTBOX_TEST_KAFKA_URL"

_JAVA_NEEDED: Final = 17
_FETCH: Final = ("-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime")
_HOW_TO_GET_IT: Final = (
    "Do one of these: install Java 17 and Maven, with which Kafka is fetched (Debian: apt-get install "
    "default-jre-headless maven); start Docker, with pip install 'scoop-outbox[test]'; "
    f"or set {KAFKA_URL} to a broker where topics may be created, as in kafka://127.0.0.1:9092."
)


class KafkaNotFoundError(ServerNotFoundError):
    """No Kafka could be found here; the message says what to install."""


class KafkaStartError(ServerStartError):
    """Kafka was found and did not start; the message holds the end of its log."""


def find_java() -> str:
    """Return the ``java`` to use: that of ``JAVA_HOME``, or the first in the PATH.

    Raises:
        KafkaNotFoundError: there is none, or it is older than 17.
    """
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    if java is None:
        msg = f"No Kafka here: there is no java{f' in JAVA_HOME, {home}' if home else ''}. {_HOW_TO_GET_IT}"
        raise KafkaNotFoundError(msg)
    version = re.search(r'version "(\d+)', _version(java))
    if version is None or int(version[1]) < _JAVA_NEEDED:
        msg = f"No Kafka here: {java} is not Java {_JAVA_NEEDED} or newer. {_HOW_TO_GET_IT}"
        raise KafkaNotFoundError(msg)
    return java


@lru_cache
def _version(java: str) -> str:
    return subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr


def class_archive() -> Path:
    """Return where the archive of Kafka's classes is, or would be, for this Java and these libraries."""
    libraries = kafka_libraries()
    java = hashlib.sha256(_version(find_java()).encode()).hexdigest()[:12]
    # Beside the libraries: Java checks that their folder lists them in the same order.
    return libraries.with_name(f"{libraries.name}-java-{java}.jsa")


def kafka_libraries() -> Path:
    """Return the folder with Kafka's archives; the first call on a machine fetches them, in a few seconds.

    Several processes may call this at once: one fetches, and the others wait for it.

    Raises:
        KafkaNotFoundError: they are not in the cache, and Maven is missing or could not fetch them.
    """
    pom = files("scoop_outbox.devservers").joinpath("kafka-server", "pom.xml").read_bytes()
    cache = cache_folder()
    # What has the final name is whole, and is what this pom asks for.
    libraries = cache / f"kafka-{hashlib.sha256(pom).hexdigest()[:12]}"
    if libraries.is_dir():
        return libraries
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "kafka.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not libraries.is_dir():
            _fetch(pom, libraries)
    return libraries


def _fetch(pom: bytes, libraries: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        msg = (
            f"No Kafka here: it is not in the cache {libraries.parent} ({CACHE}), and there is no mvn. {_HOW_TO_GET_IT}"
        )
        raise KafkaNotFoundError(msg)
    with tempfile.TemporaryDirectory(prefix="kafka-", dir=libraries.parent) as folder:
        draft = Path(folder)
        (draft / "pom.xml").write_bytes(pom)
        done = subprocess.run(
            [maven, *_FETCH, f"-DoutputDirectory={draft / 'lib'}"],
            cwd=draft,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            msg = f"No Kafka here: Maven could not fetch it.\n{(done.stdout + done.stderr)[-2000:]}\n{_HOW_TO_GET_IT}"
            raise KafkaNotFoundError(msg)
        (draft / "lib").rename(libraries)
