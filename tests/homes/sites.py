"""Homes whose processes, Postgres servers and networks are a test's to break, for the services of `crash.flow`."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from sqlalchemy import make_url

from scoop_outbox.app import service_of
from scoop_outbox.broker import plugins
from scoop_outbox.core.plans.homes import Identity
from scoop_outbox.daemon.announcer import control_subscription
from scoop_outbox.devservers.postgres import PostgresServer
from scoop_outbox.store.migrate import migrate
from tests.crash import flow
from tests.crash.flow import EFFECT_TABLE
from tests.crash.ledger import UNENDED, count
from tests.crash.processes import Fleet, Process
from tests.homes.proxy import Link, Network

SITES = {"orders": "orders", "stock": "stock", "billing": "billing", "stock.2": "stock"}
"""Homes, and the service of each."""
BEGUN = "select count(*) from scoop_outbox.step"
KNOWN = """
select count(*) from scoop_outbox.peer p, scoop_outbox.home h where p.revision > 0 and p.confirmed = h.revision
"""
_PASSED_ON = """
create table passed_on (
    id bigint generated always as identity primary key,
    message_id uuid not null, topic text not null, reply_to text not null
);
create function note_what_is_passed_on() returns trigger language plpgsql as $$
declare
    said json := convert_from(new.body, 'UTF8')::json;
begin
    if said->>'kind' = 'forwarded' then
        insert into passed_on (message_id, topic, reply_to)
        values ((said->'message'->>'id')::uuid, said->'message'->>'topic', new.topic);
    end if;
    return null;
end
$$;
create trigger note_what_is_passed_on after insert on scoop_outbox.outbox
for each row when (new.topic like '%control.%') execute function note_what_is_passed_on();
"""
"""What was passed on leaves nothing behind in the home that did it."""


@dataclass
class Site:
    """A home, and what can be broken of it.

    Attributes:
        name: of the home.
        service: the one that lives there.
        server: its Postgres.
        postgres: the link of its processes to that.
        broker: their link to the broker.
        environment: what they read.
        processes: a worker and a relay, by these names.
    """

    name: str
    service: str
    server: PostgresServer
    postgres: Link
    broker: Link
    environment: Mapping[str, str]
    processes: dict[str, Process]

    def start(self, fleet: Fleet, kind: str) -> None:
        """Start a process, in the place of one that has been killed."""
        arguments = ("worker", f"tests.crash.flow:{self.service}") if kind == "worker" else ("relay",)
        self.processes[kind] = fleet.start(*arguments, **self.environment)

    def tend(self, fleet: Fleet) -> None:
        """Start again, as whoever runs it does, what has ended by itself: its servers were away when it began."""
        for kind, process in list(self.processes.items()):
            if process.ended:
                assert "process: ready" not in process.log, f"{process} has ended in the midst of work:\n{process.log}"
                self.start(fleet, kind)

    def count(self, question: str, *values: object) -> int:
        """Ask the database for a number, past the network."""
        with psycopg.connect(self.server.url, autocommit=True) as connection:
            return count(connection, question, *values)

    def ask(self, question: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.server.url, autocommit=True) as connection:
            return connection.execute(question.encode()).fetchall()

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is left to be done here, as far as is known here."""
        left = (UNENDED, *map("select count(*) from scoop_outbox.{}".format, ("outbox", "mailbox", "child where open")))
        return not any(map(self.count, left))


def site(name: str, server: PostgresServer, network: Network, broker: Link, url: str, prefix: str) -> Site:
    """Make a home ready that nothing runs in yet.

    Args:
        name: one of `SITES`.
        server: a Postgres that runs.
        network: where its link to that begins.
        broker: the link to the broker.
        url: of the broker; its port becomes that of the link.
        prefix: what the topics of the test begin with.
    """
    migrate(server.url)
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(EFFECT_TABLE)
        connection.execute("alter table effect add at timestamptz not null default clock_timestamp()")
        connection.execute(_PASSED_ON)
        connection.execute("update scoop_outbox.home set prefix = %s", (prefix,))
    parsed = make_url(server.url)
    assert parsed.host is not None
    assert parsed.port is not None
    postgres = network.link(parsed.host, parsed.port)
    environment = {
        "SCOOP_OUTBOX_DATABASE": parsed.set(port=postgres.port).render_as_string(hide_password=False),
        "SCOOP_OUTBOX_BROKER": url,
        "SCOOP_OUTBOX_HOME": name,
        "SCOOP_TEST_PREFIX": prefix,
    }
    return Site(name, SITES[name], server, postgres, broker, environment, {})


def new_prefix() -> str:
    """What the topics of one test begin with."""
    return f"t{secrets.token_hex(6)}."


async def create_topics(url: str, prefix: str) -> None:
    """Make the broker ready for all services and homes, as `scoop-outbox topology apply` does."""
    broker = plugins.load(url)
    for app in flow.SERVICES.values():
        mine = service_of(app).subscription
        topics = tuple(prefix + topic for topic in mine.topics)
        await broker.topology(topics, replace(mine, group=prefix + mine.group, topics=topics), create=True)
    for name in SITES:
        control = control_subscription(Identity(uuid.UUID(int=0), name, prefix))
        await broker.topology(control.topics, control, create=True)


def create_topics_now(url: str, prefix: str) -> None:
    asyncio.run(create_topics(url, prefix))


def know_each_other(sites: Iterable[Site]) -> bool:
    """Tell whether each home knows who listens in all others, and has been told that they know."""
    every = list(sites)
    return all(one.count(KNOWN) == len(every) - 1 for one in every)
