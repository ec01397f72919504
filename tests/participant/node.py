"""Node, and the participant that is an example for it: installed once, and run as its users run it."""

import fcntl
import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any, Final, Self

from scoop_outbox.devservers._errors import ServerNotFoundError
from scoop_outbox.devservers._server import cache_folder

EXAMPLE: Final = Path(__file__).parents[2] / "examples" / "node-participant"
FIXTURES: Final = Path(__file__).parents[2] / "docs" / "protocol" / "fixtures"

_NEEDED: Final = 18


class NodeNotFoundError(ServerNotFoundError):
    """There is no Node, or what the example needs cannot be had; the message says what to do."""


def node_here() -> str:
    """Return the program.

    Raises:
        NodeNotFoundError: there is none, or it is too old.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    how = f"install Node {_NEEDED} or newer, and npm (Debian: apt-get install nodejs npm)"
    if node is None or npm is None:
        raise NodeNotFoundError(f"No Node here: {how}.")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.removeprefix("v").partition(".")[0]) < _NEEDED:
        raise NodeNotFoundError(f"This is Node {version.strip()}: {how}.")
    return node


def install(folder: Path) -> None:
    """Copy the example into a folder, beside the packages that it needs; the first call on a machine fetches those.

    Raises:
        NodeNotFoundError: npm cannot fetch them.
    """
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("node_modules", "*.db*"))
    shutil.copy(Path(__file__).with_name("own_topics.js"), folder)
    (folder / "node_modules").symlink_to(_packages())


def _packages() -> Path:
    wanted = hashlib.sha256((EXAMPLE / "package-lock.json").read_bytes()).hexdigest()[:12]
    packages = cache_folder() / f"node-{wanted}"
    packages.mkdir(parents=True, exist_ok=True)
    with (packages / "lock").open("ab") as lock:
        # Worker processes of pytest come at the same time: one fetches.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (packages / "whole").exists():
            for file in ("package.json", "package-lock.json", ".npmrc"):
                shutil.copy(EXAMPLE / file, packages)
            done = subprocess.run(
                ["npm", "ci", "--omit=dev"], cwd=packages, capture_output=True, text=True, timeout=300, check=False
            )
            if done.returncode != 0:
                raise NodeNotFoundError(f"npm could not fetch what the participant needs.\n{done.stderr[-2000:]}")
            (packages / "whole").touch()
    return packages / "node_modules"


class Courier:
    """The service of the example, as a process of its own, on a database in a folder of the test's.

    Args:
        example: where the example is installed.
        folder: where its database and its log are.
        broker: the URL.
        prefix: what the names of its topics and groups begin with, at the broker.
    """

    def __init__(self, example: Path, folder: Path, broker: str, prefix: str) -> None:
        self._database = folder / "courier.db"
        self._log = folder / "courier.log"
        self._example = example
        named = {"BROKER": broker, "HOME_FILE": str(self._database), "HOME_NAME": "courier", "TOPIC_PREFIX": prefix}
        self._environment = os.environ | named
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text("utf-8") if self._log.exists() else ""

    def start(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["node", self._example / "own_topics.js"], env=self._environment, stdout=log, stderr=log
            )
        return self

    def stop(self) -> None:
        """End it as an operator does, and see that it ends well."""
        self._end(signal.SIGTERM, 0)

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL, -signal.SIGKILL)

    def _end(self, how: signal.Signals, code: int) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            assert process.wait(20) == code, self.log

    def query(self, statement: str, *values: str) -> list[tuple[Any, ...]]:
        """Ask its database, or change it, as a person with a shell does."""
        with closing(sqlite3.connect(self._database, timeout=10)) as connection, connection:
            return connection.execute(statement, values).fetchall()

    def retry(self, run: str) -> None:
        subprocess.run(
            ["node", self._example / "service.js", "retry", run], env=self._environment, timeout=30, check=True
        )
