"""Services and processes that are configured wrongly: they are refused in one line, which tells no secret."""

import asyncio
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from scoop_outbox import ScoopError
from tests.dropin.listener import Listener

SECRET = "s3cr3t"  # noqa: S105 - it stands for one
NOWHERE = 1
"""A port where nobody listens."""


Process = subprocess.Popen[str]

SHOP = """
from scoop_outbox import Scoop
app = Scoop("shop")
saga = app.saga("place-order", on="{topic}")
@saga.step
def only(scope, message): ...
"""


def said(error: BaseException) -> str:
    """What an error says: one line, and no secret."""
    text = str(error)
    assert SECRET not in text
    assert "\n" not in text
    return text


def refusal_of(make: Callable[[], object]) -> str:
    with pytest.raises(ScoopError) as error:
        make()
    return said(error.value)


async def refusal_to_run(service: Listener) -> str:
    with pytest.raises(ScoopError) as error:
        async with service.running():
            pass
    return said(error.value)


def worker(folder: Path, database_url: str, topic: str, *arguments: str) -> AbstractContextManager[Process]:
    """A worker of a service that listens on a topic, as a process of its own."""
    (folder / "shop.py").write_text(SHOP.format(topic=topic))
    return running(folder, "worker", "shop:app", "--database", database_url, *arguments)


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[Process]:
    """A command, as a process of its own."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SCOOP_OUTBOX")}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "scoop_outbox", *arguments],
            cwd=folder,
            env=environment,
            stderr=log,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()


def log_of(folder: Path) -> str:
    text = (folder / "log").read_text()
    assert SECRET not in text
    assert "Traceback" not in text
    return text


async def refusal_of_relay(folder: Path, database_url: str, broker: str) -> str:
    """What a relay that cannot start ends with."""
    with running(folder, "relay", "--database", database_url, "--broker", broker) as process:
        assert await asyncio.to_thread(process.wait, 60) == 1, log_of(folder)
    return log_of(folder).splitlines()[-1]


async def refusal_of_worker(folder: Path, database_url: str, topic: str, *arguments: str) -> str:
    """What a worker that cannot start ends with."""
    with worker(folder, database_url, topic, *arguments) as process:
        assert await asyncio.to_thread(process.wait, 60) == 1, log_of(folder)
    return log_of(folder).splitlines()[-1]


def readiness(port: int) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""
