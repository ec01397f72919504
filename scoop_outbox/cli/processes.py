"""Running an application as a process: finding it, serving it, and ending with grace."""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from scoop_outbox._log import get_logger
from scoop_outbox._retention import REMEMBERED
from scoop_outbox.app import Scoop, service_of
from scoop_outbox.daemon.monitoring.health import serve_health
from scoop_outbox.errors import DefinitionError
from scoop_outbox.store.url import redact_url

log = get_logger(__name__)

_YOUNG = 50_000
"""So many new objects until the garbage collector looks for cycles."""


def load_app(path: str) -> Scoop:
    """Return the `Scoop` that `module:attribute` names; the working directory is searched too.

    Raises:
        DefinitionError: the module does not import, or holds no such application.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise DefinitionError(f"{path!r} does not name an application: write MODULE:APP, as in shop.sagas:app")
    if "" not in sys.path and str(os.getcwd()) not in sys.path:  # noqa: PTH109 - sys.path holds text
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise DefinitionError(f"the module {module_name!r} does not import: {type(error).__name__}: {error}") from error
    app = getattr(module, attribute, None)
    if not isinstance(app, Scoop):
        found = sorted(name for name, value in vars(module).items() if isinstance(value, Scoop))
        hint = f"; it holds {', '.join(f'{module_name}:{name}' for name in found)}" if found else ""
        what = "has no such name" if app is None else f"is a {type(app).__qualname__}"
        raise DefinitionError(f"{path!r} {what}, where a Scoop is needed{hint}")
    return app


@dataclass(frozen=True, slots=True)
class Serving:
    """How an application is served.

    Attributes:
        worker: whether its sagas are executed.
        relay: whether the outbox is published.
        slots: how many runs are executed at the same time.
        grace: how many seconds running steps get to finish.
        high_water: how many runs lie waiting when no more is taken in.
        max_interruptions: how often in a row a run may be interrupted until it is parked.
        slow_step_after: after how many seconds it is said that a step is slow.
        port: where it is told how this process is; None is nowhere.
        host: the address of the port.
        retention, retain_payload, remember: as `Scoop.running` takes them.
    """

    worker: bool
    relay: bool
    slots: int
    grace: float
    high_water: int = 10_000
    max_interruptions: int = 20
    slow_step_after: float = 60.0
    port: int | None = None
    host: str = "127.0.0.1"
    retention: timedelta | None = None
    retain_payload: timedelta | None = None
    remember: timedelta = REMEMBERED


def run(app: Scoop, serving: Serving) -> None:
    """Serve until SIGTERM or SIGINT, or until a part of the process dies; then drain, and end the process.

    A second signal ends it at once.

    Ending at once loses nothing: what was not committed is undone by the server and done again by others.

    Raises:
        DefinitionError, DatabaseError, BrokerError: the application cannot be served.
        ScoopError: the port cannot be listened on.
    """
    died = asyncio.run(_serve(app, serving))
    if died:
        # Whoever supervises the process starts it again; with the rest of it alive it would seem to be well.
        log.critical("process: ending with status 1 (died: %s)", ", ".join(died))
    # A plain `def` that has outlasted its grace still runs in a thread; nobody waits for it.
    logging.shutdown()
    os._exit(1 if died else 0)


async def _serve(app: Scoop, serving: Serving) -> list[str]:
    """Serve until the end, and return what has died."""
    stopping = asyncio.Event()

    def stop(number: int) -> None:
        if stopping.is_set():
            log.warning("process: stopping at once (second signal)", extra={"signal": signal.Signals(number).name})
            os._exit(128 + number)
        name = signal.Signals(number).name
        log.info("process: stopping (%s, grace %.0f s for running steps)", name, serving.grace, extra={"signal": name})
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    if serving.worker and not app.sagas:
        raise DefinitionError(f"service {app.service!r} declares no sagas: a worker would have nothing to do")
    async with AsyncExitStack() as stack:
        health = None
        if serving.port is not None:
            # Around the daemons: it answers while they start and while they drain, too.
            health = await stack.enter_async_context(serve_health(service_of(app).home, serving.host, serving.port))
        daemons = await stack.enter_async_context(
            app.running(
                worker=serving.worker,
                relay=serving.relay,
                slots=serving.slots,
                high_water=serving.high_water,
                max_interruptions=serving.max_interruptions,
                slow_step_after=serving.slow_step_after,
                grace=serving.grace,
                retention=serving.retention,
                retain_payload=serving.retain_payload,
                remember=serving.remember,
            )
        )
        if health is not None:
            health.watch(daemons)
        _freeze_gc()
        home = service_of(app).home
        log.info(
            "process: ready (service %s, database %s, schema %s)",
            *(app.service, redact_url(home.url), home.schema),
            extra={"service": app.service},
        )
        await _first(stopping.wait(), daemons.until_one_dies())
        if health is not None:
            health.stopping = True
    log.info("process: stopped")
    return daemons.died


async def _first(*waiting: Coroutine[Any, Any, object]) -> None:
    """Wait for whichever ends first, and give up the others."""
    tasks = [asyncio.create_task(one) for one in waiting]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _freeze_gc() -> None:
    """Let Python's garbage collector pass over what stays until the end.

    Otherwise it looks at every imported module again whenever a relay has read a few thousand messages: that was a
    quarter of the relay's processor time. It still collects cycles, of what has been made since.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG)
