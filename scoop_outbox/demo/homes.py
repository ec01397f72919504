"""Where the services keep their data: in one database that they share, or in one for each of them.

With a database for each, every service is a home of its own: what its steps launch is waited for in other homes, and
undone there. The services are the same, and know nothing of it.
"""

from __future__ import annotations

import asyncio
import importlib
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import psycopg
from psycopg import sql

from scoop_outbox import RunStatus, Scoop, ScoopError, Status
from scoop_outbox.broker.protocol import Subscription
from scoop_outbox.core.plans.homes import Identity
from scoop_outbox.daemon.announcer import control_subscription
from scoop_outbox.demo import names, tables
from scoop_outbox.demo.count import Connection
from scoop_outbox.store.connect import map_database_errors
from scoop_outbox.store.url import parse_url

_ACQUAINTED_SECONDS = 30.0
# Only this module, and the one that counts, look into everybody's tables: a service never does.
_KNOWN = """
    select p.name
    from demo_shop.peer p
    cross join demo_shop.home h
    where p.revision > 0 and p.confirmed >= h.revision
"""


class NotAcquainted(ScoopError):
    """The homes do not know each other; the message says who does not know whom."""


@dataclass(frozen=True, slots=True)
class Homes:
    """The databases of the services. Made by `homes`.

    Attributes:
        urls: of each service, its database.
        connections: of each service, a connection to look into its database with.
        apps: the services.
    """

    urls: Mapping[str, str]
    connections: Mapping[str, Connection]
    apps: Mapping[str, Scoop]

    @property
    def separate(self) -> bool:
        """Whether each service has a database of its own."""
        return len(set(self.urls.values())) > 1

    async def acquainted(self, within: float = _ACQUAINTED_SECONDS) -> None:
        """Return once each home knows who listens in all others, and has been told that they know it.

        What is launched before that is handled all the same, but not waited for.

        Raises:
            NotAcquainted: it takes too long.
        """
        if not self.separate:
            return
        deadline = time.monotonic() + within
        while missing := [said for service in self.urls for said in await self._unknown_to(service)]:
            if time.monotonic() > deadline:
                raise NotAcquainted(f"the homes do not know each other after {within:.0f} s: {', '.join(missing)}")
            await asyncio.sleep(0.05)

    async def _unknown_to(self, service: str) -> list[str]:
        cursor = await self.connections[service].execute(_KNOWN)
        known = {row[0] for row in await cursor.fetchall()} | {service}
        return [f"{service} and {other}" for other in self.urls if other not in known]

    async def status(self, message_id: uuid.UUID) -> Status:
        """Return a hierarchy that `orders` began, with its runs in all homes.

        A home knows its own runs, and in which home the children of these are. That one is asked for the rest.
        """
        runs: dict[uuid.UUID, RunStatus] = {}
        launched_by: dict[uuid.UUID | None, int | None] = {}
        to_ask, asked = {("orders", message_id)}, set[tuple[str, uuid.UUID]]()
        while to_ask:
            home, message = one = to_ask.pop()
            asked.add(one)
            found = await self.apps[home].status(message)
            runs |= {run.id: run for run in found.runs}
            launched_by |= {child.run_id: child.launched_by for child in found.elsewhere}
            to_ask |= {(child.home, child.message_id) for child in found.elsewhere} - asked
        # Which execution has launched a run is known to the home of that.
        whole = [replace(run, launched_by=launched_by.get(run.id, run.launched_by)) for run in runs.values()]
        return Status(message_id, tuple(sorted(whole, key=lambda run: run.created_at)))


@asynccontextmanager
async def homes(url: str, broker: str | None, settings: Mapping[str, str], *, each: bool) -> AsyncIterator[Homes]:
    """Make the databases of the services ready, with empty tables, and configure the services.

    Args:
        url: a database that all of them share; or, with `each`, one on a server of our own, on which they get theirs.
        broker: the broker's URL; None is the built-in one.
        settings: for the broker's client.
        each: whether each service gets a database of its own.

    Raises:
        DatabaseError: it cannot be used, or it is somebody else's.
    """
    apps = services()
    urls = await asyncio.to_thread(_create_databases, url) if each else dict.fromkeys(apps, url)
    async with AsyncExitStack() as stack:
        connections: dict[str, Connection] = {}
        for service, app in apps.items():
            if each or not connections:
                connections[service] = await _opened(urls[service], service if each else None, stack)
            else:
                connections[service] = next(iter(connections.values()))
            app.configure(database=urls[service], broker=broker, broker_settings=settings)
            stack.push_async_callback(app.close)
        yield Homes(urls, connections, apps)


async def _opened(url: str, service: str | None, stack: AsyncExitStack) -> Connection:
    """Return a connection to a database that has been made ready, for one service or for all."""
    stack.enter_context(map_database_errors(url))
    connection = await stack.enter_async_context(await connect(url))
    await tables.claim(connection)
    await asyncio.to_thread(tables.create, url, service)
    return connection


def services() -> dict[str, Scoop]:
    """Return the services by name. They are imported now: before that, their topics have been given names."""
    return {name: importlib.import_module(f"scoop_outbox.demo.{name}").app for name in tables.OWN}


def control_subscriptions() -> list[Subscription]:
    """Return on what each home is told something, if each service is one."""
    nobody = uuid.UUID(int=0)
    return [control_subscription(Identity(nobody, service, names.topic(""))) for service in tables.OWN]


async def connect(url: str) -> Connection:
    """Return a connection that looks into a database."""
    plain = parse_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    return await psycopg.AsyncConnection.connect(plain, autocommit=True, connect_timeout=10)


def _create_databases(url: str) -> dict[str, str]:
    """Create a database for each service, on a server that has none of these names, and return their URLs."""
    server = parse_url(url).set(drivername="postgresql")
    with psycopg.connect(server.render_as_string(hide_password=False), autocommit=True) as connection:
        for service in tables.OWN:
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(service)))
    return {service: server.set(database=service).render_as_string(hide_password=False) for service in tables.OWN}
