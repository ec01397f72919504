"""What the demonstration runs: a Postgres, and a handful of processes. Whatever happens, none of them outlives it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from scoop_outbox.client.servers import (
    BROKER_SETTINGS_VARIABLE,
    BROKER_VARIABLE,
    DATABASE_VARIABLE,
    HOME_VARIABLE,
)
from scoop_outbox.demo.tables import SCHEMA
from scoop_outbox.devservers.postgres import TEST_SETTINGS, PostgresServer
from scoop_outbox.errors import ScoopError

Entered = TypeVar("Entered")

_READY_SECONDS = 30.0
_STOP_SECONDS = 5.0
# Reads process ids until the pipe to the demonstration breaks, which a kill -9 does too; then ends those processes.
_WATCHDOG = 'while read -r pid; do pids="$pids $pid"; done; kill -KILL $pids'


class ProcessEnded(ScoopError):
    """A process has ended that should not have, or did not become ready; the message holds the end of its log."""


@asynccontextmanager
async def postgres() -> AsyncIterator[str]:
    """Run a Postgres of the demonstration's own, in a temporary folder, and yield its URL."""
    with tempfile.TemporaryDirectory(prefix="scoop-outbox-demo-") as folder:
        async with in_thread(PostgresServer(Path(folder) / "postgres", settings=TEST_SETTINGS)) as server:
            yield server.url


@asynccontextmanager
async def in_thread(server: AbstractContextManager[Entered]) -> AsyncIterator[Entered]:
    """Start a server in a thread, so that Ctrl-C is noticed meanwhile, and stop it at the end."""
    # What has begun to start can only be stopped once it has started.
    starting = asyncio.ensure_future(asyncio.to_thread(server.__enter__))
    try:
        entered = await asyncio.shield(starting)
    except asyncio.CancelledError:
        await starting
        server.__exit__(None, None, None)
        raise
    try:
        yield entered
    finally:
        server.__exit__(None, None, None)


class Processes:
    """The services and the relay, with a log file each. Made by `processes`."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        """Start nothing but the watchdog."""
        self._folder = folder
        self._environment = environment
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def start(self, name: str, *arguments: str, environment: Mapping[str, str] = MappingProxyType({})) -> None:
        """Start `scoop-outbox ARGUMENTS` as a process, with something more in its environment."""
        with self._log(name).open("wb") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", "scoop_outbox", *arguments],
                env=self._environment | dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in a terminal goes to its whole group of processes. It is ours to end these, and in order.
                start_new_session=True,
            )
        assert self._watchdog.stdin is not None  # noqa: S101 - it was opened with a pipe
        self._watchdog.stdin.write(b"%d\n" % self._running[name].pid)
        self._watchdog.stdin.flush()

    async def ready(self) -> None:
        """Return once all of them work: from then on it is known who listens to which topic.

        Raises:
            ProcessEnded: one does not work.
        """
        deadline = time.monotonic() + _READY_SECONDS
        for name in self._running:
            while b"process: ready (" not in self._log(name).read_bytes():
                self.check()
                if time.monotonic() > deadline:
                    raise ProcessEnded(f"{name} was not ready within {_READY_SECONDS:.0f} s; {self._end_of_log(name)}")
                await asyncio.sleep(0.02)

    def check(self) -> None:
        """See that all of them still run.

        Raises:
            ProcessEnded: one does not.
        """
        for name, process in self._running.items():
            code = process.poll()
            if code is not None:
                raise ProcessEnded(f"the process of {name} has ended with exit code {code}; {self._end_of_log(name)}")

    def stop(self) -> None:
        """End all of them: with grace, or at once when that takes too long."""
        for process in self._running.values():
            process.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        for process in self._running.values():
            try:
                process.wait(max(deadline - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        # Last, and not by closing its pipe: by now the numbers that it knows may be those of other processes.
        self._watchdog.kill()
        with self._watchdog:
            self._running.clear()

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _end_of_log(self, name: str) -> str:
        log = self._log(name).read_text(encoding="utf-8", errors="replace")
        if not log.strip():
            return "it has said nothing: if it was still starting, this machine is slow or busy; run it once more"
        return f"its log ends with:\n{log[-2000:]}"


@asynccontextmanager
async def processes(
    urls: Mapping[str, str], broker: str | None, settings: Mapping[str, str]
) -> AsyncIterator[Processes]:
    """Run the services and their relay, and yield once they are ready.

    Services that have a database each relay what is in it themselves, and are homes that are called as they are.

    Args:
        urls: of each service, its database.
        broker: the broker's URL; None is the built-in one.
        settings: for the broker's client.

    Raises:
        ProcessEnded: one does not start.
    """
    # By the environment, not as arguments: those can be read by every user of the machine, and URLs hold passwords.
    environment = dict(os.environ)
    for variable in (BROKER_VARIABLE, BROKER_SETTINGS_VARIABLE, HOME_VARIABLE):
        environment.pop(variable, None)
    if broker is not None:
        environment[BROKER_VARIABLE] = broker
    with tempfile.TemporaryDirectory(prefix="scoop-outbox-demo-") as folder:
        if settings:
            # The folder is nobody else's to read.
            file = Path(folder) / "broker-settings"
            file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()), "utf-8")
            environment[BROKER_SETTINGS_VARIABLE] = str(file)
        running = Processes(Path(folder), environment)
        try:
            _start(running, urls)
            await running.ready()
            yield running
        finally:
            running.stop()


def _start(running: Processes, urls: Mapping[str, str]) -> None:
    separate = len(set(urls.values())) > 1
    for service, url in urls.items():
        command = ["worker", f"scoop_outbox.demo.{service}:app", "--grace", "2"]
        if separate:
            running.start(service, *command, "--relay", environment={DATABASE_VARIABLE: url, HOME_VARIABLE: service})
        else:
            running.start(service, *command, environment={DATABASE_VARIABLE: url})
    if not separate:
        shared = {DATABASE_VARIABLE: next(iter(urls.values()))}
        running.start("relay", "relay", "--schema", SCHEMA, "--grace", "2", environment=shared)
