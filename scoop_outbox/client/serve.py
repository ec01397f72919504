"""Running a service in this process."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from scoop_outbox._retention import Retention
from scoop_outbox.client.service import Service
from scoop_outbox.core.plans.homes import name_home
from scoop_outbox.core.plans.subscriptions import read_revision
from scoop_outbox.daemon.maintenance import Kept
from scoop_outbox.daemon.process import daemons
from scoop_outbox.daemon.running import Running
from scoop_outbox.errors import DefinitionError
from scoop_outbox.store import revisions


@asynccontextmanager
async def serve(
    service: Service,
    *,
    relay: bool,
    worker: bool,
    slots: int,
    high_water: int,
    max_interruptions: int,
    slow_step_after: float,
    grace: float,
    retention: Retention,
) -> AsyncIterator[Running]:
    """Run relay and worker for as long as the block lasts; `Scoop.running` says what the arguments are."""
    _check_numbers(slots, high_water, max_interruptions, slow_step_after)
    if service.running:
        raise DefinitionError(f"service {service.name!r} is running in this process already: once is enough")
    service.check()
    service.seal(running=True)
    try:
        async with service.home.driver() as driver:
            revisions.check(await driver.run(read_revision()), service.home.url)
            await driver.run(service.servers.guard(relay=relay))
            identity = await driver.run(name_home(service.servers.home_name))
        async with daemons(
            service.home,
            service.subscription,
            service.sagas,
            hints=service.hints,
            announcer=service.announcer,
            broker=service.broker,
            relay=relay,
            worker=worker,
            slots=slots,
            high_water=high_water,
            max_interruptions=max_interruptions,
            slow_step_after=slow_step_after,
            grace=grace,
            alerts=service.alerts,
            kept=Kept(retention, service.archives),
            identity=identity,
        ) as running:
            yield running
    finally:
        service.seal(running=False)
        await service.servers.close()


def _check_numbers(slots: int, high_water: int, max_interruptions: int, slow_step_after: float) -> None:
    if slots < 1:
        raise DefinitionError(f"slots={slots}: a worker needs at least one")
    if high_water < 1:
        raise DefinitionError(f"high_water={high_water}: nothing would ever be taken in; it is at least 1")
    if max_interruptions < 1:
        raise DefinitionError(f"max_interruptions={max_interruptions}: every run would be parked; it is at least 1")
    if not 0 < slow_step_after < math.inf:
        raise DefinitionError(f"slow_step_after={slow_step_after}: it is a number of seconds above 0")
