"""A broker that is a file: a line for each message, in the order in which they were published.

Processes find it by an entry point, like any other adapter. `DELAY` is how many seconds a message takes.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from scoop_outbox.broker.protocol import ACKNOWLEDGED, Receipt
from scoop_outbox.message import Envelope


class Published(NamedTuple):
    """A message that was published, and by which process."""

    pid: int
    key: str
    number: int


class FileBroker:
    """Implements what a relay needs of `broker.protocol.Broker` and `Publisher`."""

    most_bytes: int | None = None

    def __init__(self, url: str, settings: Mapping[str, object]) -> None:
        self._path = urlsplit(url).path
        self._delay = float(str(settings.get("delay", 0)))

    async def publisher(self, name: str) -> FileBroker:
        return self

    async def publish(self, batch: Sequence[Envelope]) -> Sequence[Receipt]:
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            for one in batch:
                await asyncio.sleep(self._delay)
                line = json.dumps([os.getpid(), one.key, json.loads(one.body)["n"]])
                os.write(file, line.encode() + b"\n")
        finally:
            os.close(file)
        return [ACKNOWLEDGED] * len(batch)

    async def probe(self) -> str | None:
        return None

    async def close(self) -> None: ...


def install(folder: Path) -> Path:
    """Write what makes `file://` known to processes that have the folder in their path."""
    metadata = folder / "scoop_outbox_file-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: scoop-outbox-file\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[scoop_outbox.brokers]\nfile = tests.crash.file_broker:FileBroker\n")
    return folder


def published(path: Path) -> list[Published]:
    """Return what was published so far."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [Published(*json.loads(line)) for line in lines]
