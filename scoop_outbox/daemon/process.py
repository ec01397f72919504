"""What a process runs: relay, workers and hints, started together and stopped with grace."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from scoop_outbox._log import get_logger
from scoop_outbox.broker.protocol import Broker, Publisher, Subscription
from scoop_outbox.core.plans.homes import Identity
from scoop_outbox.daemon.announcer import Announcer
from scoop_outbox.daemon.confirmations import wait_until_confirmed
from scoop_outbox.daemon.daemons import error_of
from scoop_outbox.daemon.hints import ProcessHints
from scoop_outbox.daemon.intake.control import control_intake
from scoop_outbox.daemon.intake.service import service_intake
from scoop_outbox.daemon.maintenance import KEPT_FOR_EVER, Kept, Maintenance
from scoop_outbox.daemon.relay.home_publisher import HomePublisher
from scoop_outbox.daemon.relay.relay import Relay
from scoop_outbox.daemon.relay.signing import SigningPublisher
from scoop_outbox.daemon.running import Running
from scoop_outbox.daemon.tuning import Tuning
from scoop_outbox.daemon.worker.alerts import Alert
from scoop_outbox.daemon.worker.worker import Worker
from scoop_outbox.errors import BrokerError
from scoop_outbox.saga import Saga
from scoop_outbox.store.home import Home
from scoop_outbox.wire.signature import ControlKeys

log = get_logger(__name__)

_LAST = 1.0
"""Seconds that relay and intake get to give back what they hold, if the steps have used up the grace."""


@asynccontextmanager
async def daemons(
    home: Home,
    subscription: Subscription,
    sagas: Mapping[str, Saga],
    *,
    hints: ProcessHints,
    announcer: Announcer,
    broker: Broker | None = None,
    relay: bool = True,
    worker: bool = True,
    tuning: Tuning,
    alerts: Sequence[Alert] = (),
    kept: Kept = KEPT_FOR_EVER,
    identity: Identity | None = None,
    control_keys: ControlKeys | None = None,
) -> AsyncIterator[Running]:
    """Run relay, worker and intake in the background, and drain them at the end.

    Args:
        home: the database.
        subscription: whose runs the worker executes, and what it receives.
        sagas: the service's sagas by name.
        hints: the hints of this process.
        announcer: makes the service known before it works. While its broker is down, intake does so later.
        broker: None is the built-in one, where the relay takes in for all services.
        relay: whether to relay.
        worker: whether to take in and to execute runs.
        tuning: how much is done at a time.
        alerts: called for each run that gets stuck.
        kept: for how long what has ended is kept; whoever relays sees to it.
        identity: how other homes know this one; None, or one without a name, cooperates with none.
        control_keys: with what is signed and verified that other homes are to believe, and this one; None does neither.

    Raises:
        BrokerError: the broker says that this cannot work; then the service has not been announced.
    """
    relaying = await _relay(home, broker, hints, identity, control_keys) if relay else None
    cooperates = worker and broker is not None and identity is not None and identity.name is not None
    if broker is None and identity is not None and identity.name is not None:
        log.warning("home: alone (home %s has no broker: it cooperates with no other)", identity.name)
    serving = worker and bool(sagas)
    if serving or broker is None or cooperates:
        await _announce(home, announcer, relaying)
    names = _with_former(sagas)
    executing = _worker(home, subscription.service, names, hints, tuning, alerts, broker) if serving else None
    intake = control = None
    if broker is not None and serving:
        limits = {"high": tuning.high_water, "low": tuning.high_water // 2}
        intake = service_intake(home, broker, subscription, sagas, hints, announcer, control_keys, **limits)
    if broker is not None and identity is not None and cooperates:
        control = control_intake(home, broker, identity, hints, control_keys)
    running = Running(home, relaying, executing, intake, subscription.service, list(names))
    running.control = control
    _start(running, hints, _maintenance(home, kept, relaying))
    try:
        if control is not None:
            await wait_until_confirmed(home)
        yield running
    finally:
        await _drain(running, tuning.grace, hints)


def _worker(
    home: Home,
    service: str,
    sagas: Mapping[str, Saga],
    hints: ProcessHints,
    tuning: Tuning,
    alerts: Sequence[Alert],
    broker: Broker | None,
) -> Worker:
    return Worker(
        *(home, service, sagas, hints, tuning.slots),
        via_broker=broker is not None,
        max_interruptions=tuning.max_interruptions,
        slow_step_after=tuning.slow_step_after,
        alerts=alerts,
    )


async def _drain(running: Running, grace: float, hints: ProcessHints) -> None:
    try:
        await _stop(running, grace)
    finally:
        hints.detach()


async def _stop(running: Running, grace: float) -> None:
    running.not_ready()
    tasks = running.tasks
    # The worker before the relay: what its last steps launch is relayed meanwhile.
    deadline = time.monotonic() + grace
    for intake in (running.intake, running.control):
        if intake is not None:
            intake.stop()
    if running.worker is not None:
        await running.worker.stop(grace)
    if running.maintenance is not None:
        running.maintenance.stop()
    if running.relay is not None:
        running.relay.stop()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(max(deadline - time.monotonic(), _LAST)):
            await asyncio.gather(*tasks[1:], return_exceptions=True)
    tasks[0].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await running.close()


def _start(running: Running, hints: ProcessHints, maintenance: Maintenance | None) -> None:
    running.hints, running.maintenance = hints, maintenance
    named = {
        "hints": hints,
        "relay": running.relay,
        "worker": running.worker,
        "intake": running.intake,
        "control": running.control,
        "maintenance": running.maintenance,
    }
    tasks = [
        asyncio.create_task(daemon.run(), name=f"scoop_outbox {name}")
        for name, daemon in named.items()
        if daemon is not None
    ]
    for task in tasks:
        task.add_done_callback(_report)
    running.tasks = tasks


async def _announce(home: Home, announcer: Announcer, relay: Relay | None) -> None:
    try:
        async with home.driver() as driver:
            await announcer.announce(driver)
    except BaseException:
        if relay is not None:
            await relay.close()
        raise


def _with_former(sagas: Mapping[str, Saga]) -> dict[str, Saga]:
    """Return sagas by all their names: what has begun under one and could not be taken over is executed under it."""
    return {name: saga for saga in sagas.values() for name in (*saga.formerly, saga.name)}


def _maintenance(home: Home, kept: Kept, relay: Relay | None) -> Maintenance | None:
    return None if relay is None else Maintenance(home, kept, lambda: relay.is_first)


async def _relay(
    home: Home, broker: Broker | None, hints: ProcessHints, identity: Identity | None, keys: ControlKeys | None
) -> Relay:
    relay = Relay(home, await _publisher(home, broker, hints, identity, keys), hints)
    try:
        await relay.check()
    except BrokerError:
        await relay.close()
        raise
    return relay


async def _publisher(
    home: Home, broker: Broker | None, hints: ProcessHints, identity: Identity | None, keys: ControlKeys | None
) -> Publisher:
    if broker is None:
        return HomePublisher(home, hints)
    publisher = await broker.publisher(home.application)
    if identity is None or keys is None:
        return publisher
    return SigningPublisher(publisher, keys, identity.prefix, broker.published_as)


def _report(task: asyncio.Task[None]) -> None:
    """Say so when a daemon ends that should not: silence is how work stops unnoticed."""
    error = error_of(task)
    if error is not None:
        log.critical("process: daemon died (%s)", task.get_name(), exc_info=error)
