"""A service with a step that ends its process, as a segmentation fault in an extension or the OOM killer does."""

from __future__ import annotations

import os
import signal
from typing import Any

from scoop_outbox import Scoop

app = Scoop("apothecary")
poison, medicine = app.saga("poison", on="poison"), app.saga("medicine", on="medicine")


@poison.step
async def swallow(scope: Any, message: Any) -> None:
    """End the process without a word."""
    os.kill(os.getpid(), signal.SIGKILL)


@poison.step
def sleep(scope: Any, message: Any) -> None:
    """Never come to this."""


@medicine.step
async def take(scope: Any, message: Any) -> None:
    """Do no harm."""
