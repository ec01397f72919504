"""Running a service in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from scoop_outbox._retention import Retention
from scoop_outbox.client.service import Service
from scoop_outbox.core.plans.homes import name_home
from scoop_outbox.core.plans.subscriptions import read_revision
from scoop_outbox.daemon.maintenance import Kept
from scoop_outbox.daemon.process import daemons
from scoop_outbox.daemon.running import Running
from scoop_outbox.daemon.tuning import Tuning
from scoop_outbox.errors import DefinitionError
from scoop_outbox.store import revisions


@asynccontextmanager
async def serve(
    service: Service, tuning: Tuning, *, relay: bool, worker: bool, retention: Retention
) -> AsyncIterator[Running]:
    """Run relay and worker for as long as the block lasts; `Scoop.running` says what the arguments are."""
    if service.running:
        raise DefinitionError(f"service {service.name!r} is running in this process already: once is enough")
    service.check()
    service.seal(running=True)
    try:
        async with service.home.driver() as driver:
            revisions.check(await driver.run(read_revision()), service.home.url)
            await driver.run(service.servers.guard(relay=relay))
            identity = await driver.run(name_home(service.servers.home_name))
            service.home.cooperation.learn(identity.name)
        async with daemons(
            service.home,
            service.subscription,
            service.sagas,
            hints=service.hints,
            announcer=service.announcer,
            broker=service.broker,
            relay=relay,
            worker=worker,
            tuning=tuning,
            alerts=service.alerts,
            kept=Kept(retention, service.archives),
            identity=identity,
            control_keys=service.servers.control_keys,
        ) as running:
            yield running
    finally:
        service.seal(running=False)
        await service.servers.close()
