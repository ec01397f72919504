"""Making a service known: its sagas' subscriptions, so that its messages are waited for."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from scoop_outbox.client.service import Service
from scoop_outbox.core.plans.homes import name_home
from scoop_outbox.daemon.announcer import note
from scoop_outbox.errors import BrokerError


async def announce(service: Service) -> None:
    """Announce a service; `Scoop.announce` says what that is, and what it raises."""
    service.check()
    async with service.home.driver() as driver:
        await driver.run(service.servers.guard(relay=False))
        identity = await driver.run(name_home(service.servers.home_name))
        if not await service.announcer.announce(driver):
            raise _unasked(service)
    service.home.cooperation.learn(identity.name)


def announce_sync(service: Service) -> None:
    """Do as `announce`, for code without an event loop."""
    service.check()
    announcer = service.announcer
    if announcer.done:
        return
    with service.home.blocking_driver() as driver:
        driver.run(service.servers.guard(relay=False))
        identity = driver.run(name_home(service.servers.home_name))
        with ThreadPoolExecutor(1) as thread:
            # This thread may have a loop that runs.
            announcer.problem = thread.submit(asyncio.run, announcer.prepare(identity)).result()
        if announcer.problem is not None:
            raise _unasked(service)
        note(service.name, driver.run(announcer.plan()))
    service.home.cooperation.learn(identity.name)
    announcer.done = True


def _unasked(service: Service) -> BrokerError:
    return BrokerError(
        f"service {service.name!r} is not announced: its broker does not answer ({service.announcer.problem}). Retry "
        "when it does"
    )
