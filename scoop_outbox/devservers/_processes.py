"""What the launcher must know of processes that are not its own children."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from scoop_outbox.devservers._postgres_installation import PostgresStartError

_END_SECONDS: Final = 30.0


def end_leftovers(cluster: Path) -> None:
    """Make a folder whose lock is ours free of the server of an owner that has died, and of its traces.

    Postgres itself takes a stale ``postmaster.pid`` for a running server when its number has been given to
    any other process of the same user. Who works in the folder is certain; a number is not.

    Raises:
        PostgresStartError: processes stay in the folder though their server was told to stop.
    """
    if not Path("/proc/self/cwd").exists():
        return
    status = cluster / "postmaster.pid"
    if left := _processes_in(cluster):
        with suppress(FileNotFoundError, ValueError, IndexError):
            postmaster = int(status.read_text(encoding="utf-8", errors="replace").splitlines()[0])
            if postmaster in left:
                os.kill(postmaster, signal.SIGINT)
        if not wait_for(lambda: not _processes_in(cluster), _END_SECONDS):
            msg = f"Processes {left} still work in {cluster} after their server was told to stop: end them."
            raise PostgresStartError(msg)
    status.unlink(missing_ok=True)


def _processes_in(cluster: Path) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink() == cluster:
                found.append(int(process.name))
    return found


def kill_family(postmaster: int) -> None:
    """Kill a server with all its children, and return once the children are gone.

    Raises:
        PostgresStartError: a child is still there half a minute later.
    """
    # A stopped postmaster starts no further child while its children are being counted.
    _send(postmaster, signal.SIGSTOP)
    children = [pid for pid, (parent, _) in _process_table().items() if parent == postmaster]
    for pid in (*children, postmaster):
        _send(pid, signal.SIGKILL)
    # Postgres does not start again while one of them still holds the shared memory.
    if not wait_for(lambda: not _running(children), _END_SECONDS):
        msg = f"Processes {_running(children)} outlive SIGKILL: the machine is overloaded, or a disk hangs."
        raise PostgresStartError(msg)


def _running(pids: list[int]) -> list[int]:
    """Return those that still run; a zombie does not, it only waits for its parent to take notice."""
    table = _process_table()
    return [pid for pid in pids if pid in table and table[pid][1] != "Z"]


def _process_table() -> dict[int, tuple[int, str]]:
    """Return the parent and the state letter of every process."""
    table = {}
    if Path("/proc/self/stat").exists():
        for file in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                # The name before the last ")" may itself hold spaces and parentheses.
                state, parent = file.read_text(errors="replace").rpartition(")")[2].split()[:2]
                table[int(file.parent.name)] = int(parent), state
        return table
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True)
    for line in listing.stdout.splitlines():
        pid, parent, state = line.split()[:3]
        table[int(pid)] = int(parent), state[0]
    return table


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until a condition holds; return False when it still does not after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
