"""The conditions: without them a number says nothing."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import psycopg

_SETTINGS = (
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "shared_buffers",
    "max_wal_size",
    "wal_level",
    "autovacuum",
    "max_connections",
    "shared_preload_libraries",
)
_COMMITS = 100


def conditions(admin: str, *, runs: int, quick: bool) -> Iterator[tuple[str, str]]:
    """Yield what to know about the machine and the server, before anything is measured."""
    yield "when", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    yield "cpu", f"{_cpu()}, {os.cpu_count()} cores"
    yield "system", f"{platform.system()} {platform.machine()}"
    yield "load before", " ".join(f"{load:.2f}" for load in os.getloadavg())
    yield "python", f"{platform.python_implementation()} {platform.python_version()}"
    yield "psycopg", f"{metadata.version('psycopg')} ({psycopg.pq.__impl__}), libpq {psycopg.pq.version()}"
    with psycopg.connect(admin, autocommit=True) as connection:
        for name, query in (("postgres", b"select version()"), ("data", b"select current_setting('data_directory')")):
            row = connection.execute(query).fetchone()
            value = "" if row is None else str(row[0])
            yield name, _file_system(value) if name == "data" else value
        settings: dict[str, str] = dict(
            connection.execute(
                "select name, current_setting(name) from pg_settings where name = any(%s)", [[*_SETTINGS]]
            )
        )
        yield "settings", ", ".join(f"{name}={settings[name]}" for name in _SETTINGS if settings.get(name))
        yield "a commit alone", f"{_commit(connection) * 1000:.2f} ms (median of {_COMMITS})"
    yield "runs", f"{runs}{', quick: smaller than what is published' if quick else ''}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _file_system(folder: str) -> str:
    """Tell what the data are on: a commit costs nothing in memory."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text("utf-8").splitlines()]
    except OSError:
        return "unknown file system"
    above = [mount for mount in mounts if Path(folder).is_relative_to(mount[1])]
    return max(above, key=lambda mount: len(mount[1]))[2] if above else "unknown file system"


def _commit(connection: psycopg.Connection[tuple[object, ...]]) -> float:
    connection.execute("create table if not exists benchmark_probe (n integer)")
    seconds = []
    for number in range(_COMMITS):
        started = time.perf_counter()
        connection.execute("insert into benchmark_probe values (%s)", [number])
        seconds.append(time.perf_counter() - started)
    connection.execute("drop table benchmark_probe")
    return statistics.median(seconds)
