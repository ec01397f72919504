"""What something costs in processor time and in commits: noise makes it slower, and hardly dearer."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.control import Control

_TICK = os.sysconf("SC_CLK_TCK")


def of_process(pid: int | str) -> float:
    """Return the seconds of processor time that a process has used."""
    return sum(_times(pid)[:2])


class Server:
    """The processes of a Postgres on this machine.

    Those that have ended are in the account of their parent, which had them started.
    """

    def __init__(self, postmaster: int) -> None:
        self._postmaster = postmaster

    @classmethod
    async def of(cls, control: Control) -> Server | None:
        """Find the server behind a connection; None when it is not on this machine."""
        backend = await control.one("select pg_backend_pid()")
        return cls(_parent(backend)) if _is_postgres(backend) else None

    def seconds(self) -> float:
        """Return the seconds of processor time that all its processes have used."""
        total = sum(_times(self._postmaster))
        for pid in _pids():
            try:
                if _parent(pid) == self._postmaster:
                    total += of_process(pid)
            except OSError:  # it has just ended
                continue
        return total


@dataclass(frozen=True, slots=True)
class Spent:
    """What something has cost.

    Attributes:
        python: seconds of processor time of the Python processes.
        postgres: seconds of processor time of the server's processes; None when they are not on this machine.
    """

    python: float
    postgres: float | None


class Meter:
    """Adds up what some processes and the server use.

    Args:
        server: the server, if it is on this machine.
        pids: the Python processes.
    """

    def __init__(self, server: Server | None, pids: Iterable[int]) -> None:
        self._server = server
        self._pids = list(pids)
        self._before = self._now()

    def _now(self) -> Spent:
        return Spent(sum(map(of_process, self._pids)), None if self._server is None else self._server.seconds())

    def spent(self) -> Spent:
        """Return what was used since this was made."""
        now, before = self._now(), self._before
        postgres = None if now.postgres is None or before.postgres is None else now.postgres - before.postgres
        return Spent(now.python - before.python, postgres)


def _is_postgres(pid: int) -> bool:
    try:
        return b"postgres" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _fields(pid: int | str) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()


def _times(pid: int | str) -> list[float]:
    """Return the seconds in user and kernel mode of a process, and of those that it had started and that have ended."""
    return [int(ticks) / _TICK for ticks in _fields(pid)[11:15]]


def _parent(pid: int | str) -> int:
    return int(_fields(pid)[1])


def _pids() -> Iterable[str]:
    return (entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit())
