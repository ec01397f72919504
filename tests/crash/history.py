"""The code of before, as the history of the repository has it."""

from __future__ import annotations

import functools
import subprocess

from tests.crash.processes import REPOSITORY

HOMES = "scoop_outbox/store/migrations/versions/0024_homes.py"
"""The migration that code does not know which does not know other homes."""


@functools.cache
def code_before_homes() -> bytes:
    """Return an archive of the last code that does not know other homes; empty where history does not reach so far."""
    added = _git("log", "--diff-filter=A", "--format=%H", "--", HOMES).split()
    return _git("archive", f"{added[-1].decode()}^") if added else b""


def _git(*arguments: str) -> bytes:
    """Return what git answers; nothing if there is no repository. Whoever owns the files, they are ours to read."""
    command = ["git", "-c", "safe.directory=*", *arguments]
    try:
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return b""
