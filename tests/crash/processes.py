"""Worker and relay processes that tests start, kill and look into."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.waiting import until_blocking

REPOSITORY = Path(__file__).parents[2]
START = 60.0
"""Seconds that a process may take to begin: it needs 1.2 of a processor, and eight of them share two."""
_TAIL = 3000


class Process:
    """One `scoop-outbox` process whose log is in a file.

    Args:
        name: what the log file is called.
        arguments: the command and its options.
        environment: what it reads.
        folder: where its log goes.
        code: the checkout that it runs.
    """

    def __init__(
        self,
        name: str,
        arguments: tuple[str, ...],
        environment: Mapping[str, str],
        folder: Path,
        code: Path = REPOSITORY,
    ) -> None:
        self.name = name
        self.arguments = arguments
        self._log = folder / f"{name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "scoop_outbox", *arguments],
                cwd=code,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def __repr__(self) -> str:
        return f"<{self.name} pid={self.pid} code={self._process.poll()}>"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def ready(self) -> bool:
        assert self._process.poll() is None, f"{self} has ended by itself:\n{self.log[-_TAIL:]}"
        return "process: ready" in self.log

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait_until_ready(self) -> None:
        until_blocking(lambda: self.ready, START)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it as `kill -9` does, and return once it is gone."""
        self._process.kill()
        self._process.wait()

    def wait(self, timeout: float) -> int:
        """Return its exit code once it has ended by itself."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self} still runs after {timeout} s:\n{self.log[-_TAIL:]}") from None


class Fleet:
    """All processes of a test.

    Args:
        database_url: the home of all of them.
        folder: where logs go.
        code: the checkout that they run.
    """

    def __init__(self, database_url: str, folder: Path, code: Path = REPOSITORY) -> None:
        self._url = database_url
        self._folder = folder
        self._code = code
        self._all: list[Process] = []

    def start(self, *arguments: str, **environment: str) -> Process:
        """Start a process with the arguments of the command line."""
        name = f"{len(self._all):03d}-{arguments[0]}-{arguments[-1].rpartition(':')[2]}"
        known = {"SCOOP_OUTBOX_DATABASE": self._url, **environment}
        process = Process(name, arguments, known, self._folder, self._code)
        self._all.append(process)
        return process

    def worker(self, app: str, *options: str, **environment: str) -> Process:
        """Start a worker of a service, `module:name` below this folder."""
        return self.start("worker", *options, f"tests.crash.{app}", **environment)

    def relay(self, *options: str) -> Process:
        """Start a relay."""
        return self.start("relay", *options)

    def stop(self) -> None:
        """Kill whatever still runs, stopped processes too."""
        for process in self._all:
            if not process.ended:
                process.kill()

    def tails(self) -> str:
        """Return the ends of all logs."""
        return "\n".join(f"--- {process}\n{process.log[-_TAIL:]}" for process in self._all)


def with_tails(item: pytest.Item, report: pytest.TestReport) -> pytest.TestReport:
    """Add the ends of the logs of a test's processes to its report, if it has failed."""
    fleet = getattr(item, "funcargs", {}).get("fleet")
    if report.failed and isinstance(fleet, Fleet):
        report.sections.append(("logs of the processes", fleet.tails()))
    return report
