"""What the launchers of brokers share: processes that never outlive their owner, folders, free ports, the cache."""

import atexit
import fcntl
import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Final
from urllib.parse import urlsplit

import scoop_outbox
from scoop_outbox.devservers._errors import ServerNotFoundError, ServerStartError
from scoop_outbox.devservers._processes import wait_for

CACHE: Final = "SCOOP_OUTBOX_CACHE"
LOOPBACK: Final = "127.0.0.1"

_ANSWER_SECONDS: Final = 10.0
_KILL_SECONDS: Final = 30.0
_PID_FILE: Final = "process"
_LOG_EXCERPT: Final = 2000
# Below the range from which kernels number outgoing connections: a port from that range can be taken by
# anybody, or be connected to itself by a client that retries, while a crashed server is down.
_PORTS: Final = range(20_000, 30_000)
# Begins only when told to, that is when the watchdog is there: an owner that dies in between leaves nothing.
_BEGIN: Final = 'read -r _ && exec "$@" </dev/null'
# Kills the group ($1) once the pipe to its owner breaks. A group that is stopped is killed all the same.
_WATCHDOG: Final = 'read -r _; kill -KILL -"$1" 2>/dev/null'


class OwnedProcess:
    """A command and its children, in a session of their own, that end when their owner does, however it ends.

    Args:
        command: the program and its arguments.
        cwd: a folder that this command alone works in; the number of its process is written there.
        environment: all of its environment.
        log: a file that what it prints is added to.
    """

    def __init__(self, command: Sequence[str | Path], *, cwd: Path, environment: Mapping[str, str], log: Path) -> None:
        _end_leftovers(cwd)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _BEGIN, "sh", *command],
                cwd=cwd,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._owner = os.getpid()
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "sh", str(self.pid)],
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        atexit.register(self._kill_at_exit)
        (cwd / _PID_FILE).write_text(str(self.pid), encoding="ascii")
        if self._process.stdin is not None:
            with suppress(BrokenPipeError), self._process.stdin as begin:
                begin.write(b"begin\n")

    @property
    def alive(self) -> bool:
        """Tell whether it runs; one that is frozen does."""
        if self._process.returncode is not None:
            return False
        # Without taking notice of its end, so that its number stays its own until the watchdog is gone.
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process and its children."""
        if self._process.returncode is None:
            _signal_group(self.pid, number)

    def ask_to_end(self) -> None:
        """Ask it to end, as its own children are, and let it go on for that when it is frozen."""
        self.send(signal.SIGTERM)
        self.send(signal.SIGCONT)

    def end(self, seconds: float) -> bool:
        """Ask it to end, as its own children are; kill it after so many seconds, and return False then."""
        self.ask_to_end()
        ended = wait_for(lambda: not self.alive and not _running_in(self.pid), seconds)
        self.kill()
        return ended

    def kill(self) -> None:
        """End it and its children as ``kill -9`` does; return once they are gone."""
        if self._process.returncode is not None:
            return
        _kill_group(self.pid)
        with self._watchdog:
            self._watchdog.kill()
        self._process.wait()
        atexit.unregister(self._kill_at_exit)

    def _kill_at_exit(self) -> None:
        # A forked child inherits the registration, but not the process.
        if os.getpid() == self._owner:
            self.kill()


def _end_leftovers(cwd: Path) -> None:
    """Kill what an owner that died has left in a folder, where its watchdog has not done so yet."""
    with suppress(FileNotFoundError, ValueError):
        group = int((cwd / _PID_FILE).read_text(encoding="ascii"))
        # The number may have been given to others since; who works in the folder is certain.
        if any(_works_in(pid, cwd) for pid in _running_in(group)):
            _kill_group(group)


def _works_in(pid: int, folder: Path) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cwd").readlink() == folder
    return False


def _kill_group(group: int) -> None:
    _signal_group(group, signal.SIGKILL)
    if not wait_for(lambda: not _running_in(group), _KILL_SECONDS):
        msg = f"Processes {_running_in(group)} outlive SIGKILL: the machine is overloaded, or a disk hangs."
        raise ServerStartError(msg)


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _running_in(group: int) -> list[int]:
    """Return the processes of a group; a zombie does not count, it only waits for its parent to take notice."""
    found = []
    if Path("/proc/self/stat").exists():
        for file in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                # The name before the last ")" may itself hold spaces and parentheses.
                state, _, its_group = file.read_text(errors="replace").rpartition(")")[2].split()[:3]
                if int(its_group) == group and state not in "ZX":
                    found.append(int(file.parent.name))
        return found
    listing = subprocess.run(["ps", "-A", "-o", "pid=,pgid=,stat="], capture_output=True, text=True, check=True)
    for line in listing.stdout.splitlines():
        pid, its_group, state = line.split()[:3]
        if int(its_group) == group and state[0] != "Z":
            found.append(int(pid))
    return found


def lock_folder(folder: Path, error: type[ServerStartError]) -> IO[bytes]:
    """Create a server's folder and keep every other process away from it until what is returned is closed.

    Raises:
        ServerStartError: another server uses the folder.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = (folder / "lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        msg = f"{folder} is in use by another server: stop that one, or choose another folder."
        raise error(msg) from None
    return file


def write_secret(file: Path, text: str) -> None:
    """Write a file that nobody else may read."""
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    file.write_text(text, encoding="utf-8")


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listens on.

    Raises:
        ServerStartError: there are not so many.
    """
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as candidate, suppress(OSError):
            candidate.bind((LOOPBACK, port))
            found.append(port)
        if len(found) == count:
            return found
    msg = f"Almost every port from {_PORTS.start} to {_PORTS.stop - 1} is in use on {LOOPBACK}: end what uses them."
    raise ServerStartError(msg)


def wait_until_ready(process: OwnedProcess, ready: Callable[[], bool], seconds: float) -> bool:
    """Wait until a server is ready; return False when it has ended or is not ready after so many seconds."""
    return wait_for(lambda: not process.alive or ready(), seconds) and process.alive


def answers(host: str, port: int, seconds: float = 1.0) -> bool:
    """Tell whether somebody listens on a port."""
    with suppress(OSError), socket.create_connection((host, port), timeout=seconds):
        return True
    return False


def check_named_server(
    variable: str, url: str, schemes: Sequence[str], port: int, error: type[ServerNotFoundError]
) -> None:
    """Check that a server somebody named answers.

    Raises:
        ServerNotFoundError: of the type ``error``: this is no URL of such a server, or nobody listens there.
    """
    # One of several nodes is enough.
    address = urlsplit(re.sub(r",[^/]*", "", url))
    try:
        host, named_port = address.hostname, address.port
    except ValueError:
        host = named_port = None
    if address.scheme not in schemes or not host:
        # Not the URL itself: it may hold a password.
        msg = f"{variable} is not a URL that begins with {schemes[0]}:// and names a host: correct or unset it."
        raise error(msg)
    if not answers(host, named_port or port, _ANSWER_SECONDS):
        where = f"{host}:{named_port or port}"
        msg = f"The server of {variable} does not answer at {where}: start it, correct the URL or unset it."
        raise error(msg)


def end_of(log: Path, begin: int = 0) -> str:
    """Return the last lines of a log, as far as they were written after its first so many bytes."""
    with suppress(FileNotFoundError):
        return log.read_bytes()[begin:][-_LOG_EXCERPT:].decode(errors="replace")
    return ""


def size_of(log: Path) -> int:
    """Return the size of a file that need not exist."""
    return log.stat().st_size if log.exists() else 0


def cache_folder() -> Path:
    """Return where what is fetched for servers is kept.

    That is ``SCOOP_OUTBOX_CACHE``, or ``.cache`` of the repository this package is used from, or
    the user's folder for caches.
    """
    named = os.environ.get(CACHE)
    if named:
        return Path(named).absolute()
    root = Path(scoop_outbox.__file__).parent.parent
    if (root / "pyproject.toml").exists() and (root / ".git").exists():
        return root / ".cache"
    of_user = os.environ.get("XDG_CACHE_HOME")
    if of_user:
        return Path(of_user) / "scoop-outbox"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "scoop-outbox"
